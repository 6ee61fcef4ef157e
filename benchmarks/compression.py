"""What a compression made of a trained run, as JSON and as a page.

    python benchmarks/compression.py NAME=FOLDER ... [--note TEXT]    results/compression/NAME.json of each folder
    python benchmarks/compression.py                                  only the page, from what is there

The folders are those of `kitae compress`. The page is docs/benchmarks/compression.md; it also shows infer.json.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import common

from kitae.files import write_json
from kitae.pipelines.compress import CompressionResult
from kitae.reporting import compression_page
from kitae.reporting.compression_results import CompressionRecord

RESULTS = common.RESULTS / "compression"
PAGE = common.ROOT / "docs" / "benchmarks" / "compression.md"
CHARTS = ("front", "sparsity")
ORDER = ("demo", "demo-controls", "few-0", "few-1", "few-2", "few-unstructured", "few-qat")  # others follow by name
CORRECTED = "2026-11-26"  # of the loop and of fine-tuning, see the changelog
EARLIER = (
    "Measured before the corrections of 26 November 2026: a short last batch took a full-size step in training, "
    "fine-tuning saw the same augmented epochs at each ratio, and the original with the winner's further epochs was "
    "not among the controls."
)
NOT_SOLVED = (
    "Measured before 1 December 2026, since when the weights that pruning leaves [are solved]"
    "(../compression.md#without-training) before they are fine-tuned."
)
HEAD = """# Compression: what it costs and what it brings

Made by `python benchmarks/compression.py` from the folders that `kitae compress` wrote
(`benchmarks/results/compression/*.json`) and from `benchmarks/infer.py` (`benchmarks/results/infer.json`).

Every line is an exported file, run in ONNX Runtime. *Faster* is the ratio of the time of one image, float32 original to
this file, all files timed in turn in one process, with its 95 % interval. *Drop* is points of accuracy lost against the
original on the validation images, by which every choice was made, with its paired 95 % interval; negative is a gain.
Test was opened once, for the original and the winner (`*`). *Packed* is the file after zlib. `c` is a control.
"""


def publish(name: str, folder: Path, note: str) -> Path:
    """Keep a compression's numbers, and the picture of its filters; the path of the JSON."""
    facts = dict(CompressionResult.open(folder).facts)
    path = RESULTS / f"{name}.json"
    write_json(path, {"note": note, **facts})
    filters = folder / "figures" / "filters.png"
    if filters.is_file() and facts["spec"]["prune"] != "none":
        shutil.copyfile(filters, PAGE.parent / f"compression-{name}-filters.png")
    return path


def charts(name: str, facts: dict[str, Any]) -> dict[str, str]:
    """The charts of the compression's page, from the numbers that are kept: their files' names and contents."""
    content = compression_page.content(CompressionRecord.model_validate(facts), RESULTS)
    return {
        f"compression-{name}-{chart}.svg": content[chart].file()
        for chart in CHARTS
        if content[chart] is not None and (chart != "sparsity" or facts["spec"]["prune"] != "none")
    }


def _interval(ends: Sequence[float] | None, digits: int) -> str:
    return "" if ends is None else f" ({ends[0]:.{digits}f} to {ends[1]:.{digits}f})"


