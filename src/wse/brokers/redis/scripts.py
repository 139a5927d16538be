"""The steps of the register on Redis and Valkey; `wse.brokers.redis.broker` describes the keys.

Every script takes the prefix of all keys, then its own arguments. None declares its keys, which only Redis Cluster
needs.
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


_FORGET = """
local function forget(prefix, user, id, node)
  local devices = prefix .. 'u:' .. user
  redis.call('HDEL', devices, id)
  redis.call('SREM', prefix .. 'n:' .. node, user .. ' ' .. id)
  if redis.call('EXISTS', devices) == 1 then return 0 end
  redis.call('SREM', prefix .. 'users', user)
  return 1
end
local function read(value)
  return string.match(value, '^(%S+) (%S+) ?(%S*)$')
end
"""
"""`forget` removes a device and returns whether it was the user's last; `read` splits a value into its words."""

_NOW = """
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
"""

JOIN = Script(
    _FORGET
    + """
local prefix, user, id, node, since, limit, fresh = unpack(ARGV)
local devices = prefix .. 'u:' .. user
local registered = redis.call('HGET', devices, id)
if registered then
  local _, there_since, was_first = read(registered)
  return {there_since, tonumber(was_first), 1}
end

local present, newest = {}, nil
local fields = redis.call('HGETALL', devices)
for i = 1, #fields, 2 do
  local other_node, other_since = read(fields[i + 1])
  table.insert(present, {fields[i], other_node, other_since})
  newest = math.max(newest or 0, tonumber(other_since))
end
local first = #present == 0 and 1 or 0
if fresh == '1' and newest and tonumber(since) < newest + 1e-6 then
  since = string.format('%.17g', newest + 1e-6)
end

redis.call('HSET', devices, id, node .. ' ' .. since .. ' ' .. first)
redis.call('SADD', prefix .. 'users', user)
redis.call('SADD', prefix .. 'n:' .. node, user .. ' ' .. id)
-- Without a lease, a node must at least be found by REAP.
redis.call('ZADD', prefix .. 'leases', 'NX', 0, node)

table.insert(present, {id, node, since})
table.sort(present, function(one, other)
  local a, b = tonumber(one[3]), tonumber(other[3])
  if a == b then return one[1] < other[1] end
  return a < b
end)
local reply = {since, first, 0}
for i = 1, #present - tonumber(limit) do
  forget(prefix, user, present[i][1], present[i][2])
  table.insert(reply, present[i])
end
return reply
"""
)
"""user, connection id, node, since, limit, fresh (0 or 1); replies since, first, again, and the displaced devices."""

LEAVE = Script(
    _FORGET
    + """
local prefix, user, id, repeated, remembered = unpack(ARGV)
local was_last = prefix .. 'l:' .. id
local registered = redis.call('HGET', prefix .. 'u:' .. user, id)
if not registered then return repeated == '1' and redis.call('EXISTS', was_last) or 0 end
local node = read(registered)
local last = forget(prefix, user, id, node)
if last == 1 then redis.call('SET', was_last, '', 'EX', remembered) end
return last
"""
)
"""user, connection id, repeated (0 or 1), seconds to remember that it was the last; replies whether it was the last."""

RENEW = Script(
    _NOW
    + """
local prefix, node, ttl, epoch = unpack(ARGV)
local leases, epochs = prefix .. 'leases', prefix .. 'epochs'
local till = redis.call('ZSCORE', leases, node)
redis.call('ZADD', leases, now + tonumber(ttl), node)
local known = till and tonumber(till) > now and redis.call('HGET', epochs, node)
if known then return known end
redis.call('HSET', epochs, node, epoch)
return epoch
"""
)
"""node, milliseconds, a new epoch; replies the epoch of the lease, which is the new one unless it was in force."""

RESIGN = Script(
    """
local prefix, node = unpack(ARGV)
return redis.call('ZADD', prefix .. 'leases', 'XX', 0, node)
"""
)
"""node."""

NODES = Script(
    _NOW
    + """
return redis.call('ZRANGEBYSCORE', ARGV[1] .. 'leases', '(' .. now, '+inf')
"""
)
"""Replies the nodes whose lease is in force."""

REAP = Script(
    _FORGET
    + _NOW
    + """
local prefix, left = ARGV[1], tonumber(ARGV[2])
local leases = prefix .. 'leases'
local reply = {0}
for _, node in ipairs(redis.call('ZRANGEBYSCORE', leases, '-inf', now)) do
  local taken = redis.call('SPOP', prefix .. 'n:' .. node, left)
  for _, device in ipairs(taken) do
    local user, id = read(device)
    local registered = redis.call('HGET', prefix .. 'u:' .. user, id)
    if registered then
      local _, since = read(registered)
      table.insert(reply, {forget(prefix, user, id, node), user, id, node, since})
    end
  end
  left = left - #taken
  if left == 0 then
    reply[1] = 1
    return reply
  end
  redis.call('ZREM', leases, node)
  redis.call('HDEL', prefix .. 'epochs', node)
end
return reply
"""
)
"""The largest number of devices; replies whether there may be more, and for each device whether it was the last."""
