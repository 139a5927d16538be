"""The steps of the store on Redis and Valkey, as Lua scripts; see `wse.brokers.redis.store` for the keys.

Every script takes the prefix of all keys, and the box, then its own arguments.
"""

from __future__ import annotations

from wse.brokers.redis.scripts import Script

_HEAD = """
local prefix, box = ARGV[1], ARGV[2]
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local stream, hash = prefix .. 'ib:' .. box, prefix .. 'ih:' .. box
local function whole(number)
  return string.format('%d', number)
end
-- An entry is {id, {'a', at, 'x', expires, 'd', data}}.
local function number_of(entry)
  return tonumber(string.match(entry[1], '^%d+'))
end
local function last_of()
  return tonumber(redis.call('HGET', hash, '#n') or 0)
end
local function epoch_of(begin)
  local epoch = redis.call('HGET', hash, '#e')
  if not epoch and begin then
    epoch = whole(now) .. string.format('%06d', math.random(0, 999999))
    redis.call('HSET', hash, '#e', epoch)
  end
  return epoch or ''
end
local function first_of(last)
  local from = '-'
  while true do
    local entries = redis.call('XRANGE', stream, from, '+', 'COUNT', 16)
    if #entries == 0 then return last + 1 end
    for _, entry in ipairs(entries) do
      if tonumber(entry[2][4]) > now then return number_of(entry) end
    end
    from = '(' .. entries[#entries][1]
  end
end
"""

KEEP = Script(
    _HEAD
    + """
local data, messages, bytes, ttl, own, key = unpack(ARGV, 3)
messages, bytes, ttl = tonumber(messages), tonumber(bytes), tonumber(ttl)
local known = prefix .. 'ik:' .. box .. ':' .. key
if key ~= '' then
  local found = redis.call('GET', known)
  if found then
    local n, at = string.match(found, '^(%d+) (%d+)$')
    return {tonumber(n), at, 0, epoch_of(true)}
  end
end
local n, size = last_of(), tonumber(redis.call('HGET', hash, '#b') or 0)
local newest = redis.call('XREVRANGE', stream, '+', '-', 'COUNT', 1)[1]
if not newest then size = 0
elseif number_of(newest) > n then n = number_of(newest) end  -- the engine has evicted the hash
n = n + 1
redis.call('XADD', stream, whole(n) .. '-0', 'a', whole(now), 'x', whole(now + tonumber(own)), 'd', data)
size = size + #data
local count = redis.call('XLEN', stream)
while count > 1 do
  local oldest = redis.call('XRANGE', stream, '-', '+', 'COUNT', 1)[1]
  if count <= messages and size <= bytes and tonumber(oldest[2][4]) > now then break end
  redis.call('XDEL', stream, oldest[1])
  size, count = size - #oldest[2][6], count - 1
end
redis.call('HSET', hash, '#n', whole(n), '#b', whole(size))
redis.call('PEXPIRE', stream, whole(ttl))
redis.call('PEXPIRE', hash, whole(2 * ttl))
if key ~= '' then redis.call('SET', known, whole(n) .. ' ' .. whole(now), 'PX', 300000) end
return {n, whole(now), 1, epoch_of(true)}
"""
)
"""data, messages, bytes, milliseconds of the box and of this message, key; replies number, time, whether it is new, and
the epoch."""

READ = Script(
    _HEAD
    + """
local after, count = ARGV[3], tonumber(ARGV[4])
local last = last_of()
local out = {}
local from = '(' .. after .. '-18446744073709551615'
while #out < count do
  local entries = redis.call('XRANGE', stream, from, '+', 'COUNT', count)
  if #entries == 0 then break end
  for _, entry in ipairs(entries) do
    if tonumber(entry[2][4]) > now and #out < count then
      table.insert(out, {number_of(entry), entry[2][2], entry[2][6]})
    end
  end
  from = '(' .. entries[#entries][1]
end
return {first_of(last), last, epoch_of(false), out}
"""
)
"""after, count; replies first, last, the epoch, and number, time and data of each message."""

CURSOR = Script(
    _HEAD
    + """
local device, ttl, devices, from_now = unpack(ARGV, 3)
local last = last_of()
local field = 'c:' .. device
local found = redis.call('HGET', hash, field)
local after = tonumber(found and string.match(found, '^%d+'))
if not after or after > last then after = from_now == '1' and last or 0 end
local used = redis.call('HINCRBY', hash, '#u', 1)
redis.call('HSET', hash, field, whole(after) .. ' ' .. whole(used))
local left = redis.call('PTTL', hash)
if left < 2 * tonumber(ttl) then redis.call('PEXPIRE', hash, whole(2 * tonumber(ttl))) end
if not found then
  local cursors, fields = {}, redis.call('HGETALL', hash)
  for i = 1, #fields, 2 do
    if string.sub(fields[i], 1, 2) == 'c:' then
      table.insert(cursors, {fields[i], tonumber(string.match(fields[i + 1], '%d+$'))})
    end
  end
  table.sort(cursors, function(one, other) return one[2] < other[2] end)
  for i = 1, #cursors - tonumber(devices) do redis.call('HDEL', hash, cursors[i][1]) end
end
return {after, first_of(last), last, epoch_of(true)}
"""
)
"""device, milliseconds of the box, devices, from_now (0 or 1); replies after, first, last and the epoch."""

SEEN = Script(
    _HEAD
    + """
local field, number = 'c:' .. ARGV[3], tonumber(ARGV[4])
local found = redis.call('HGET', hash, field)
if not found then return 0 end
local last = last_of()
if number > last then number = last end
local after = tonumber(string.match(found, '^%d+'))
if number < after then number = after end
redis.call('HSET', hash, field, whole(number) .. ' ' .. whole(redis.call('HINCRBY', hash, '#u', 1)))
return 1
"""
)
"""device, number; replies whether the device is known."""
