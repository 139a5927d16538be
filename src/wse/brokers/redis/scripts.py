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
local recovering
local function is_recovering()
  if recovering == nil then recovering = redis.call('ZCOUNT', awaited, '(' .. now, '+inf') > 0 end
  return recovering
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
-- What is known of a user: the numbers, and the generations that stand in the outbox of `owner`.
local function user_of(name)
  local user = {name = name, key = prefix .. 'u:' .. name, open = {}}
  local found = redis.call('HMGET', user.key, '#g', '#p')
  user.is_new = not found[1]
  user.place = tonumber(found[2] or 0)
  local words = {}
  for word in string.gmatch(found[1] or '0', '%S+') do table.insert(words, word) end
  user.generation = tonumber(words[1])
  if #words == 2 then user.open = {user.generation} end
  for i = 2, #words - 1 do table.insert(user.open, tonumber(words[i])) end
  if #words > 1 then user.owner = words[#words] end
  return user
end
local function entry_of(user, generation)
  return user.name .. ' ' .. string.format('%d', generation)
end
local function save(user)
  local words = {string.format('%d', user.generation)}
  local open = user.open
  if #open > 1 or open[1] ~= user.generation then
    for _, one in ipairs(open) do table.insert(words, string.format('%d', one)) end
  end
  if #open > 0 then table.insert(words, user.owner) end
  redis.call('HSET', user.key, '#g', table.concat(words, ' '))
end
-- The user, with the generation raised to what a node remembers: that has been announced, and what was open has not.
local function user_at(name, known)
  local user = user_of(name)
  local is_behind = user.generation < tonumber(known)
  if is_behind then
    for _, one in ipairs(user.open) do redis.call('HDEL', prefix .. 'o:' .. user.owner, entry_of(user, one)) end
    user.generation, user.open, user.owner = tonumber(known), {}, nil
  end
  if user.is_new then redis.call('HSET', user.key, '#p', string.format('%d', user.place)) end
  if is_behind or user.is_new then save(user) end
  return user
end
-- A device is held by this node from now on, and by no other.
local function hold(user, id, place, holder)
  redis.call('HSET', user.key, id, node .. ' ' .. place .. ' 0')
  if holder then redis.call('SREM', prefix .. 'n:' .. holder, user.name .. ' ' .. id) end
  redis.call('SADD', prefix .. 'n:' .. node, user.name .. ' ' .. id)
end
local function forget(user, id, holder)
  redis.call('HDEL', user.key, id)
  redis.call('SREM', prefix .. 'n:' .. holder, user.name .. ' ' .. id)
end
local told = {}
local function tell(user, generation, entry)
  local field = entry_of(user, generation)
  if not told[field] then
    told[field] = true
    local code, reason = string.match(entry, '^(%d+) (.*)$')
    table.insert(out, {user.name, generation, code, reason})
  end
end
-- The answers that told the node of earlier transitions may have been lost.
local function tell_open(user)
  if user.owner ~= node then return end
  for _, generation in ipairs(user.open) do
    local entry = redis.call('HGET', prefix .. 'o:' .. node, entry_of(user, generation))
    if entry then tell(user, generation, entry) end
  end
end
-- The rule: what is announced follows what is there, by a transition in the outbox of this node.
local function decide(user, code, reason)
  local present = redis.call('HLEN', user.key) > 2
  if present then
    redis.call('SADD', prefix .. 'users', user.name)
    redis.call('PERSIST', user.key)
  else
    redis.call('SREM', prefix .. 'users', user.name)
    redis.call('PEXPIRE', user.key, 600000)
  end
  if present == (user.generation % 2 == 1) then return end
  -- What another node has not claimed yet it would fire after this one.
  while #user.open > 0 and user.owner ~= node do
    local last = table.remove(user.open)
    if redis.call('HDEL', prefix .. 'o:' .. user.owner, entry_of(user, last)) == 1 then
      user.generation = user.generation + 1
      save(user)
      return
    end
  end
  local outbox = prefix .. 'o:' .. node
  if is_recovering() then
    redis.call('HSET', outbox, user.name .. ' 0', code .. ' ' .. reason)
    return
  end
  user.generation = user.generation + 1
  user.owner = node
  tell_open(user)
  table.insert(user.open, user.generation)
  save(user)
  local entry = code .. ' ' .. reason
  redis.call('HSET', outbox, entry_of(user, user.generation), entry)
  tell(user, user.generation, entry)
end
"""
)
"""What every step begins with: it is refused if the lease is not in force."""

JOIN = Script(
    _STEP
    + """
