#!/usr/bin/env bash
# What a newcomer sees first: an agent, a real model, real answers, and nothing left running. Called by `make demo`.
set -euo pipefail
cd "$(dirname "$0")/.."
rbee=bin/rbee
data=$(mktemp -d "${TMPDIR:-/tmp}/rbee-demo.XXXXXX")
agent=
stop() {
  local code=$?
  if [ -n "$agent" ] && kill -0 "$agent" 2>/dev/null; then
    kill -TERM "$agent"
    wait "$agent" || true
  fi
  if [ $code -ne 0 ] && [ -f "$data/agent.log" ]; then
    echo "the end of the agent's log:" >&2
    tail -n 20 "$data/agent.log" >&2
  fi
  rm -rf "$data"
  exit $code
}
trap stop EXIT
say() { printf '\n\033[1m$ %s\033[0m\n' "$*" | if [ -n "${NO_COLOR:-}" ] || [ ! -t 1 ]; then sed 's/\x1b\[[0-9]*m//g'; else cat; fi; }
run() {
  local shown=rbee word
  for word in "$@"; do
    case $word in *[!a-zA-Z0-9:/._-]*) word="\"$word\"" ;; esac
    shown="$shown $word"
  done
  say "$shown"
  "$rbee" "$@"
}

say "rbee agent -dev &"
"$rbee" agent -dev -data-dir "$data/agent" -http-port 0 >"$data/agent.log" 2>&1 &
agent=$!
for _ in $(seq 200); do
  [ -s "$data/agent/agent.json" ] && break
  kill -0 "$agent" 2>/dev/null || { echo "the agent did not start" >&2; exit 1; }
  sleep 0.05
done
RBEE_ADDR=$(sed -n 's/.*"http_address": *"\([^"]*\)".*/\1/p' "$data/agent/agent.json")
export RBEE_ADDR
echo "ready on $RBEE_ADDR, data in a temporary folder"

run infer --model rbee-tiny --temperature 0 --prompt "Tell me a short story about a bee named Pip."
run infer --model rbee-tiny --temperature 0 --prompt "What is a queen?"
run infer --model rbee-tiny --temperature 0 --prompt "What is 7 + 5?"
run status
run ps
run worker process list --hive localhost

say "kill %1"
kill -TERM "$agent"
wait "$agent"
agent=
echo "the agent and its workers have stopped"
