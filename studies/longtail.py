"""Make a long-tailed data set out of a balanced one: Parquet in, Parquet out.

    python studies/longtail.py cifar10.parquet longtail.parquet --ratio 50

Class k of K keeps the share ratio ** (-k / (K - 1)) of its training images, so the first class keeps all and the last a
`ratio`-th (Cui et al., "Class-balanced loss based on effective number of samples", CVPR 2019). Which images stay is
keyed by the seed. Rows whose `split` is not train are kept as they are: the test set stays balanced.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from kitae import keyed


def longtail(table: pa.Table, ratio: float, seed: int = 0) -> pa.Table:
    """The rows of `table` (columns `label` and `split`) that stay."""
    if ratio < 1:
        raise ValueError(f"ratio must be at least 1, not {ratio}")
    labels = np.asarray(table["label"].to_pylist())
    train = np.asarray(table["split"].to_pylist()) == "train"
    classes = np.unique(labels)
    keep = ~train
    for place, name in enumerate(classes):
        rows = np.flatnonzero(train & (labels == name))
        count = max(1, round(len(rows) * ratio ** (-place / max(1, len(classes) - 1))))
        order = keyed.permutation(seed, place, len(rows), keyed.SLOT_LIMIT)
        keep[rows[order[:count]]] = True
    return table.filter(pa.array(keep))


def main() -> None:
    """Read, thin out, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("--ratio", type=float, default=50.0)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    table = pq.read_table(given.source)
    thinned = longtail(table, given.ratio, given.seed)
    pq.write_table(thinned, given.target)
    print(f"{given.target}: {thinned.num_rows:,} of {table.num_rows:,} rows")


if __name__ == "__main__":
    main()