local name, id, place, limit, known, fresh = unpack(ARGV, 4)
local user = user_at(name, known)
local displaced = {}
local registered = redis.call('HGET', user.key, id)
local holder, away
if registered then holder, place, away = read(registered) end
if not registered then
  if fresh == '1' then place = string.format('%d', user.place + 1) end
  if tonumber(place) > user.place then redis.call('HSET', user.key, '#p', place) end
  hold(user, id, place)
  local excess = redis.call('HLEN', user.key) - 2 - tonumber(limit)
  if excess > 0 then
    local devices, fields = {}, redis.call('HGETALL', user.key)
    for i = 1, #fields, 2 do
      if string.sub(fields[i], 1, 1) ~= '#' then
        local at, its_place, away = read(fields[i + 1])
        local lives = tonumber(redis.call('ZSCORE', leases, at) or 0) > now
        table.insert(devices, {fields[i], at, its_place, away, lives and 1 or 0})
      end
    end
    table.sort(devices, function(one, other)
      if one[5] ~= other[5] then return one[5] < other[5] end
      if one[4] ~= other[4] then return (one[4] + 2) % 3 < (other[4] + 2) % 3 end
      if one[3] ~= other[3] then return tonumber(one[3]) < tonumber(other[3]) end
      return one[1] < other[1]
    end)
    for i = 1, excess do
      forget(user, devices[i][1], devices[i][2])
      table.insert(displaced, {devices[i][1], devices[i][2], devices[i][3], devices[i][4]})
    end
  end
elseif holder ~= node then
  hold(user, id, place, holder)
  away = '0'
end
decide(user, '1006', '')
if registered then tell_open(user) end
return {user.generation, out, place, away or '0', displaced}
"""
)
"""user, connection id, place, limit, known generation, fresh (0 or 1); replies generation, transitions, place, away
and the displaced devices."""

LEAVE = Script(
    _STEP
    + """
local name, id, known, code, reason = unpack(ARGV, 4)
local user = user_at(name, known)
local registered = redis.call('HGET', user.key, id)
if registered and read(registered) == node then forget(user, id, node) end
decide(user, code, reason)
if not registered then tell_open(user) end
return {user.generation, out}
"""
)
"""user, connection id, known generation, code, reason; replies generation and transitions."""

MOVE = Script(
    _STEP
    + """
local name, id, origin = unpack(ARGV, 4)
local user = user_of(name)
local registered = redis.call('HGET', user.key, id)
if not registered then return false end
local holder, place, away = read(registered)
if holder == origin then
  away = '0'
  hold(user, id, place, holder)
elseif holder ~= node then
  return false
end
return {user.generation, place, away}
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
"""user, connection id, away (a number of `Away`)."""

CLAIM = Script(
    _STEP
    + """
local outbox, claims = prefix .. 'o:' .. node, prefix .. 'c:' .. node
local function close(entry)
  local name, generation = string.match(entry, '^(%S+) (%d+)$')
  local user = user_of(name)
  for i, one in ipairs(user.open) do
    if one == tonumber(generation) then
      table.remove(user.open, i)
      save(user)
      return
    end
  end
end
for i = 4, #ARGV do
  local entry = redis.call('HGET', outbox, ARGV[i])
  if entry then
    redis.call('HDEL', outbox, ARGV[i])
    redis.call('HSET', claims, ARGV[i], entry)
    close(ARGV[i])
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
local name, code, reason = unpack(ARGV, 4)
redis.call('HDEL', prefix .. 'o:' .. node, name .. ' 0')
local user = user_at(name, 0)
decide(user, code, reason)
return {user.generation, out}
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
local function inherit(its_outbox, field)
  local entry = redis.call('HGET', its_outbox, field)
  if entry then
    redis.call('HDEL', its_outbox, field)
    redis.call('HSET', outbox, field, entry)
    left = left - 1
  end
  return entry
end
for _, dead in ipairs(redis.call('ZRANGEBYSCORE', leases, '-inf', now)) do
  -- From now on its own steps are refused.
  redis.call('HSET', nodes, dead, '- reaped')
  local its_outbox = prefix .. 'o:' .. dead
  while left > 0 and redis.call('EXISTS', its_outbox) == 1 do
    local entries = redis.call('HSCAN', its_outbox, 0, 'COUNT', left)[2]
    for i = 1, #entries, 2 do
      local name, generation = string.match(entries[i], '^(%S+) (%d+)$')
      local user = user_of(name)
      if user.owner == dead then  -- what is open of a user stands in one outbox
        user.owner = node
        save(user)
        for _, one in ipairs(user.open) do
          local entry = inherit(its_outbox, entry_of(user, one))
          if entry then tell(user, one, entry) end
        end
      end
      if inherit(its_outbox, entries[i]) and generation ~= '0' then tell(user, tonumber(generation), entries[i + 1]) end
    end
  end
  if left > 0 then
    local taken = redis.call('SPOP', prefix .. 'n:' .. dead, left)
    for _, device in ipairs(taken) do
      local name, id = string.match(device, '^(%S+) (%S+)$')
      local key = prefix .. 'u:' .. name
      local registered = redis.call('HGET', key, id)
      if registered and read(registered) == dead then
        redis.call('HDEL', key, id)
        decide(user_at(name, 0), '1006', '')
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
