#!/bin/sh
# A session typed by hand: each command as one would type it, and what the server answers.
# Usage: examples/curl.sh [http://127.0.0.1:8000]
set -eu
URL=${1:-http://127.0.0.1:8000}
JSON='Content-Type: application/json'

type_in() { # the command comes on standard input, so that its quotes stay as they are
    command=$(cat)
    answer=$(eval "$command")
    printf '$ %s\n%s\n\n' "$command" "$answer"
}

echo "# Two weights, and SGD to step them."
printf "$ URL=%s\n$ JSON='%s'\n" "$URL" "$JSON"
type_in <<'COMMAND'
curl -sS $URL/v1/sessions -H "$JSON" -d '{"optimizer": {"name": "sgd", "lr": 0.1}, "params": {"w": [1.0, 2.0]}}'
COMMAND

SESSION=$URL/v1/sessions/$(printf '%s' "$answer" | sed 's/.*"id":"\([^"]*\)".*/\1/')
echo "# Push a gradient for the weights of step 0; the reply has the receipt and the new weights."
printf '$ SESSION=%s\n' "$SESSION"
type_in <<'COMMAND'
curl -sS $SESSION/steps -H "$JSON" -H 'If-Match: "0"' -d '{"grads": {"w": [0.5, -0.5]}, "loss": 0.7}'
COMMAND

echo "# Once more: the session has left step 0, so nothing happens."
type_in <<'COMMAND'
curl -sS $SESSION/steps -H "$JSON" -H 'If-Match: "0"' -d '{"grads": {"w": [0.5, -0.5]}, "loss": 0.7}'
COMMAND

echo "# Or give the push a key of its own, and send it as often as you like: it happens once."
for _ in 1 2; do
    type_in <<'COMMAND'
curl -sS "$SESSION/steps?pull=none" -H "$JSON" -H 'Idempotency-Key: k2' -d '{"grads": {"w": [0.3, 0.1]}, "loss": 0.6}'
COMMAND
done

echo "# The weights as they now stand."
type_in <<'COMMAND'
curl -sS $SESSION/params -H 'Accept: application/json'
COMMAND

echo "# What is on record after step 1."
type_in <<'COMMAND'
curl -sS "$SESSION/steps?after=1"
COMMAND

echo "# Remove the session, its weights and its history."
type_in <<'COMMAND'
curl -sS -X DELETE $SESSION -w '%{http_code}'
COMMAND
