"""Steps that follow a training run inside a study, by their names under `after`.

A step is a function (run, folder, **settings) -> {name: number}, nested as it likes, whose numbers become the metrics
`STEP.NAME`. A step of your own is named as `module:function`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from kitae.errors import RecipeError
from kitae.run import Run

STEPS: dict[str, str] = {
    "prune": "kitae.experiments.after:prune",
}


def prune(
    run: Run,
    folder: Path,
    *,
    ratio: float = 0.0,
    epochs: int = 5,
    kind: Literal["unstructured", "structured"] = "unstructured",
    scope: Literal["layer", "global"] = "global",
) -> dict[str, float]:
    """Prune the run's best model, fine-tune it, and measure it on test.

    Ratio 0 is fine-tuned too: it is the control that had the same further epochs.

    Args:
        ratio: share of the weights (unstructured) or channels (structured) that goes, in [0, 1).
        epochs: of fine-tuning, at a tenth of the recipe's learning rate down a cosine.
        scope: rank weights within each `layer`, or all of them together (`global`).

    Returns:
        accuracy (test), sparsity (zero weights as a share of the parameters left), parameters, compressed_bytes.
    """
    from kitae.compression import prune as pruning
    from kitae.pipeline import Setup
    from kitae.training.distributed import join

    if kind not in ("unstructured", "structured"):
        raise RecipeError(f"after.prune.kind: {kind!r} must be unstructured or structured")
    setup = Setup.of(run)
    model = run.load_model().to(join(run.recipe.train.device).device)
    hold = None
    if ratio and kind == "unstructured":
        masks = pruning.magnitude_masks(model, ratio, scope=scope)
        pruning.apply_masks(model, masks)
        hold = pruning.enforce(masks)
    elif ratio:
        rules = setup.store.rules
        shape = (rules.channels, rules.image_size, rules.image_size)
        model = pruning.remove_channels(model, shape, ratio, scope=scope).model
    model = setup.recover(model, epochs=epochs, after_step=hold)
    counts = pruning.count(model)
    rows = setup.splits.open_test(lambda: run.count_test_opening(f"study, pruned by {ratio:g}"))
    logits, labels = run.logits(setup.image_set(rows), model.cpu())
    return {
        "accuracy": float((logits.argmax(axis=1) == labels).mean()),
        "sparsity": counts.sparsity,
        "parameters": float(counts.nonzero),
        "compressed_bytes": float(pruning.compressed_bytes(model)),
    }
