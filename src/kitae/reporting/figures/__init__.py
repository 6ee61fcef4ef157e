"""Figures drawn with matplotlib: what `run.plot` gives, and pictures of images in rows (the gallery of augmentation).

Charts of pages are SVG, see `reporting.svg`. Proportions (accuracy, confidence) are in [0, 1] and drawn in per cent.
Images are uint8 [C, H, W] with C = 1 or 3, or [H, W]. A wrong argument is the caller's bug and raises ValueError.
"""
