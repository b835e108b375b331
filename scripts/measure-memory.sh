#!/usr/bin/env bash
# Runs a command and prints its peak memory: its own pages (RssAnon), and all resident pages with those of mapped
# files (VmHWM). Linux. For instance, as in benches/README.md:
#   scripts/measure-memory.sh target/release/duogpt prune --model random-1.1b \
#       --tokens random-1.1b/tokens.safetensors --output pruned
set -euo pipefail
start=$SECONDS
"$@" &
pid=$!
anonymous=0
resident=0
while kill -0 "$pid" 2>/dev/null; do
    read -r own high < <(awk '/^RssAnon/ { own = $2 } /^VmHWM/ { high = $2 } END { print own + 0, high + 0 }' \
        "/proc/$pid/status" 2>/dev/null || echo 0 0)
    ((own > anonymous)) && anonymous=$own
    ((high > resident)) && resident=$high
    sleep 0.05
done
status=0
wait "$pid" || status=$?
printf 'peak RssAnon %d MiB, peak resident %d MiB, %d s, exit code %d\n' \
    $((anonymous / 1024)) $((resident / 1024)) $((SECONDS - start)) "$status" >&2
exit "$status"
