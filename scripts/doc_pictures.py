"""Draw what technique pages define: docs/images/label-smoothing.png and stochastic-depth.png.

    python scripts/doc_pictures.py

The pictures of augmentation come from `kitae show augment`, those of results from the studies and benchmarks.
"""

from __future__ import annotations

from pathlib import Path

from kitae.models.layers import linear_rates
from kitae.reporting.figures import draw_label_smoothing, draw_stochastic_depth

IMAGES = Path(__file__).parents[1] / "docs" / "images"


def draw(folder: Path) -> list[Path]:
    """Both pictures, into a folder."""
    return [
        draw_label_smoothing(folder / "label-smoothing.png", classes=10, smoothing=0.1),
        draw_stochastic_depth([1 - rate for rate in linear_rates(0.2, 27)], folder / "stochastic-depth.png"),
    ]


if __name__ == "__main__":
    for file in draw(IMAGES):
        print(file)
