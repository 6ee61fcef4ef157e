"""What a run says about its recipe and its data before it trains."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import nn

from kitae import console
from kitae.errors import RecipeError
from kitae.machine import machine
from kitae.models.build import normalization
from kitae.models.structure import takes
from kitae.pipelines.setup import Setup
from kitae.training.batches import epoch_shape
from kitae.training.optim import unused_fields
from kitae.training.schedule import progressive_sizes

FEW_UPDATES = 10
"""An epoch with fewer updates is noted."""


def notes_of(setup: Setup, model: nn.Module) -> list[str]:
    """Notes on the data, and on settings that have no effect or an unexpected one.

    Raises:
        RecipeError: the ops make images of a size that the network cannot take.
    """
    recipe = setup.recipe
    notes = [f"train.schedule.{field} has no effect with {recipe.train.schedule.name}"
             for field in recipe.train.schedule.unused]  # fmt: skip
    name = recipe.train.optimizer.name
    notes += [f"train.optimizer.{field} has no effect with {name}" for field in unused_fields(recipe.train.optimizer)]
    notes += recipe.train.optimizer.unusual
    if recipe.model.pretrained and recipe.data.normalize == "train":
        known = normalization(recipe.model, setup.store.rules.channels)
        cure = "pretrained" if known else "the mean and std of the run that they come from (in its model.json)"
        notes.append(
            f"data.normalize: train, but the weights of {recipe.model.name} expect their own normalisation: set it to "
            f"{cure}"
        )
    notes += _data_notes(setup) + _group_notes(setup) + _duplicate_notes(setup)
    updates, images = epoch_shape(len(setup.images), recipe.train, 1).updates, len(setup.images)
    several = recipe.train.accumulate
    fewer = max(2, images // (FEW_UPDATES * several) // 2 * 2)  # pairs are mixed
    if updates < FEW_UPDATES and fewer < recipe.train.batch_size:
        each, or_ = (f" (train.accumulate: {several})", "lower train.accumulate, or ") if several > 1 else ("", "")
        notes.append(
            f"train.batch_size: {recipe.train.batch_size}{each} with {images} images gives "
            f"{console.plural(updates, 'update')} per epoch, too few to learn much; {or_}set it to {fewer} or less"
        )
    return notes + _size_notes(setup, model)


def machine_notes(before: Mapping[str, Any], processes: int) -> list[str]:
    """Notes on differences from the machine that a run was started on, which may change the last bits.

    Args:
        before: environment.json; empty for a run that has not begun.
        processes: of the training now.
    """
    now = {**machine(), "processes": processes}
    return [
        f"{name} was {before.get(name)}, is {now[name]}: the result may differ in the last bits"
        for name in ("processor", "gpu", "processes")
        if before and before.get(name) != now[name]
    ]


def _size_notes(setup: Setup, model: nn.Module) -> list[str]:
    """A note if the network is trained on another size than it is evaluated on."""
    recipe, notes = setup.recipe, []
    channels, height, width = setup.store.rules.shape
    seen = setup.augment(recipe.train.seed).pipeline(*setup.drawn).sizes[-1]
    if seen != (height, width):
        shown = f"augment.train gives images of {seen[0]} x {seen[1]} pixels"
        if not takes(model, (channels, *seen)):
            raise RecipeError(
                f"{shown}, but {recipe.model.name} was built for {height} x {width} (data.image_size) and cannot take "
                "them; set the ops to that size"
            )
        notes.append(f"{shown}; validation, test and an exported model have {height} x {width} (data.image_size)")
    if recipe.train.progressive is not None:
        # The second is 4 pixels larger, which no network for multiples of 8 or more takes. All would take seconds.
        for tall, wide in progressive_sizes(seen, recipe.train.progressive)[:2]:
            if not takes(model, (channels, tall, wide)):
                raise RecipeError(
                    f"train.progressive: {recipe.model.name} for images of {height} x {width} cannot take "
                    f"{tall} x {wide}; set it to null, or choose a network for any size"
                )
    return notes


def _data_notes(setup: Setup) -> list[str]:
    """Notes about how images are read, which are left out, and classes that a split has no image of."""
    notes, store = [], setup.store
    if setup.recipe.data.depth == "auto" and store.rules.depth != 16:
        notes.append(f"data.depth: images of more than 8 bits are read as {store.rules.depth} bits")
    if store.skipped:
        name, why = store.skipped[0]
        more = f", and {len(store.skipped) - 1:,} more" if len(store.skipped) > 1 else ""
        notes.append(f"data.on_corrupt: left out {name} ({why}){more}")
    ends = {"train": "training image; cannot be learned", "val": "validation image",
            "test": "test image; accuracy unknown"}  # fmt: skip
    for split, classes in setup.splits.absent(store.labels, len(store.classes)).items():
        if classes:
            names = ", ".join(store.classes[index] for index in classes[:3])
            more = f" and {len(classes) - 3:,} more classes" if len(classes) > 3 else ""
            notes.append(f"{names}{more}: no {ends[split]}")
    return notes


def _group_notes(setup: Setup) -> list[str]:
    """Notes about the groups of images."""
    groups = setup.store.groups
    if groups is None:
        return []
    rule = setup.recipe.data.groups
    shares = ", ".join(f"{count} {name}" for name, count in setup.splits.group_counts(groups).items() if count)
    return [f"data.groups: {f'{rule}, ' if rule else ''}{len(np.unique(groups))} groups, none in two splits ({shares})"]


def _duplicate_notes(setup: Setup) -> list[str]:
    """Notes about images with the same pixels in two splits."""
    found = setup.splits.duplicates(setup.store.twins)
    if not found["images"]:
        return []
    kept = "" if found["val"] or found["test"] else "; identical images are in the same split"
    notes = [f"data: {found['images']} images are exact duplicates ({found['groups']} distinct images){kept}"]
    if found["val"]:
        notes.append(
            f"data: {found['val']} of {len(setup.splits.val)} validation images are also training images (the split is "
            "the source's own)"
        )
    if found["test"]:
        notes.append(
            f"data: {found['test']} of {setup.splits.test_count} test images are also training or validation images "
            "(the split is the source's own); evaluation.json has the test accuracy with and without them"
        )
    return notes
