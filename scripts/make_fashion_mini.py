"""Make the embedded data set `fashion-mini` from the four files of Fashion-MNIST.

    python scripts/make_fashion_mini.py [FOLDER] [OUT]

FOLDER holds the original idx.gz files (default: where Debian's `dataset-fashion-mnist` puts them). From each class the
600 training and 100 test images with the smallest keyed random number (seed 0, slot LIMIT; epoch 0 for train, 1 for
test; index = row of the original file) are kept, in their original order, as PNG. So the choice is a pure function of
the originals, and anyone can repeat it: the script prints the SHA-256 of the chosen pixels and labels, which
`tests/data/test_sources.py` checks against the file in the package. (The bytes of the file itself depend on the
versions of zlib and pyarrow; the pixels do not.)
"""

from __future__ import annotations

import gzip
import hashlib
import io
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from kitae import keyed

CLASSES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip
PER_CLASS = {"train": 600, "test": 100}
PREFIX = {"train": "train", "test": "t10k"}
DEFAULT_OUT = Path(__file__).parent.parent / "src" / "kitae" / "data" / "assets" / "fashion-mini.parquet"


def read_idx(path: Path) -> np.ndarray:
    data = gzip.decompress(path.read_bytes())
    shape = np.frombuffer(data, ">u4", count=data[3], offset=4)
    return np.frombuffer(data, np.uint8, offset=4 + 4 * data[3]).reshape(shape)


def chosen_rows(labels: np.ndarray, per_class: int, epoch: int) -> np.ndarray:
    keys = keyed.sort_keys(0, epoch, np.arange(len(labels)), keyed.SLOT_LIMIT)
    rows = [np.flatnonzero(labels == c) for c in range(10)]
    return np.sort(np.concatenate([r[np.argsort(keys[r])[:per_class]] for r in rows]))


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def main() -> None:
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "/usr/share/datasets/fashion-mnist")
    out = Path(sys.argv[2]) if len(sys.argv) > 2 else DEFAULT_OUT
    if not (folder / "train-images-idx3-ubyte.gz").is_file():
        raise SystemExit(
            f"{folder}: no train-images-idx3-ubyte.gz; apt install dataset-fashion-mnist, or give a FOLDER"
        )
    digest = hashlib.sha256()
    columns: dict[str, list] = {"image": [], "label": [], "class_name": [], "split": [], "path": []}
    for epoch, (split, per_class) in enumerate(PER_CLASS.items()):
        images = read_idx(folder / f"{PREFIX[split]}-images-idx3-ubyte.gz")
        labels = read_idx(folder / f"{PREFIX[split]}-labels-idx1-ubyte.gz")
        for row in chosen_rows(labels, per_class, epoch):
            digest.update(images[row].tobytes() + labels[row].tobytes())
            columns["image"].append(png(images[row]))
            columns["label"].append(int(labels[row]))
            columns["class_name"].append(CLASSES[labels[row]])
            columns["split"].append(split)
            columns["path"].append(f"{PREFIX[split]}/{row:05d}.png")
    table = pa.table({
        "image": pa.array(columns["image"], pa.binary()),
        "label": pa.array(columns["label"], pa.int8()),
        "class_name": pa.array(columns["class_name"]).dictionary_encode(),
        "split": pa.array(columns["split"]).dictionary_encode(),
        "path": pa.array(columns["path"]),
    })  # fmt: skip
    notice = "Fashion-MNIST subset, Copyright (c) 2017 Zalando SE, MIT licence: see fashion-mini.LICENSE"
    table = table.replace_schema_metadata({"source": notice, "pixels_sha256": digest.hexdigest()})
    pq.write_table(table, out, compression="zstd", compression_level=19, use_dictionary=["class_name", "split"])
    print(f"{out}: {table.num_rows} images, {out.stat().st_size:,} bytes, pixels sha256 {digest.hexdigest()}")


if __name__ == "__main__":
    main()
