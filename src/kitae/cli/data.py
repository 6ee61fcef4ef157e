"""Look at a data source."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Any

from kitae import console
from kitae.cli.app import Sets, answering, data_app, require_writable
from kitae.errors import KitaeError
from kitae.files import user_path, with_name, write_json

_SHOWN = 20  # images left out that are listed


@data_app.command
@answering
def check(source: str, *, out: Path | None = None, set_: Sets = None) -> None:
    """Report broken images, class counts, sizes, duplicates and label conflicts, and end with a verdict.

    Exits with 1 if an image is unreadable, copies of one picture have different labels, or training cannot start.

    Example: kitae data check photos/

    Args:
        source: A folder, a .parquet or a .csv file, or a source as in a recipe's data.source: cifar10, ...
        out: A folder for the full report (check.json) and a contact sheet.
    """
    from kitae.data.check import check as run_check

    spec = data_spec(source, set_)
    if out is not None:
        require_outside(out, spec)
    with console.counting("reading images") as progress:
        report = run_check(
            spec, planned=_planned(set_), progress=progress, sheet=None if out is None else out / "contact-sheet.png"
        )
    if out is not None:
        write_json(out / "check.json", report.to_dict())
        console.say(f"full report in {out}")
    console.answer(report.to_dict())
    for line in report.lines():
        console.say(line)
    if not report.ok:
        sys.exit(1)


@data_app.command
@answering
def fix(source: str, *, out: Path | None = None, set_: Sets = None, overwrite: bool = False) -> None:
    """Write the data to a new file without unreadable images, label conflicts or copies; the source is not changed.

    Of copies with the same label, one is kept, preferably in test. Copies with different labels are all left out.

    Example: kitae data fix photos/ --out photos-fixed.csv

    Args:
        source: A folder, a .parquet or a .csv file, or a data set that comes with the package.
        out: The new file: .csv for a folder or a .csv file, else .parquet; default SOURCE-fixed beside it.
        overwrite: Replace the file in --out.
    """
    from kitae.data.check import check as run_check
    from kitae.data.fix import check_out, suffix_of
    from kitae.data.fix import fix as run_fix
    from kitae.data.sources import open_source

    spec = data_spec(source, set_)
    opened = open_source(spec.model_copy(update={"on_corrupt": "skip"}))  # it leaves out what is missing
    kind, _, path = spec.source.partition(":")  # an embedded data set has no path
    if out is None:
        root = with_name(user_path(path or kind))
        out = root.parent / f"{root.stem if root.is_file() else root.name}-fixed{suffix_of(opened)}"
    check_out(opened, out, overwrite=overwrite)
    require_writable(out)
    with console.counting("reading images") as progress:
        report = run_check(opened, spec, planned=_planned(set_), progress=progress)
    written = run_fix(opened, report, out, overwrite=overwrite)
    left_out = [{"name": name, "reason": reason} for name, reason in written.left_out]
    console.answer({"path": written.path, "kept": written.kept, "left_out": left_out})
    for name, reason in written.left_out[:_SHOWN]:
        console.say(f"left out: {name}: {reason}")
    if len(written.left_out) > _SHOWN:
        console.say(f"and {len(written.left_out) - _SHOWN:,} more")
    console.say(f"{written.path}: {written.kept:,} images, {len(written.left_out):,} left out")
    if written.lost:
        console.say(f"classes with no images left: {', '.join(written.lost)}")
    if written.classes > 1:
        console.say(f"next: kitae train {shlex.quote(str(written.path))}")
    else:
        console.say(f"next: correct the labels in {path or kind}; training needs two classes")


@data_app.command
def prepare(source: str, *, minutes: float | None = None, set_: Sets = None) -> None:
    """Decode a source now, so that training starts at once.

    It is decoded as kitae train does with the same arguments.

    Example: kitae data prepare photos/ --minutes 5

    Args:
        source: A folder, a .parquet or a .csv file, a source as in a recipe's data.source, or a recipe.
        minutes: As for kitae train; the image size depends on it.
    """
    from kitae.data.store import open_store
    from kitae.pipelines.choices import Choices
    from kitae.pipelines.pace import Clock, process_begun
    from kitae.pipelines.train import asked

    clock = None if minutes is None else Clock.of(minutes, process_begun())
    recipe, _, lines = asked(source, clock, Choices(set=tuple(set_ or ())))
    if lines:
        console.say(lines[0])
    spec = recipe.data
    with console.counting("decoding images") as progress:
        store = open_store(spec, progress=progress)
    for name, why in store.skipped:
        console.say(f"skipped: {name}: {why}")
    count, *shape = store.images.shape
    kept = "" if store.rules.store_size is None else f", uncropped, short side up to {store.rules.store_size} pixels"
    console.say(
        f"{count:,} images of {' x '.join(map(str, shape))}{kept}, "
        f"{len(store.classes)} classes, {console.size(store.images.nbytes)}"
    )


def _planned(assignments: list[str] | None) -> bool:
    from kitae.recipe import assigns

    return not assigns(assignments or (), "data.val_fraction")


def require_outside(out: Path, spec: Any) -> None:
    """Refuse an `--out` for pictures that cannot be written, or where they would be read as data."""
    from kitae.data.sources import path_of

    require_writable(out, folder=True)
    root = path_of(spec.source)
    folder = out.resolve()
    if root is not None and root.resolve() in (folder, *folder.parents):
        raise KitaeError(f"--out {out}: is in {root}, so its pictures would be read as data; choose another --out")


def data_spec(source: str, assignments: list[str] | None) -> Any:
    """The data section of a recipe with this source and these overrides; those of other sections are noted."""
    from kitae.data.sources import source_named
    from kitae.recipe import Recipe, assignment

    given = assignments or []
    found = Recipe().located(source_named(source), None).override(*given).data
    if others := [text for text in given if assignment(text)[0].partition(".")[0] != "data"]:
        console.remark(f"note: only fields of data have an effect here, not --set {shlex.join(others)}")
    return found
