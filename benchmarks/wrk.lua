-- Pushes of AdamW gradients, each with an Idempotency-Key of its own.
--   wrk … -s wrk.lua URL -- BODY_FILE SESSION_ID …
-- The thread that wrk starts as number i pushes to session i, and begins again at the first when there are fewer.

local started = 0

function setup(thread)
  thread:set("number", started)
  started = started + 1
end

function init(arguments)
  local file = assert(io.open(arguments[1], "rb"))
  local body = file:read("*a")
  file:close()
  local session = arguments[2 + number % (#arguments - 1)]
  local before = {
    "POST /v1/sessions/" .. session .. "/steps HTTP/1.1",
    "Host: " .. wrk.host,
    "Content-Type: application/vnd.safetensors",
    "Content-Length: " .. #body,
    "Idempotency-Key: " .. number .. "-",
  }
  head, rest, count = table.concat(before, "\r\n"), "\r\n\r\n" .. body, 0
end

function request()
  count = count + 1
  return head .. count .. rest
end

function done(summary, latency)
  local errors = summary.errors
  local broken = errors.connect + errors.read + errors.write + errors.timeout
  io.write(string.format(
    '{"acknowledged": %d, "refused": %d, "broken": %d, "seconds": %.6f, "median_s": %.6f, "p99_s": %.6f}\n',
    summary.requests - errors.status, errors.status, broken, summary.duration / 1e6,
    latency:percentile(50) / 1e6, latency:percentile(99) / 1e6))
end
