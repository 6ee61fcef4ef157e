"""Train three small recipes and print the hash of each one's weights: a move of code must not change them.

    python scripts/golden_weights.py                    # compare with tests/golden_weights.json
    python scripts/golden_weights.py --write            # after a change that is meant to change them

Weights are bit-exact on one kind of processor with one thread, so the file names the processor; elsewhere nothing is
compared.
"""

from __future__ import annotations

import hashlib
import json
import sys
import tempfile
from pathlib import Path

FILE = Path(__file__).resolve().parents[1] / "tests" / "golden_weights.json"
COMMON = ("data.limit=400", "model.width=8", "train.epochs=2", "train.batch_size=32", "train.threads=1")
RECIPES = {
    "fp32, one cycle": ("train.precision=fp32",),
    "bf16, averaged, AutoAugment and mixing": (
        "train.precision=bf16", "train.ema=0.9", "augment.mix={}", "augment.train.auto_augment={policy: cifar10}",
    ),
    "adamw, accumulated, clipped": (
        "train.precision=fp32", "train.optimizer={name: adamw, lr: 0.002}", "train.accumulate=2", "train.clip_norm=1.0",
        "train.schedule.name=cosine", "model.stochastic_depth=0.2", "model.name=resnet8",
    ),
}  # fmt: skip


def weights_hash(overrides: tuple[str, ...]) -> str:
    """SHA-256, 16 digits, over names and bytes of the best weights."""
    import kitae as kt
    from kitae.training.checkpoint import load_weights

    with tempfile.TemporaryDirectory() as folder:
        run = kt.train(kt.Recipe.load("fashion-mini").override(*COMMON, *overrides), Path(folder) / "run")
        digest = hashlib.sha256()
        for name, tensor in sorted(load_weights(run.best)[0].items()):
            digest.update(name.encode() + tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def main() -> int:
    """Compare, or write."""
    from kitae.machine import machine

    found = {name: weights_hash(overrides) for name, overrides in RECIPES.items()}
    facts = machine()
    now = {"processor": facts["processor"], "torch": facts["versions"]["torch"], "weights": found}
    if "--write" in sys.argv:
        FILE.write_text(json.dumps(now, indent=2) + "\n")
        return 0
    before = json.loads(FILE.read_text())
    if (before["processor"], before["torch"]) != (now["processor"], now["torch"]):
        print(f"another machine: {now['processor']}, torch {now['torch']}; nothing compared")
        return 2
    for name, digest in found.items():
        print(f"{name}: {digest} {'as before' if digest == before['weights'][name] else 'CHANGED'}")
    return int(found != before["weights"])


if __name__ == "__main__":
    sys.exit(main())
