"""Write a test photograph of each class of photos-mini as a file, to try `kitae predict` on them.

python scripts/some_photos.py FOLDER
"""

from __future__ import annotations

import sys
from pathlib import Path

import pyarrow.parquet as pq

ROOT = Path(__file__).parents[1]
_PHOTOS = ROOT / "src/kitae/data/assets/photos-mini.parquet"


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    rows = pq.read_table(_PHOTOS).to_pylist()
    for name in sorted({row["class_name"] for row in rows}):
        row = next(row for row in rows if row["class_name"] == name and row["split"] == "test")
        (folder / f"{name}{Path(row['path']).suffix}").write_bytes(row["image"])


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit("usage: python scripts/some_photos.py FOLDER")
    main(Path(sys.argv[1]))
