"""The search space of `kitae search`: augmentation, mixing and label smoothing; and the presets, its first points."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from kitae.recipe import Recipe

Parameters = dict[str, Any]

LARGE = 96  # pixels; from here on images are augmented as the field augments ImageNet's, below as CIFAR-10's

# The presets, as points of the search space. `own` is the recipe's own augmentation.
_WEAK: Parameters = {
    "policy": "none", "crop": True, "flip": True, "erasing": 0.0, "mix": "none", "smoothing": 0.0,
}  # fmt: skip
PRESETS: dict[str, Parameters] = {
    "own": {**_WEAK, "policy": "own", "crop": False, "flip": False},
    "none": {**_WEAK, "crop": False, "flip": False},
    "flip and crop": _WEAK,
    "rand_augment": {**_WEAK, "policy": "rand_augment", "num_ops": 2, "magnitude": 9},
    "trivial_augment_wide": {**_WEAK, "policy": "trivial_augment_wide"},
    "auto_augment": {**_WEAK, "policy": "auto_augment"},
    "mixup and cutmix": {
        **_WEAK, "mix": "both", "mixup_alpha": 1.0, "cutmix_alpha": 1.0, "mix_prob": 1.0, "smoothing": 0.1,
    },
}  # fmt: skip
POLICIES = ("own", "none", "rand_augment", "trivial_augment_wide", "auto_augment", "subset")
# Ops of the policy `subset`: each is on or off, and all share one strength in [0, 1].
SUBSET: dict[str, Callable[[float], Mapping[str, Any]]] = {
    "rotate": lambda strength: {"degrees": round(30 * strength, 2)},
    "affine": lambda s: {
        "translate": [round(0.15 * s, 3)] * 2,
        "scale": [round(1 - 0.2 * s, 3), round(1 + 0.2 * s, 3)],
    },
    "color_jitter": lambda s: {name: round(0.5 * s, 3) for name in ("brightness", "contrast", "saturation")},
    "gaussian_blur": lambda s: {"sigma": [0.1, round(0.1 + 1.5 * s, 3)], "p": 0.3},
    "sharpness": lambda s: {"factor": round(1 + 2 * s, 3)},
    "grayscale": lambda s: {"p": round(0.2 * s, 3)},
    "gaussian_noise": lambda s: {"sigma": round(0.1 * s, 4), "p": 0.5},
}


def suggest(trial: Any) -> Parameters:
    """A point of the search space from an Optuna trial (anything with its suggest_* methods)."""
    found: Parameters = {"policy": trial.suggest_categorical("policy", POLICIES)}
    if found["policy"] == "rand_augment":
        found["num_ops"] = trial.suggest_int("num_ops", 1, 4)
        found["magnitude"] = trial.suggest_int("magnitude", 1, 20)
    if found["policy"] == "subset":
        found["strength"] = trial.suggest_float("strength", 0.1, 1.0)
        for op in SUBSET:
            found[op] = trial.suggest_categorical(op, (True, False))
    found["crop"] = trial.suggest_categorical("crop", (True, False))
    found["flip"] = trial.suggest_categorical("flip", (True, False))
    found["erasing"] = trial.suggest_float("erasing", 0.0, 0.5)
    found["mix"] = trial.suggest_categorical("mix", ("none", "mixup", "cutmix", "both"))
    if found["mix"] in ("mixup", "both"):
        found["mixup_alpha"] = trial.suggest_float("mixup_alpha", 0.1, 2.0, log=True)
    if found["mix"] in ("cutmix", "both"):
        found["cutmix_alpha"] = trial.suggest_float("cutmix_alpha", 0.1, 2.0, log=True)
    if found["mix"] != "none":
        found["mix_prob"] = trial.suggest_float("mix_prob", 0.2, 1.0)
    found["smoothing"] = trial.suggest_float("smoothing", 0.0, 0.2)
    return found


def apply(recipe: Recipe, point: Mapping[str, Any], image_size: int) -> Recipe:
    """A recipe with the augmentation, mixing and smoothing of a point of the search space.

    Args:
        image_size: pixels of the shorter side. Small images get a random crop, padded by an eighth of their size, and
            AutoAugment's policy for CIFAR-10; from `LARGE` pixels on, a random resized crop and the policy for
            ImageNet.
    """
    if point == PRESETS["own"]:
        return recipe
    ops: list[dict[str, Any]] = [dict(op) for op in recipe.augment.train] if point["policy"] == "own" else []
    present, large = {name for op in ops for name in op}, image_size >= LARGE
    if point["crop"] and not present & {"random_crop", "random_resized_crop"}:
        small = {"random_crop": {"padding": max(1, image_size // 8)}}
        ops.append({"random_resized_crop": {}} if large else small)
    if point["flip"] and "horizontal_flip" not in present:
        ops.append({"horizontal_flip": {}})
    if point["policy"] == "rand_augment":
        ops.append({"rand_augment": {"num_ops": point["num_ops"], "magnitude": point["magnitude"]}})
    elif point["policy"] == "subset":
        ops += [{op: dict(make(point["strength"]))} for op, make in SUBSET.items() if point[op]]
    elif point["policy"] == "trivial_augment_wide":
        ops.append({"trivial_augment_wide": {}})
    elif point["policy"] == "auto_augment":
        ops.append({"auto_augment": {"policy": "imagenet" if large else "cifar10"}})
    if point["erasing"] >= 0.01 and "random_erasing" not in present:
        ops.append({"random_erasing": {"p": round(point["erasing"], 3)}})
    mix = None
    if point["mix"] != "none":
        mix = {
            "mixup_alpha": round(point.get("mixup_alpha", 0.0), 3),
            "cutmix_alpha": round(point.get("cutmix_alpha", 0.0), 3),
            "prob": round(point["mix_prob"], 3),
        }
    tree = recipe.model_dump(mode="json")
    tree["augment"] = {"train": ops, "mix": mix}
    tree["train"]["label_smoothing"] = round(point["smoothing"], 3)
    return Recipe.model_validate(tree)
