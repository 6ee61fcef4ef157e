#!/bin/sh
# All that only a GPU can show, in under 25 minutes on one H100: results go to benchmarks/results/gpu.
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
