#!/bin/sh
# All that only a GPU can show, in at most 25 minutes: results go to benchmarks/results/gpu. A part that has begun when
# the minutes are over is stopped, and keeps what it has written; the parts after it are named and left out, and the
# script ends with status 1. `loop`, `plan` and `ddp` were only run on a CPU, with TINY=1, and so was the script as a
# whole; the other parts were run on an H100, one by one.
#
#   benchmarks/gpu.sh [SOURCE [FOLDER]]      # parquet:cifar10.parquet, benchmarks/results/gpu
#   TINY=1 benchmarks/gpu.sh                 # small settings on a CPU, results elsewhere: does it run?
#   MINUTES=40 benchmarks/gpu.sh             # another limit
set -eu
here=$(dirname "$0")
source=${1:-parquet:cifar10.parquet}
out=${2:-}
end=$(($(date +%s) + ${MINUTES:-25} * 60))
status=0

part() {
    left=$((end - $(date +%s)))
    if [ "$left" -le 0 ]; then
        echo "left out, the minutes are over: $*" >&2
        status=1
        return
    fi
    found=0
    timeout --kill-after=30 "$left" "${PYTHON:-python3}" "$here/gpu.py" "$@" ${out:+--out "$out"} \
        ${TINY:+--device cpu --tiny} || found=$?
    if [ "$found" -eq 124 ] || [ "$found" -eq 137 ]; then
        echo "stopped, the minutes are over: $*" >&2
    elif [ "$found" -ne 0 ]; then
        echo "failed with status $found: $*" >&2
    fi
    [ "$found" -eq 0 ] || status=1
}

for name in parity syncs host augment steps loop plan ddp; do
    part "$name"
done
part train --recipe cifar10-speed --source "$source"
part train --recipe cifar10-strong --epochs 30 --source "$source"
exit "$status"
