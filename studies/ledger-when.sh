#!/bin/sh
# The studies behind "When does a technique help?" in docs/ledger.md: ledger-when at each length, and with a larger network.
# Each can be killed and resumed by running the script again.
#
#   studies/ledger-when.sh [SOURCE [FOLDER]]       # parquet:cifar10.parquet, runs
set -eu
source=${1:-parquet:cifar10.parquet}
folder=${2:-runs}

when() {
    name=$1
    shift
    kitae study ledger-when --workers 2 --out "$folder/$name" --set "data.source=$source" "study.name=$name" "$@"
}

for epochs in 12 25 50 200; do
    when "ledger-when-$epochs-epochs" "train.epochs=$epochs"
done
when ledger-when-wide train.epochs=50 model.width=32
when ledger-when-wide-100-epochs train.epochs=100 model.width=32
