"""The steps of the register on Redis and Valkey, as Lua scripts. `wse.brokers.redis.broker` lists the keys.

The rules are those of `wse.brokers.placement`. Every script takes the prefix of all keys, the node and the epoch of its
lease, then its own arguments. None declares its keys, which only Redis Cluster needs.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from hashlib import sha1


@dataclass(frozen=True, slots=True)
class Script:
    """A Lua script.

    Attributes:
        text: Its source.
        sha: The name under which the engine caches it.
    """

    text: str
    sha: str = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "sha", sha1(self.text.encode(), usedforsecurity=False).hexdigest())


_HEAD = """
local prefix, node, epoch = ARGV[1], ARGV[2], ARGV[3]
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local leases, nodes, awaited = prefix .. 'leases', prefix .. 'nodes', prefix .. 'awaited'
local function is_recovering()
  return redis.call('ZCOUNT', awaited, '(' .. now, '+inf') > 0
end
"""

_STEP = (
    _HEAD
    + """
local record = redis.call('HGET', nodes, node)
if not record or string.match(record, '^(%S+)') ~= epoch then
  return redis.error_reply('FENCED the lease of the node is not in force')
end

local out = {}
local function read(value)
  return string.match(value, '^(%S+) (%S+) (%S+)$')
end
-- The generation of a user and the place of the newest device, the former raised to what a node remembers.
local function numbers(key, known)
  local found = redis.call('HMGET', key, '#g', '#p')
  local generation, place = tonumber(string.match(found[1] or '0', '^%d+')), tonumber(found[2] or 0)
  if not found[1] or generation < tonumber(known) then
    generation = math.max(generation, tonumber(known))
    redis.call('HSET', key, '#g', generation, '#p', string.format('%d', place))
  end
  return generation, place
end
local function forget(key, user, id, holder)
  redis.call('HDEL', key, id)
  redis.call('SREM', prefix .. 'n:' .. holder, user .. ' ' .. id)
end
-- An entry of an outbox has been claimed, or has another owner.
local function hand_over(entry, from, to)
  local user, generation = string.match(entry, '^(%S+) (%d+)$')
  local key = prefix .. 'u:' .. user
  if redis.call('HGET', key, '#g') == generation .. ' ' .. from then
    redis.call('HSET', key, '#g', generation .. to)
  end
end
local told = {}
local function tell(user, generation)
  local field = user .. ' ' .. string.format('%d', generation)
  local entry = not told[field] and redis.call('HGET', prefix .. 'o:' .. node, field)
  if entry then
    told[field] = true
    local code, reason = string.match(entry, '^(%d+) (.*)$')
    table.insert(out, {user, generation, code, reason})
  end
end
-- The answers that told the node of earlier transitions may have been lost.
local function tell_open(user, generation)
  for one = math.max(1, generation - 7), generation do tell(user, one) end
end
-- The rule: what is announced follows what is there, by a transition in the outbox of this node.
local function decide(key, user, generation, code, reason)
  local present = redis.call('HLEN', key) > 2
  if present then
    redis.call('SADD', prefix .. 'users', user)
    redis.call('PERSIST', key)
  else
    redis.call('SREM', prefix .. 'users', user)
    redis.call('PEXPIRE', key, 600000)
  end
  if present == (generation % 2 == 1) then return generation end
  local outbox = prefix .. 'o:' .. node
  local owner = string.match(redis.call('HGET', key, '#g'), ' (%S+)$')
  if owner and owner ~= node then  -- it has not claimed the opposite one yet, and would fire it after this one
    redis.call('HDEL', prefix .. 'o:' .. owner, user .. ' ' .. generation)
    generation = generation + 1
    redis.call('HSET', key, '#g', generation)
    return generation
  end
  if is_recovering() then
    redis.call('HSET', outbox, user .. ' 0', code .. ' ' .. reason)
    return generation
  end
  generation = generation + 1
  redis.call('HSET', key, '#g', generation .. ' ' .. node)
  redis.call('HSET', outbox, user .. ' ' .. generation, code .. ' ' .. reason)
  tell_open(user, generation)
  return generation
end
"""
)
"""What every step begins with: it is refused if the lease is not in force."""

JOIN = Script(
    _STEP
    + """
