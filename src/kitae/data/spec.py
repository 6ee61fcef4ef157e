"""The `data:` section of a recipe."""

from __future__ import annotations

import os
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, field_validator, model_validator

from kitae.spec import GrowingSpec, Spec

Side = Annotated[int, Field(ge=4, le=2048)]

SPLIT = (
    "data.source", "data.image_column", "data.label_column", "data.on_corrupt", "data.split_seed", "data.val_seed",
    "data.val_fraction", "data.test_fraction", "data.groups", "data.folds", "data.fold",
)  # fmt: skip
"""Fields of a recipe that decide which images train, validate and test."""


class Normalization(Spec):
    """The mean that is subtracted from pixels in [0, 1], and the standard deviation that then divides them.

    Attributes:
        mean, std: a number for each channel, 1 or 3.
    """

    mean: tuple[float, ...] = Field(min_length=1, max_length=3)
    std: tuple[Annotated[float, Field(gt=0)], ...] = Field(min_length=1, max_length=3)

    @model_validator(mode="after")
    def _of_pixels_up_to_one(self) -> Self:
        if (largest := max(*self.mean, *self.std)) > 1:
            raise ValueError(f"mean and std are of pixels in [0, 1], not {largest:g}; divide both by 255")
        return self


class DataSpec(GrowingSpec):
    """Where images come from and how they are prepared and split.

    Attributes:
        source: `fashion-mini`, `photos-mini`, `folder:PATH`, `parquet:PATH`, `csv:PATH`, `cifar10`, `cifar100`,
            `fashion-mnist`, `mnist` or `webdataset:SHARDS`. `cifar10`, `cifar100`, `fashion-mnist` and `mnist` may be
            followed by `:PATH`, the folder that already contains their files. SHARDS are tar files, which are read
            while training and never decoded into a store: paths or URLs (https, s3, gs, ...), with
            `{000..099}`, `{train,val}`, `*` in paths, and `::` between several.
        val_fraction: share of each class of train held out for validation, if the source has no validation split.
        test_fraction: share of each class held out as test first, if the source has no test split.
        split_seed: the key of the splits and `limit`; separate from `train.seed`, so that the seeds of a study share
            their splits.
        val_seed: the key of the validation split alone, to change the validation images and keep the test images; null
            is `split_seed`. Without effect if the source has a validation split.
        limit: keep this many training images (after the split), classes in proportion; null keeps all.
        image_size: side in pixels of the square images that the network sees, or [height, width]; null takes the
            images' own size if all have the same.
        store_size: the store keeps whole pictures, reduced to a short side of this many pixels (if image_size is not
            square: to the smallest size that covers it scaled to that side); null is 9/4 of image_size, which keeps
            random crops and evaluation as sharp as from the files. Without effect if all images are tiny or already
            have image_size.
        channels: 1 or 3; null is 1 if every image is grey, else 3.
        depth: significant bits of images with more than 8 bits per channel. `auto` takes what the highest level of the
            whole set needs: 8 under 256, 10 under 1024, 12 under 4096, else 16.
        resize: `crop` (shorter side to size, centre crop), `squash` (ignore the aspect), `pad` (longer side to size).
        crop_pct: share of the sides, around the centre, that `crop` and `squash` keep; below 1 the centre is enlarged.
        normalize: `train` (statistics of the training images), `pretrained` (the pretrained net's), or a mean and std.
        balance: `sampler` draws every class equally often, `loss` weighs classes inversely to their frequency.
        on_corrupt: `error` stops at an image that cannot be read, `skip` names it and leaves it out.
        order: how an epoch is shuffled. `full` draws from all images at once. `blocks` is for data that do not fit in
            memory: shards, or stretches of the store, come in an order keyed by (seed, epoch), are cut into windows of
            `shuffle_buffer` images, and each window is shuffled, so that a disk reads long stretches. `auto` is
            `blocks` for shards and for a store of more than half the memory, else `full`.
        shuffle_buffer: images of a window, with `blocks`.
        store_cache_gb: size limit of the cache of decoded images; the least recently used stores are removed first. It
            also ends at half of the space that the disk would have free without them. The store in use always stays.
        shard_cache_gb: size limit of the cache of shards from URLs; the least recently used are removed first.
        image_column, label_column: names of the columns of a Parquet file, or of a CSV file, in which images are paths.
            At the defaults, other usual names of these columns are tried too.
        groups: how the group of an image is found; images of one group (a patient, a video, a burst) are never in two
            splits. A column of the CSV or Parquet file; `parent`, the folder of the file (in a folder of classes, its
            path below the class); or a regular expression that is searched in the file's path and whose first group
            names it, such as `(patient\\d+)`. null takes a column `group`, or folders called `group=NAME`, if there
            are any.
        folds: number of folds of a cross-validation, over all images except the source's own test split. A run of such
            a recipe trains a model for each fold and then one on everything; see `pipelines.folds`.
        fold: the fold, from 1, that is the test split; the others train and validate. null is the model on everything,
            which has no validation split, and only the source's own test split.
        cache: folder of the decoded stores; null is the user's cache folder.
    """

    newer: ClassVar[frozenset[str]] = frozenset({
        "val_seed", "depth", "store_size", "crop_pct", "groups", "folds", "fold", "order", "shuffle_buffer",
        "store_cache_gb", "shard_cache_gb",
    })  # fmt: skip

    source: str = "fashion-mini"
    val_fraction: float = Field(0.1, gt=0, lt=1)
    test_fraction: float = Field(0.2, gt=0, lt=1)
    split_seed: int = Field(0, ge=0, lt=2**32)
    val_seed: int | None = Field(None, ge=0, lt=2**32)
    limit: int | None = Field(None, ge=1)
    image_size: Side | tuple[Side, Side] | None = None
    store_size: int | None = Field(None, ge=4, le=16384)
    channels: Literal[1, 3] | None = None
    depth: Literal["auto", 8, 10, 12, 16] = "auto"
    resize: Literal["crop", "squash", "pad"] = "crop"
    crop_pct: float = Field(1.0, gt=0, le=1)
    normalize: Literal["train", "pretrained"] | Normalization = "train"
    balance: Literal["none", "sampler", "loss"] = "none"
    on_corrupt: Literal["error", "skip"] = "error"
    order: Literal["auto", "full", "blocks"] = "auto"
    shuffle_buffer: int = Field(8192, ge=2, lt=2**31)
    store_cache_gb: float = Field(50.0, gt=0)
    shard_cache_gb: float = Field(50.0, gt=0)
    image_column: str = "image"
    label_column: str = "label"
    groups: str | None = Field(None, min_length=1)
    folds: int | None = Field(None, ge=2, le=20)
    fold: int | None = Field(None, ge=1)
    cache: str | None = None

    @field_validator("cache")
    @classmethod
    def _names_a_folder(cls, value: str | None) -> str | None:
        try:
            possible = b"\0" not in os.fsencode(value or "")
        except UnicodeEncodeError:  # half of a surrogate pair
            possible = False
        if not possible:
            raise ValueError(f"must be the path of a folder, not {value!r}")
        return value

    @property
    def whole(self) -> bool:
        """Whether all but the source's test split is trained on, with the folds' models to measure the accuracy."""
        return self.folds is not None and self.fold is None

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.fold is not None and (self.folds is None or self.fold > self.folds):
            raise ValueError(f"fold: {self.fold} must be one of the folds (1 to {self.folds or 'data.folds'})")
        size = self.image_size
        short = min(size) if isinstance(size, tuple) else size
        if self.store_size is not None and short is not None and self.store_size < short:
            raise ValueError(f"store_size: must be at least image_size ({short}), not {self.store_size}")
        if self.crop_pct < 1 and self.resize == "pad":
            raise ValueError("crop_pct: must be 1 with resize: pad, which keeps the whole image")
        return self
