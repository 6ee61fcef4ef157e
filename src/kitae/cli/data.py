"""Look at a data source."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from kitae import console
from kitae.cli.app import Sets, data_app


@data_app.command
def check(source: str, *, out: Path | None = None, set_: Sets = None) -> None:
    """Report broken images, class counts, sizes, duplicates and label conflicts of a source.

    Exits with 1 if an image is unreadable, in two splits or labelled twice, or if training could not start.

    Example: kitae data check folder:photos

    Parameters
    ----------
    source
        As data.source of a recipe: folder:PATH, parquet:PATH, cifar10, ...
    out
        A folder for the full report (check.json) and a contact sheet.
    """
    from kitae.data.check import check as run_check

    spec = data_spec(source, set_)
    with console.counting("reading images") as progress:
        report = run_check(spec, progress=progress, sheet=None if out is None else out / "contact-sheet.png")
    for line in report.lines():
        console.say(line)
    if out is not None:
        from kitae.files import write_json

        write_json(out / "check.json", report.to_dict())
        console.say(f"full report in {out}")
    if not report.ok:
        sys.exit(1)


@data_app.command
def prepare(source: str, *, set_: Sets = None) -> None:
    """Decode a source now, so that training starts at once.

    Example: kitae data prepare folder:photos

    Parameters
    ----------
    source
        As data.source of a recipe.
    """
    from kitae.data.store import open_store

    with console.counting("decoding images") as progress:
        store = open_store(data_spec(source, set_), progress=progress)
    for name, why in store.skipped:
        console.say(f"skipped: {name}: {why}")
    count, *shape = store.images.shape
    kept = "" if store.rules.store_size is None else f", kept whole up to {store.rules.store_size} pixels"
    console.say(
        f"{count:,} images of {' x '.join(map(str, shape))}{kept}, "
        f"{len(store.classes)} classes, {console.size(store.images.nbytes)}"
    )


def data_spec(source: str, assignments: list[str] | None) -> Any:
    """The data section of a recipe with this source and these overrides."""
    from kitae.recipe import Recipe

    recipe = Recipe().override(f"data.source={json.dumps(source, ensure_ascii=False)}", *(assignments or ()))
    return recipe.data