local user, id, place, limit, known, fresh = unpack(ARGV, 4)
local key = prefix .. 'u:' .. user
local generation, last = numbers(key, known)
local displaced = {}
local registered = redis.call('HGET', key, id)
local holder
if registered then holder, place = read(registered) end
if not registered then
  if fresh == '1' then place = string.format('%d', last + 1) end
  if tonumber(place) > last then redis.call('HSET', key, '#p', place) end
  redis.call('HSET', key, id, node .. ' ' .. place .. ' 0')
  redis.call('SADD', prefix .. 'n:' .. node, user .. ' ' .. id)
  local excess = redis.call('HLEN', key) - 2 - tonumber(limit)
  if excess > 0 then
    local devices, fields = {}, redis.call('HGETALL', key)
    for i = 1, #fields, 2 do
      if string.sub(fields[i], 1, 1) ~= '#' then
        local at, its_place, away = read(fields[i + 1])
        local lives = tonumber(redis.call('ZSCORE', leases, at) or 0) > now
        table.insert(devices, {fields[i], at, its_place, away, lives and 1 or 0})
      end
    end
    table.sort(devices, function(one, other)
      if one[5] ~= other[5] then return one[5] < other[5] end
      if one[4] ~= other[4] then return one[4] > other[4] end
      if one[3] ~= other[3] then return tonumber(one[3]) < tonumber(other[3]) end
      return one[1] < other[1]
    end)
    for i = 1, excess do
      forget(key, user, devices[i][1], devices[i][2])
      table.insert(displaced, {devices[i][1], devices[i][2], devices[i][3], devices[i][4]})
    end
  end
elseif holder ~= node then
  redis.call('HSET', key, id, node .. ' ' .. place .. ' 0')
  redis.call('SREM', prefix .. 'n:' .. holder, user .. ' ' .. id)
  redis.call('SADD', prefix .. 'n:' .. node, user .. ' ' .. id)
end
generation = decide(key, user, generation, '1006', '')
if registered then tell_open(user, generation) end
return {generation, out, place, displaced}
"""
)
"""user, connection id, place, limit, known generation, fresh (0 or 1); replies generation, transitions, place and
the displaced devices."""

LEAVE = Script(
    _STEP
    + """
local user, id, known, code, reason = unpack(ARGV, 4)
local key = prefix .. 'u:' .. user
local generation = numbers(key, known)
local registered = redis.call('HGET', key, id)
if registered and read(registered) == node then forget(key, user, id, node) end
generation = decide(key, user, generation, code, reason)
if not registered then tell_open(user, generation) end
return {generation, out}
"""
)
"""user, connection id, known generation, code, reason; replies generation and transitions."""

MOVE = Script(
    _STEP
    + """
local user, id, origin = unpack(ARGV, 4)
local key = prefix .. 'u:' .. user
local registered = redis.call('HGET', key, id)
if not registered then return false end
local holder, place, away = read(registered)
if holder == origin then
  away = '0'
  redis.call('HSET', key, id, node .. ' ' .. place .. ' 0')
  redis.call('SREM', prefix .. 'n:' .. holder, user .. ' ' .. id)
  redis.call('SADD', prefix .. 'n:' .. node, user .. ' ' .. id)
elseif holder ~= node then
  return false
end
return {string.match(redis.call('HGET', key, '#g'), '^%d+'), place, away}
"""
)
"""user, connection id, the node that has had it; replies generation, place and away, or nothing."""

SET_AWAY = Script(
    _STEP
    + """
local user, id, away = unpack(ARGV, 4)
local key = prefix .. 'u:' .. user
local registered = redis.call('HGET', key, id)
if registered then
  local holder, place = read(registered)
  if holder == node then redis.call('HSET', key, id, node .. ' ' .. place .. ' ' .. away) end
end
return 1
"""
)
"""user, connection id, away (0 or 1)."""

CLAIM = Script(
    _STEP
    + """
local outbox, claims = prefix .. 'o:' .. node, prefix .. 'c:' .. node
for i = 4, #ARGV do
  local entry = redis.call('HGET', outbox, ARGV[i])
  if entry then
    redis.call('HDEL', outbox, ARGV[i])
    redis.call('HSET', claims, ARGV[i], entry)
    hand_over(ARGV[i], node, '')
    table.insert(out, ARGV[i])
  elseif redis.call('HEXISTS', claims, ARGV[i]) == 1 then
    table.insert(out, ARGV[i])
  end
end
redis.call('PEXPIRE', claims, 600000)
return out
"""
)
"""Entries of the outbox; replies those that are the node's to fire."""

