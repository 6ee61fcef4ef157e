"""Which image size, and which rate of fine-tuning, should a plan take? Scores on validation; test stays closed.

    python benchmarks/settings.py --sets textile trashnet photos-mini imagenette-small:1600 --sizes 224 288 320
    python benchmarks/settings.py --sets textile trashnet --rates 0.001 0.0005 --minutes 5
    python benchmarks/settings.py --sets photos-mini:60 --sizes 64 --seeds 0 --out runs/tiny.json    does it run?

Sets, splits and lists are those of `quality.py`. `--sizes` trains nothing but the head of a frozen network, on the
features that a plan's probe has. `--rates` are learning rates at a batch of 32, in the plan of so
many minutes; such a row also has the score of its probe, which is kept where fine-tuning is no better. Rows that are in
--out already are not run again.
"""

from __future__ import annotations

import functools
import math
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import common
import quality

import kitae as kt
from kitae.pipelines.train import asked

KEYS = ("set", "seed", "size", "rate", "minutes")


def score(path: Path, seed: int, *, of: tuple[int | None, float | None, float | None]) -> dict[str, Any]:
    """What a size, or a rate and minutes, reached on the validation images of a list."""
    size, rate, minutes = of
    choices: dict[str, Any] = {"seed": seed}
    if size is not None:
        choices |= {"image_size": size, "epochs": 0}
    if rate is not None:
        planned, _, _ = asked(path, None, {})
        choices["lr"] = rate * math.sqrt(planned.train.batch_size / 32)
    with tempfile.TemporaryDirectory() as folder:
        began = time.monotonic()
        run = kt.train(path, Path(folder) / "run", minutes=minutes, test=False, show=False, **choices)
        seconds = time.monotonic() - began
        rows, best = run.metrics(), run.best_epoch()
        kept = next(row for row in rows if row["epoch"] == best)
        found = {name: kept[name] for name in ("val_accuracy", "val_loss")}
        probe = rows[0]["val_accuracy"] if rows[0]["epoch"] == 0 else None
        return {
            **found, "probe_val_accuracy": probe, "best_epoch": best, "epochs": rows[-1]["epoch"],
            "image_size": run.recipe.data.image_size, "resize": run.recipe.data.resize, "seconds": round(seconds, 2),
        }  # fmt: skip


def show(rows: Sequence[dict[str, Any]]) -> None:
    """Means over the seeds."""
    for name, size, rate, minutes in dict.fromkeys((r["set"], r["size"], r["rate"], r["minutes"]) for r in rows):
        mine = [r for r in rows if (r["set"], r["size"], r["rate"], r["minutes"]) == (name, size, rate, minutes)]
        what = f"{size} px" if size is not None else f"rate {rate:g}, {minutes:g} min"
        values = [100 * r["val_accuracy"] for r in mine]
        print(
            f"{name:<24} {what:<20} {statistics.fmean(values):6.2f} %  loss "
            f"{statistics.fmean(r['val_loss'] for r in mine):.4f}  {len(mine)} seeds: "
            f"{' '.join(f'{value:.2f}' for value in values)}"
        )


def main(arguments: Sequence[str] | None = None) -> int:
    parser = quality.growing_parser(__doc__, "settings")
    parser.add_argument("--sizes", nargs="+", type=int, default=[])
    parser.add_argument("--rates", nargs="+", type=float, default=[], help="learning rates at a batch of 32")
    parser.add_argument("--minutes", type=float, default=5.0, help="of a run with a rate")
    options = parser.parse_args(arguments)
    out = options.out or common.RESULTS / "settings.json"
    head = {
        "what": "validation scores of image sizes (a frozen network with a new head) and of fine-tuning's rates",
        "machine": common.hardware(common.available_cores()),
    }
    settings = [(size, None, None) for size in options.sizes]
    settings += [(None, rate, options.minutes) for rate in options.rates]
    rows = quality.add_rows(
        out, head, KEYS, options.sets, options.seeds, {of: functools.partial(score, of=of) for of in settings}
    )
    show(rows)
    print(f"results: {out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
