#!/bin/sh
# All that only a GPU can show, in under 25 minutes on one H100: results go to benchmarks/results/gpu.
#
#   benchmarks/gpu.sh [SOURCE [FOLDER]]      # parquet:cifar10.parquet, benchmarks/results/gpu
set -eu
here=$(dirname "$0")
source=${1:-parquet:cifar10.parquet}
out=${2:-$here/results/gpu}
python=${PYTHON:-python3}

for part in parity syncs host augment steps; do
    "$python" "$here/gpu.py" "$part" --out "$out"
done
# The complete pipeline on CIFAR-10. Its page and metrics stay in the run's folder.
for seed in 0 1 2; do
    "$python" -m kitae train cifar10-strong --out "runs/gpu-strong-$seed" \
        --set "data.source=$source" train.epochs=30 "train.seed=$seed"
done
