"""Every figure: a pure function from plain data to one PNG, written whole or not at all; each returns the path.

Proportions (accuracy, confidence, sparsity, probabilities) are in [0, 1] and drawn in per cent; sizes are in bytes,
times in seconds or milliseconds as named. Images are uint8 [C, H, W] with C = 1 or 3, or [H, W].
A wrong argument is the caller's bug and raises ValueError; a file that cannot be written raises KitaeError.
"""

from kitae.reporting.figures.compression import (
    draw_compression,
    draw_filter_masks,
    draw_latency,
    draw_pareto,
    draw_sparsity,
)
from kitae.reporting.figures.evaluation import draw_confusion, draw_per_class, draw_reliability, draw_worst_mistakes
from kitae.reporting.figures.images import image_grid
from kitae.reporting.figures.methods import draw_label_smoothing, draw_precision, draw_stochastic_depth
from kitae.reporting.figures.runs import draw_run
from kitae.reporting.figures.training import draw_training_curves

__all__ = [
    "draw_compression",
    "draw_confusion",
    "draw_filter_masks",
    "draw_label_smoothing",
    "draw_latency",
    "draw_pareto",
    "draw_per_class",
    "draw_precision",
    "draw_reliability",
    "draw_run",
    "draw_sparsity",
    "draw_stochastic_depth",
    "draw_training_curves",
    "draw_worst_mistakes",
    "image_grid",
]
