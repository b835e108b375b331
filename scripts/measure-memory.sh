#!/usr/bin/env bash
# Runs a command and prints, when it ends, the time and the peaks of its memory: its own pages (RssAnon), pages of mapped
# files (RssFile), and the whole resident set (VmHWM, which the system counts). Linux only; polls ten times a second.
# Usage: scripts/measure-memory.sh COMMAND [ARGUMENTS...]
set -euo pipefail
"$@" &
process=$!
start=$EPOCHREALTIME
anonymous=0 file=0 resident=0
while status=$(cat "/proc/$process/status" 2> /dev/null) && grep -q '^RssAnon' <<< "$status"; do
    while read -r name kilobytes _; do
        case $name in
            RssAnon:) ((anonymous = kilobytes > anonymous ? kilobytes : anonymous)) || true ;;
            RssFile:) ((file = kilobytes > file ? kilobytes : file)) || true ;;
            VmHWM:) resident=$kilobytes ;;
        esac
    done <<< "$status"
    sleep 0.1
done
end=$EPOCHREALTIME
code=0
wait "$process" || code=$?
awk -v a="$anonymous" -v f="$file" -v r="$resident" -v s="$start" -v e="$end" 'BEGIN {
    printf "%.1f s; peaks: RssAnon %.0f MB, RssFile %.0f MB, VmHWM %.0f MB\n", e - s, a * 1.024e-3, f * 1.024e-3, r * 1.024e-3 }' >&2
exit "$code"
