"""Draw what pages about augmentation and techniques show: docs/images/*.png, but for ledger-when.png, and curves.svg.

    python scripts/doc_pictures.py

The pictures of augmentation are those of `kitae show augment`; those of results come from the studies and benchmarks.
"""

from __future__ import annotations

import json
from pathlib import Path

import technique_pictures
from kitae.cli.research import augment
from kitae.reporting import charts
from kitae.reporting.results import Epoch

ROOT = Path(__file__).parents[1]
IMAGES = ROOT / "docs" / "images"
PHOTOS = "photos-mini"  # in colour
RUN = ROOT / "benchmarks" / "results" / "cifar10-strong-18-epochs"  # a cosine with a warm-up


def draw_curves(path: Path, run: Path) -> Path:
    """Loss, accuracy and learning rate of a published run, as its page shows them."""
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    path.write_text(charts.curves([Epoch.model_validate(json.loads(line)) for line in lines], None).file())
    return path


def draw(folder: Path) -> list[Path]:
    """The pictures of techniques, and curves, into a folder."""
    return [*technique_pictures.draw(folder), draw_curves(folder / "curves.svg", RUN)]


if __name__ == "__main__":
    augment(PHOTOS, out=IMAGES)
    for file in draw(IMAGES):
        print(file)
