"""From an encoded image to uint8 [C, H, W]: the one preprocessing of training, calibration, evaluation and serving.

It only needs NumPy and Pillow, so that the runtime of an exported model uses the same code. The rules:

    format      JPEG, PNG, WebP, BMP, GIF (first frame), TIFF, PNM, JPEG 2000, AVIF; nothing else is even tried
    size        more than Pillow's limit, 178,956,970 pixels, is refused before a pixel is decoded
    truncated   is an error, never half an image
    JPEG        read at 1/2, 1/4 or 1/8 scale (libjpeg's scaled DCT) where that leaves twice the target on both sides,
                or one and a half times what a store keeps
    orientation the EXIF orientation is applied, all eight of them
    depth       16-bit images keep the high byte; with fewer significant bits (`depth`) the highest 8 of them, and
                larger levels become white; 1 bit becomes 0 and 255; float pixels have no fixed range and are refused
    alpha       composited on white, also where it hides in a palette or a transparent colour
    colour      palette, CMYK and YCbCr become RGB (embedded colour profiles are not applied); grey is ITU-R BT.601 luma
    store       with `store_size`, the whole picture is first reduced to that size, as a store keeps it (Lanczos: it
                loses the least sharpness, and what follows reduces again); a smaller picture stays as it is
    resize      bilinear with antialiasing: `crop` takes the largest centred window of the target's shape, `squash`
                ignores the aspect, `pad` fits the image into the target and centres it on black; an image of the right
                size is left untouched. With `crop_pct` the first two take only that share of the sides, around the
                centre, as the evaluation of ImageNet networks does (0.875)
"""

from __future__ import annotations

from kitae.preprocess.files import ImageLike, image_files, is_hidden, is_image, list_images, on_one_line, visible_files
from kitae.preprocess.reading import decode, flattened, load, one_or_several, paths_of, picture, probe, view, windowed
from kitae.preprocess.rules import VERSION, Depth, PreprocessRules, Size, depth_of, sides

__all__ = [
    "VERSION", "Depth", "ImageLike", "PreprocessRules", "Size", "decode", "depth_of", "flattened", "image_files",
    "is_hidden", "is_image", "list_images", "load", "on_one_line", "one_or_several", "paths_of", "picture", "probe",
    "sides", "view", "visible_files", "windowed",
]  # fmt: skip