def _section(name: str, facts: dict[str, Any]) -> str:
    machine, images, spec = facts["machine"], facts["images"], facts["spec"]
    tuned = f"fine-tuning {spec['finetune_epochs']} epochs a ratio{', distilling' if spec['distill'] else ''}"
    place = f"{machine['processor']}, {spec['threads'] or machine['cores']} thread(s)"
    packed = " when packed" if facts.get("size") == "packed_bytes" else ""
    lines = [
        f"## {name}",
        "",
        f"{facts.get('note', '')} Recipe `{facts['recipe']}`; {images['train']:,} training and {images['val']:,} "
        f"validation images; {'no pruning' if spec['prune'] == 'none' else f'{tuned}, each from the ratio before'}; "
        f"`target: {spec['target']}`; {place}; original against itself: {facts['latency']['control']['ratio']:.3f}.",
        "",
        "| file | non-zero weights | MACs | bytes | packed | faster | accuracy | drop |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    record = CompressionRecord.model_validate(facts)
    for row, candidate in zip(facts["candidates"], record.candidates, strict=True):
        what = record.label(candidate)
        mark = " `c`" if row["control"] else " `*`" if row["winner"] else ""
        lines.append(
            f"| {what}{mark} | {row['nonzero']:,} | {row['macs'] / 1e6:.1f} M | {row['bytes']:,} | "
            f"{row['packed_bytes']:,} | {row['speedup']:.2f} x{_interval(row['speedup_interval'], 2)} | "
            f"{100 * row['accuracy']:.2f} % | {row['drop']:+.2f}{_interval(row['drop_interval'], 2)} |"
        )
    lines.append("")
    if facts["machine"]["when"] < CORRECTED:
        lines += [EARLIER, ""]
    if spec["prune"] == "structured" and "reconstruct" not in spec:
        lines += [NOT_SOLVED, ""]
    lines += [f"Left out: {item['name']} ({item['why']})." for item in facts.get("left_out", ())]
    lines += _verified(facts["candidates"])
    test, budget = facts["test"], facts["spec"]["max_drop"]
    if test is None:
        closest = record.label(record.winner)
        lines.append(f"Nothing met the budget: the closest, {closest}, {facts['why_not']}.")
    else:
        accuracy = _interval([100 * end for end in test["winner"]["accuracy_interval"]], 2)
        lines.append(
            f"Test ({test['count']:,} images): {100 * test['baseline']['accuracy']:.2f} % before, "
            f"{100 * test['winner']['accuracy']:.2f} %{accuracy} after; drop "
            f"{test['drop']:+.2f}{_interval(test['drop_interval'], 2)} points, budget {budget:g}. The winner is "
            f"{facts['smaller']:.1f} x smaller{packed} and {facts['faster']:.1f} x faster."
            + ("" if test["within_budget"] else " On test it is over the budget, which it kept on validation.")
        )
    lines.append("")
    for picture in (*(f"{chart}.svg" for chart in CHARTS), "filters.png"):
        file = f"compression-{name}-{picture}"
        if (PAGE.parent / file).is_file():
            lines += [f"![{picture.partition('.')[0]} of {name}]({file})", ""]
    return "\n".join(lines)


def _verified(rows: Sequence[dict[str, Any]]) -> list[str]:
    """How far the files are from what they must compute, where that was recorded."""
    rows = [row for row in rows if "parity_error" in row]
    if not rows:
        return []
    floats = [row["parity_error"] for row in rows if row["precision"] == "fp32"]
    flips = [row["parity_flips"] for row in rows if row["precision"] != "fp32"]
    masked = [row["masked_error"] for row in rows if row["masked_error"] is not None]
    said = f"Largest difference of a probability between a float file and its network in PyTorch: {max(floats):.0e}."
    if flips:
        said += f" INT8 files in integer and in float arithmetic give {100 * max(flips):.1f} % other classes at most."
    if masked:
        said += f" Largest difference from the masked original: {max(masked):.0e} of the largest logit."
    return [said, ""]


def _inference(facts: dict[str, Any]) -> str:
    machine = facts["machine"]
    lines = [
        "## Engines",
        "",
        f"{facts['network']}; {machine['processor']}, {machine['cores_used']} thread(s). *Faster* is against plain "
        "ONNX Runtime in float32.",
        "",
    ]
    for size, timed in facts["batches"].items():
        lines += [
            f"Batch {size} (the reference against itself: {timed['control']['ratio']:.3f}):",
            "",
            "| engine and file | ms | faster | bytes | same class as PyTorch |",
            "|---|---:|---:|---:|---:|",
        ]
        rows = sorted(timed["candidates"].items(), key=lambda item: item[1]["seconds"])
        for name, found in rows:
            about = facts["contestants"][name]
            held = "" if about["bytes"] is None else f"{about['bytes']:,}"
            lines.append(
                f"| {name} | {1e3 * found['seconds']:.3f} | {1 / found['ratio']:.2f} x | {held} | "
                f"{100 * about['same_class_share']:.1f} % |"
            )
        lines.append("")
    lines += [f"Absent: {name} ({reason})." for name, reason in facts["absent"].items()]
    return "\n".join(lines)


def published() -> dict[str, dict[str, Any]]:
    """The committed results by name, in the page's order."""
    files = {file.stem: file for file in RESULTS.glob("*.json")}
    names = sorted(files, key=lambda name: (ORDER.index(name) if name in ORDER else len(ORDER), name))
    return {name: json.loads(files[name].read_text(encoding="utf-8")) for name in names}


def text() -> str:
    """The page, from the committed results."""
    parts = [HEAD, *(_section(name, facts) for name, facts in published().items())]
    inference = common.RESULTS / "infer.json"
    if inference.is_file():
        parts.append(_inference(json.loads(inference.read_text(encoding="utf-8"))))
    return "\n".join(parts).rstrip() + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="*", metavar="NAME=FOLDER")
    parser.add_argument("--note", default="", help="what was compressed, a sentence")
    given = parser.parse_args()
    RESULTS.mkdir(parents=True, exist_ok=True)
    for item in given.folders:
        name, _, folder = item.partition("=")
        print(publish(name, Path(folder), given.note))
    for name, facts in published().items():
        for file, chart in charts(name, facts).items():
            (PAGE.parent / file).write_text(chart, encoding="utf-8")
    PAGE.write_text(text(), encoding="utf-8")
    print(PAGE)


if __name__ == "__main__":
    main()
