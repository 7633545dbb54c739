"""What Redis does at once, undisturbed by others: commit, read what is committed, delete."""

from __future__ import annotations

COMMITTED, STALE, GONE, INCOMPLETE = b"committed", b"stale", b"gone", b"incomplete"

COMMIT = """
-- KEYS: head, remembered, records, deleted; the chunks written; those that are in no buffer any more.
-- ARGV: the commit before, this one, its number, its step, how many chunks were written, body, standing, remembered,
-- record (the first two of these may be empty), how many remembered and records are kept.
-- Returns how it ended, and the step that is committed then.
local head, remembered, records = KEYS[1], KEYS[2], KEYS[3]
local written = tonumber(ARGV[5])
local now = redis.call('HMGET', head, 'commit', 'step')
local commit, step = now[1] or '', tonumber(now[2] or 0)
if commit == ARGV[2] then return {'committed', step} end  -- an attempt whose reply was lost
if commit ~= ARGV[1] then return {commit == '' and 'gone' or 'stale', step} end
for i = 5, 4 + written do
  if redis.call('EXISTS', KEYS[i]) == 0 then return {'incomplete', step} end
end
redis.call('HSET', head, 'commit', ARGV[2], 'seq', ARGV[3], 'step', ARGV[4], 'body', ARGV[6])
if ARGV[7] ~= '' then redis.call('HSET', head, 'standing', ARGV[7], 'standing_seq', ARGV[3]) end
if ARGV[8] ~= '' then
  redis.call('RPUSH', remembered, ARGV[8])
  redis.call('LTRIM', remembered, -tonumber(ARGV[10]), -1)
end
redis.call('RPUSH', records, ARGV[9])
redis.call('LTRIM', records, -tonumber(ARGV[10]), -1)
for i = 5, 4 + written do redis.call('PERSIST', KEYS[i]) end
for i = 5 + written, #KEYS do redis.call('UNLINK', KEYS[i]) end
return {'committed', tonumber(ARGV[4])}
"""

DISCARD = """
-- KEYS: chunks that were written for a commit that was not taken; one that was after all does not expire, and stays.
for i = 1, #KEYS do
  if redis.call('TTL', KEYS[i]) >= 0 then redis.call('UNLINK', KEYS[i]) end
end
"""

READ = """
-- KEYS: head, remembered, records, deleted. ARGV: the number of the commit that the reader has; how many are kept.
-- Returns whether it was deleted; or 0, body, standing, the number of the commit that left it so, what has been
-- remembered and recorded since, and the record of the reader's own commit.
local head = redis.call('HMGET', KEYS[1], 'seq', 'body', 'standing', 'standing_seq')
if not head[1] then return {redis.call('EXISTS', KEYS[4])} end
local behind = tonumber(head[1]) - tonumber(ARGV[1])
local remembered, records, own = {}, {}, false
if behind > 0 then
  local first = -math.min(behind, tonumber(ARGV[2]))
  remembered, records = redis.call('LRANGE', KEYS[2], first, -1), redis.call('LRANGE', KEYS[3], first, -1)
end
if behind >= 0 then own = redis.call('LINDEX', KEYS[3], -behind - 1) end
return {0, head[2], head[3] or '', tonumber(head[4] or 0), remembered, records, own}
"""

DELETE = """
-- KEYS: head, remembered, records, deleted, and all chunks. ARGV: the commit that they are of, for how many seconds
-- the deletion is told of. Returns 1, or 0 if the session has moved.
if (redis.call('HGET', KEYS[1], 'commit') or '') ~= ARGV[1] then return 0 end
for i = 1, #KEYS do redis.call('UNLINK', KEYS[i]) end
if ARGV[1] ~= '' then redis.call('SET', KEYS[4], '1', 'EX', ARGV[2]) end
return 1
"""
