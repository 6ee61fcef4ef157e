#!/bin/sh
# All that only a GPU can show: results go to benchmarks/results/gpu. Its parts were run on an H100 one by one, and should
# take under 25 minutes together; as a whole it was only run on a CPU, with TINY=1.
#
#   benchmarks/gpu.sh [SOURCE [FOLDER]]      # parquet:cifar10.parquet, benchmarks/results/gpu
#   TINY=1 benchmarks/gpu.sh                 # small settings on a CPU, results elsewhere: does it run?
set -eu
here=$(dirname "$0")
source=${1:-parquet:cifar10.parquet}
out=${2:-}

part() {
    "${PYTHON:-python3}" "$here/gpu.py" "$@" ${out:+--out "$out"} ${TINY:+--device cpu --tiny}
}

for name in parity syncs host augment steps; do
    part "$name"
done
part train --recipe cifar10-strong --epochs 30 --source "$source"
part train --recipe cifar10-speed --source "$source"
