"""Compress and export."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from kitae import console
from kitae.cli.app import SHIP, Open, WholeOrDefault, answering, app, note_unfinished, write_page
from kitae.errors import BudgetError, RecipeError

_Sets = Annotated[
    list[str] | None,
    Parameter(name="--set", help="Other fields of CompressSpec: importance=taylor 'controls=[random, scratch]' ..."),
]


@app.command(group=SHIP, sort_key=1)
@answering
def compress(
    run: Path,
    *,
    out: Path | None = None,
    max_drop: float | None = None,
    max_latency_ms: float | None = None,
    max_bytes: WholeOrDefault = None,
    prune: Literal["structured", "unstructured", "none"] | None = None,
    ratios: list[float] | None = None,
    finetune_epochs: WholeOrDefault = None,
    # Not `| None`: where None is possible, cyclopts reads the word "none" as it and takes no further word.
    quantize: Annotated[tuple[Literal["none", "dynamic", "static", "qat"], ...], Parameter(show_default=False)] = (),
    target: Literal["any", "vnni"] | None = None,
    set_: _Sets = None,
    overwrite: bool = False,
    open_: Open = False,
) -> None:
    """Find the smallest model within an accuracy budget: prune, fine-tune, quantize, export, measure, verify.

    Example: kitae compress runs/mine --max-drop 1.0

    Args:
        run: A finished run folder.
        out: The compression folder; default RUN-small. An interrupted compression is resumed.
        max_drop: Accuracy that may be lost, in percentage points; default 1.
        max_latency_ms: Limit on the median time for one image, in ONNX Runtime on this machine.
        max_bytes: Limit on the size of the exported file.
        prune: structured, the default, removes channels; unstructured sets weights to zero.
        ratios: Shares of channels or weights to remove, in increasing order; default 0.2 0.35 0.5 0.65.
        finetune_epochs: Epochs of fine-tuning after each ratio; default 5.
        quantize: Precisions to try at each ratio; default none static, where none is 32-bit float.
        target: any, the default, is safe on every CPU; vnni needs a CPU with VNNI instructions.
        overwrite: Replace the compression in --out; fine-tuned stages that still fit are used again.
    """
    console.starting(f"compress {run}")
    from kitae.pipelines.compress import CompressionResult, resolve_spec
    from kitae.pipelines.compress import compress as run_compression

    given = {
        "max_drop": max_drop, "max_latency_ms": max_latency_ms, "max_bytes": max_bytes, "prune": prune,
        "ratios": ratios, "finetune_epochs": finetune_epochs, "quantize": quantize or None, "target": target,
    }  # fmt: skip
    options = {name: value for name, value in given.items() if value is not None}
    fields = {text.partition("=")[0].strip() for text in set_ or ()}
    if twice := next((name for name in options if name in fields), None):
        option = f"--{twice.replace('_', '-')}"
        raise RecipeError(f"{option} and --set {twice}: are the same field; give only one of them")
    # The flags first: --set may only be valid together with them (gradual=true with --prune unstructured).
    spec = resolve_spec(None, options, set_ or ())
    try:
        result = run_compression(run, out, spec=spec, overwrite=overwrite, say=console.say)
    except BudgetError as problem:
        _print_candidates(CompressionResult.open(problem.folder))
        write_page(problem.folder, browser=open_)
        raise
    _print_compression(result)
    write_page(result.path, browser=open_)


def _print_candidates(result: Any) -> None:
    """A row per candidate; the winner, or the one closest to the budget, has a star."""
    console.answer({"path": result.path, **result.facts})
    size = result.facts["size"]  # the field that decided the winner
    labels = map(result.record.label, result.record.candidates)  # in words, as on the page
    rows = [
        [
            ("* " if row["winner"] else "") + label,
            console.size(row[size]),
            f"{row['latency_ms']:.3f}",
            f"{row['speedup']:.2f} x",
            console.percent(row["accuracy"], row.get("accuracy_interval")),
        ]
        for label, row in zip(labels, result.rows, strict=True)
    ]
    metric = result.facts.get("metric", "accuracy")
    head = ["candidate", "packed" if size == "packed_bytes" else "bytes", "ms", "faster", f"{metric} (95 %)"]
    console.table("", head, rows)
    console.say(f"ms: one image in ONNX Runtime on this machine; {metric}: on validation")


def _print_compression(result: Any) -> None:
    from kitae.evaluation.latency import as_fast
    from kitae.reporting.values import points_lost

    _print_candidates(result)
    facts = result.facts
    packed = " when packed" if facts["size"] == "packed_bytes" else ""
    smaller, small = console.change(facts["smaller"], "smaller", "larger")
    noise = facts["latency"]["noise"]
    if as_fast(facts["faster"], noise):
        speed = f"as fast as the 32-bit ONNX model (the difference is within the noise, {console.percent(noise)})"
    else:
        faster, fast = console.change(facts["faster"], "faster", "slower")
        speed = f"{faster:.1f} x {fast} than the 32-bit ONNX model"
    console.say(f"{smaller:.1f} x {small}{packed} and {speed}")
    if result.test is not None:
        before, after = result.test["baseline"], result.test["winner"]
        lost, interval = points_lost(result.test["drop"], result.test["drop_interval"])
        now = console.percent(after["accuracy"], after["accuracy_interval"])
        was = console.percent(before["accuracy"])
        metric = facts.get("metric", "accuracy").replace("accuracy", "test accuracy")
        console.say(f"{metric} {was} before, {now} after: {lost} (95 % interval {interval})")
        if not result.test["within_budget"]:
            budget = facts["spec"]["max_drop"]
            console.say(f"the drop on test exceeds the budget of {budget:g}; on validation it was within the budget")


@app.command(group=SHIP, sort_key=2)
def export(run: Path, *, out: Path | None = None) -> None:
    """Write a run's best model as one verified ONNX file that includes the preprocessing.

    Example: kitae export runs/mine --out mine.onnx

    Args:
        run: A run folder.
        out: The file; default RUN.onnx.
    """
    with console.status(f"export {run}"):
        from kitae.pipelines.export import export as run_export
        from kitae.run import Run

        opened = Run.open(run)
        written = run_export(opened, out)
    note_unfinished(opened)
    console.say(f"{written.path}: {console.size(written.path.stat().st_size)}, verified against PyTorch")
