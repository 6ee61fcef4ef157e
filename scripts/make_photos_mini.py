"""Make the embedded data set `photos-mini` from TrashNet.

    python scripts/make_photos_mini.py [TRASHNET.parquet] [OUT]

TrashNet (Gary Thung and Mindy Yang, MIT licence) has 2,527 photographs of waste in 6 classes, 340 x 255 pixels. Images
that `kitae data check` finds to be the same as another, or nearly, are left out. Of each class the 80 training and 20
test images with the smallest keyed random number (seed 0, slot LIMIT, epoch 0; index = row of the original file) are
kept, brought to a short side of 160 pixels and saved as JPEG. The choice is a pure function of the originals; the bytes
depend on the version of libjpeg.
"""

from __future__ import annotations

import io
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from kitae import keyed
from kitae.data.check import check
from kitae.data.spec import DataSpec

PER_CLASS = {"train": 80, "test": 20}
SHORT_SIDE, QUALITY = 160, 86
ASSETS = Path(__file__).parent.parent / "src" / "kitae" / "data" / "assets"


def smaller(encoded: bytes) -> bytes:
    """The photograph with its short side at SHORT_SIDE pixels."""
    image = Image.open(io.BytesIO(encoded)).convert("RGB")
    scale = SHORT_SIDE / min(image.size)
    size = (round(image.width * scale), round(image.height * scale))
    buffer = io.BytesIO()
    image.resize(size, Image.Resampling.LANCZOS).save(buffer, "JPEG", quality=QUALITY, optimize=True)
    return buffer.getvalue()


def main() -> None:
    source = Path(sys.argv[1] if len(sys.argv) > 1 else "trashnet.parquet")
    out = Path(sys.argv[2]) if len(sys.argv) > 2 else ASSETS / "photos-mini.parquet"
    if not source.is_file():
        raise SystemExit(
            f"{source}: no such file; give TrashNet as one, with the columns image, label, class_name, path"
        )
    table = pq.read_table(source)
    names, labels = table["path"].to_pylist(), np.asarray(table["label"].to_pylist())
    report = check(DataSpec(source=f"parquet:{source}"))
    alike = {image.name for found in (*report.exact, *report.near) for image in found.images}
    free = np.array([name not in alike for name in names])
    keys = keyed.sort_keys(0, 0, np.arange(len(labels)), keyed.SLOT_LIMIT)
    split_of: dict[int, str] = {}
    for label in np.unique(labels):
        rows = np.flatnonzero((labels == label) & free)
        order = rows[np.argsort(keys[rows])]
        start = 0
        for split, count in PER_CLASS.items():
            split_of |= dict.fromkeys(order[start : start + count].tolist(), split)
            start += count
    rows = sorted(split_of)
    classes, images = table["class_name"].to_pylist(), table["image"].to_pylist()
    made = pa.table({
        "image": pa.array([smaller(images[row]) for row in rows], pa.binary()),
        "label": pa.array([int(labels[row]) for row in rows], pa.int8()),
        "class_name": pa.array([classes[row] for row in rows]).dictionary_encode(),
        "split": pa.array([split_of[row] for row in rows]).dictionary_encode(),
        "path": pa.array([names[row] for row in rows]),
    })  # fmt: skip
    notice = "TrashNet subset, Copyright (c) 2017 Gary Thung, MIT licence: see photos-mini.LICENSE"
    made = made.replace_schema_metadata({"source": notice})
    pq.write_table(made, out, compression="zstd", use_dictionary=["class_name", "split"])
    print(f"{out}: {made.num_rows} images, {out.stat().st_size:,} bytes, {len(alike)} of the originals have a twin")


if __name__ == "__main__":
    main()