SETTLE = Script(
    _STEP
    + """
local user, code, reason = unpack(ARGV, 4)
local key = prefix .. 'u:' .. user
redis.call('HDEL', prefix .. 'o:' .. node, user .. ' 0')
return {decide(key, user, numbers(key, 0), code, reason), out}
"""
)
"""user, code, reason; replies generation and transitions."""

REAP = Script(
    _STEP
    + """
if tonumber(redis.call('ZSCORE', leases, node) or 0) <= now then
  return redis.error_reply('FENCED the lease of the node has run out')
end
local left = tonumber(ARGV[4])
local outbox = prefix .. 'o:' .. node
for _, dead in ipairs(redis.call('ZRANGEBYSCORE', leases, '-inf', now)) do
  -- From now on its own steps are refused.
  redis.call('HSET', nodes, dead, '- reaped')
  local its_outbox = prefix .. 'o:' .. dead
  while left > 0 and redis.call('EXISTS', its_outbox) == 1 do
    local entries = redis.call('HSCAN', its_outbox, 0, 'COUNT', left)[2]
    for i = 1, #entries, 2 do
      redis.call('HSET', outbox, entries[i], entries[i + 1])
      redis.call('HDEL', its_outbox, entries[i])
      hand_over(entries[i], dead, ' ' .. node)
      local user, generation = string.match(entries[i], '^(%S+) (%d+)$')
      if generation ~= '0' then tell(user, tonumber(generation)) end
      left = left - 1
    end
  end
  if left > 0 then
    local taken = redis.call('SPOP', prefix .. 'n:' .. dead, left)
    for _, device in ipairs(taken) do
      local user, id = string.match(device, '^(%S+) (%S+)$')
      local key = prefix .. 'u:' .. user
      local registered = redis.call('HGET', key, id)
      if registered and read(registered) == dead then
        redis.call('HDEL', key, id)
        decide(key, user, numbers(key, 0), '1006', '')
      end
    end
    left = left - #taken
  end
  if left <= 0 then return {1, out} end
  redis.call('ZREM', leases, dead)
  redis.call('ZADD', prefix .. 'reaped', now + 600000, dead)
end
return {0, out}
"""
)
"""How many devices and transitions at most, about; replies whether there may be more, and transitions."""

RENEW = Script(
    _HEAD
    + """
local fresh, ttl, known, identity = unpack(ARGV, 4, 7)
local register = redis.call('GET', prefix .. 'register')
if not register then
  register = identity
  redis.call('SET', prefix .. 'register', register)
end
local record = redis.call('HGET', nodes, node)
local current, state = fresh, 'new'
if record then
  current, state = string.match(record, '^(%S+) (%S+)$')
  if current ~= epoch or current == '-' then current = fresh end
end
redis.call('HSET', nodes, node, current .. ' ' .. state)
redis.call('ZADD', leases, now + tonumber(ttl), node)
redis.call('ZREM', prefix .. 'reaped', node)
if known ~= '' and known ~= register and state ~= 'kept' then
  local names = {node, unpack(ARGV, 8)}
  for _, name in ipairs(names) do
    local other = redis.call('HGET', nodes, name)
    if not other or not string.match(other, ' kept$') then
      redis.call('ZADD', awaited, 'NX', now + tonumber(ttl), name)
    end
  end
end
for _, gone in ipairs(redis.call('ZRANGEBYSCORE', prefix .. 'reaped', '-inf', now, 'LIMIT', 0, 10)) do
  redis.call('HDEL', nodes, gone)
  redis.call('ZREM', prefix .. 'reaped', gone)
end
return {register, current, state, is_recovering() and 1 or 0, redis.call('EXISTS', prefix .. 'o:' .. node)}
"""
)
"""A new epoch, milliseconds, the register that the node knew, an identity for a new one, and the peers that the node
knew; replies the register's identity, the epoch of the lease, its state, whether the register is recovering, and
whether the outbox holds anything."""

REGISTERED = Script(
    _STEP
    + """
redis.call('HSET', nodes, node, epoch .. ' kept')
redis.call('ZREM', awaited, node)
return 1
"""
)
"""Nothing."""

RESIGN = Script(
    _HEAD
    + """
return redis.call('ZADD', leases, 'XX', 0, node)
"""
)
"""Nothing."""

NODES = Script(
    _HEAD
    + """
return redis.call('ZRANGEBYSCORE', leases, '(' .. now, '+inf')
"""
)
"""Replies the nodes whose lease is in force."""
