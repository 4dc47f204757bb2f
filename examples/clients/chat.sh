#!/bin/sh
# The same as chat.py, with nothing but curl. -N: print what comes as it comes.
set -eu
url=${ROSTER_URL:-http://127.0.0.1:8080/v1} key=${ROSTER_KEY:-no-key} model=${MODEL:-atlas} adapter=${ADAPTER:-pirate}

curl -fsS "$url/models" -H "Authorization: Bearer $key"
echo

question='[{"role": "user", "content": "What is the capital of France?"}]'
curl -fsS "$url/chat/completions" -H "Authorization: Bearer $key" -H 'Content-Type: application/json' \
    -d "{\"model\": \"$model\", \"messages\": $question, \"temperature\": 0}"
echo

curl -fsSN "$url/chat/completions" -H "Authorization: Bearer $key" -H 'Content-Type: application/json' \
    -d "{\"model\": \"$model\", \"adapters\": \"$adapter\", \"messages\": $question, \"temperature\": 0, \"stream\": true}"
