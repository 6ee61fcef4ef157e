"""The page and the charts of the augmentation benchmark, made from its results.

python benchmarks/augment.py --docs-only
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common import ratio, text_number

from kitae.reporting import style

sys.path.append(str(Path(__file__).parents[1] / "scripts"))
import axes

OURS = ("kitae", "kitae-torch")
MARKERS = ("o", "s")  # a size differs by its marker too
HEAD = """# Augmentation: how fast

Made by `python benchmarks/augment.py`; the figures are those of `benchmarks/results/augment.json`. Every rate is images
per second from uint8 images in memory to a normalised float32 batch, each image by its own random draw; drawing and
normalising are inside the clock. All contestants were timed in turn, round after round, in one run; a ratio is the
median of the ratios within a round. `benchmarks/contestants.py` says exactly what each library was asked to do.
"""


THREADS = """\
## What two threads lose

Made by `python benchmarks/thread_profile.py`; the figures are those of `benchmarks/results/thread_profile.json`.
Milliseconds of a batch at {side} px with one and with two threads, and what two lose against half of the time of one:
in Python, until both have begun, in the kernels (the two threads together need more than one alone), and until the last
one has ended. The four add up, but for the rounding and the medians. Beside it, how many times as fast two threads are
in a plain copy of as many bytes, and in arithmetic in registers: what no program on this machine gets past. Rows
"in training" have a step of a small network between the batches. Medians of {rounds} rounds.
"""

_CORES = {"all": "all cores each", "one": "one core each"}


def write(results: dict[str, Any], folder: Path, profile: dict[str, Any] | None = None) -> Path:
    """Write augment.md and its charts into `folder`; the path of the page. `profile`: that of the threads, if any."""
    folder.mkdir(parents=True, exist_ok=True)
    draw(results, folder)
    path = folder / "augment.md"
    path.write_text(text(results, profile))
    return path


def draw(results: dict[str, Any], folder: Path) -> list[Path]:
    """Write the charts that the page shows into `folder`; their paths."""
    mode, charts = _mode(results), {"augment.png": draw_standard, "augment-peers.png": draw_ratios}
    return [charts[name](results, mode, folder / name) for name in _pictures(results)]


def text(results: dict[str, Any], profile: dict[str, Any] | None = None) -> str:
    """The page. `profile`: that of the threads, if any."""
    pictures = [f"![{said}]({name})\n" for name, said in _pictures(results).items()]
    sizes = sorted({w["size"] for w in results["works"]})
    parts = [HEAD, _machine(results), *pictures, _goals(results)]
    parts += [_headline(results, size) for size in sizes]
    parts += [_ops(results, size, _mode(results)) for size in sizes]
    parts += [_contestants(results), _left_out(results), "" if profile is None else threads(profile)]
    return "\n".join(part for part in parts if part)


def _mode(results: dict[str, Any]) -> str:
    return "all" if any("all" in w["modes"] for w in results["works"]) else "one"


def _pictures(results: dict[str, Any]) -> dict[str, str]:
    """The files of the charts for which there are results, and what they show."""
    found = {}
    if any(w["work"] == "standard" for w in results["works"]):
        found["augment.png"] = "The standard pipeline, images per second"
    if any("peer" in w["summary"].get(_mode(results), {}) for w in results["works"]):
        found["augment-peers.png"] = "How many times faster than the fastest other library, work by work"
    return found


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    lines += ["| " + " | ".join(cell.replace("|", "/") for cell in row) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def _rate(entry: dict[str, Any]) -> str:
    return f"{text_number(entry['median'])} ({text_number(entry['min'])} to {text_number(entry['max'])})"


def _times(found: dict[str, Any] | None, spread: bool = False) -> str:
    if found is None:
        return ""
    text = f"{text_number(found['median'])} x"
    return text + (f" ({text_number(found['min'])} to {text_number(found['max'])})" if spread else "")


def _machine(results: dict[str, Any]) -> str:
    machine, settings = results["machine"], results["settings"]
    versions = ", ".join(f"{k} {v}" for k, v in machine["versions"].items() if v and k in ("torch", "numpy", "numba"))
    sources = sorted({(w["size"], w["images"]) for w in results["works"]})
    kinds = settings["kinds"]
    rounds = ", ".join(
        f"{settings['rounds'] or v['rounds']} rounds of {settings['seconds'] or v['seconds']} s ({k})"
        for k, v in kinds.items()
    )
    lines = [
        f"Machine: {machine['processor']}, {settings['cores']} cores used, {machine['platform']}, Python"
        f" {machine['python']}, {versions}; {machine['when']}; load before {machine['load_average']}.",
        "Images: " + "; ".join(f"{size} px: {text}" for size, text in sources) + f". {rounds}.",
    ]
    if results.get("quick"):
        lines.append("**A quick run to see whether it works: the figures mean nothing.**")
    return "\n".join(lines) + "\n"


def _goals(results: dict[str, Any]) -> str:
    rows = [
        [g["goal"], f"{text_number(g['reached'])} x", g["against"], "yes" if g["ok"] else "**no**"]
        for g in results.get("goals", [])
    ]
    if not rows:
        return ""
    misses = [
        f"{g['goal']}; missed by "
        + ", ".join(f"{name} ({text_number(v)} x)" for name, v in g["misses"].items())
        + ".\n"
        for g in results["goals"]
        if g.get("misses")
    ]
    table = _table(["goal", "reached", "against", "met"], rows)
    return "\n".join(["## What was aimed at\n\nAll cores for everyone.\n", table, *misses])


def _headline(results: dict[str, Any], size: int) -> str:
    parts = [f"## Pipelines and policies at {size} px\n"]
    for work in results["works"]:
        if work["size"] != size or work["kind"] != "headline":
            continue
        modes = [m for m in ("one", "all") if m in work["modes"]]
        names = {n: None for m in modes for n in work["modes"][m] if n != "kitae (control)"}
        last = modes[-1]

        def rate(name: str, work: dict[str, Any] = work, last: str = last) -> float:
            return float(work["modes"][last].get(name, {"median": 0})["median"])

        rows = []
        ours = work["modes"][last].get("kitae")
        for name in sorted(names, key=rate, reverse=True):
            there = work["modes"][last].get(name)
            row = [results["contestants"][name]["label"]]
            for m in modes:
                e = work["modes"][m].get(name)
                row.append(_rate(e) if e else "")
            times = _times(ratio(ours, there)) if ours and there and name != "kitae" else ""
            row += [times, (there or work["modes"][modes[0]][name]).get("note", "")]
            rows.append(row)
        titles = {"one": "images/s, one core", "all": f"images/s, {results['settings']['cores']} cores"}
        head = ["", *(titles[m] for m in modes), "Kitae is faster by", "note"]
        parts.append(f"### {work['text'][0].upper()}{work['text'][1:]}\n\n" + _table(head, rows) + _sums(work))
    return "\n".join(parts) if len(parts) > 1 else ""


def _sums(work: dict[str, Any]) -> str:
    """The line below a table: shares of the limit, scaling, control."""
    said = []
    for mode, text in (("one", "one core"), ("all", "all cores")):
        found, parts = work["summary"].get(mode, {}), []
        if "torchvision" in found:
            parts.append(f"{_times(found['torchvision'], True)} the faster torchvision")
        if "peer" in found:
            parts.append(f"{_times(found['peer'], True)} the fastest peer ({found['peer']['name']})")
        if "copy" in found:
            parts.append(f"{100 * found['copy']['median']:.0f} % of the copy's rate")
        if "control" in found:
            parts.append(f"against itself {_times(found['control'], True)}")
        if parts:
            said.append(f"{text}: {'; '.join(parts)}")
    scaling = work["summary"].get("all_over_one", {})
    if "kitae" in scaling:
        copy = f" (the copy: {_times(scaling['copy'])})" if "copy" in scaling else ""
        said.append(f"all cores over one: {_times(scaling['kitae'], True)}{copy}")
    return "\n" + "; ".join(said) + ".\n" if said else ""


def _ops(results: dict[str, Any], size: int, mode: str) -> str:
    rows = []
    for work in results["works"]:
        if work["size"] != size or work["kind"] != "op" or "kitae" not in work["modes"].get(mode, {}):
            continue
        found, entries = work["summary"][mode], work["modes"][mode]
        peer = found.get("peer")
        rows.append(
            [
                work["text"],
                text_number(entries["kitae"]["median"]),
                text_number(entries["kitae-torch"]["median"]) if "kitae-torch" in entries else "",
                _times(found.get("torchvision")),
                _times(peer),
                f"{peer['name']}, {text_number(entries[peer['name']]['median'])}" if peer else "none has it",
                f"{100 * found['copy']['median']:.0f} %" if "copy" in found else "",
                _times(work["summary"].get("all_over_one", {}).get("kitae")),
            ]
        )
    if not rows:
        return ""
    head = [
        "op (always applied)",
        "Kitae, images/s",
        "torch executor",
        "over the faster torchvision",
        "over the fastest peer",
        "which is (images/s)",
        "of the copy's rate",
        "all cores over one",
    ]
    return f"## Single ops at {size} px\n\n{_CORES[mode].capitalize()}.\n\n" + _table(head, rows)


def threads(profile: dict[str, Any]) -> str:
    """The section on one and two threads."""
    head = [
        "work", "batch", "one thread, ms", "two, ms", "times as fast", "lost: Python", "waking", "kernels", "waiting",
        "a copy", "arithmetic",
    ]  # fmt: skip
    rows = []
    for row in profile["rows"]:
        one, two = (row["milliseconds"][threads]["total"]["median"] for threads in ("1", "2"))
        lost = [row["lost_milliseconds"][part]["median"] for part in ("python", "waking", "kernels", "waiting")]
        cells = [row["work"].replace("_", " ") + (", in training" if row["training"] else ""), str(row["batch"])]
        cells += [f"{one:.3f}", f"{two:.3f}", _times(row["speedup"], True), *(f"{value:+.3f}" for value in lost)]
        rows.append([*cells, *(_times(row["limits"][way]) for way in ("copy", "arithmetic"))])
    first, machine = profile["rows"][0], profile["machine"]
    text = THREADS.format(side=first["side"], rounds=first["speedup"]["n"])
    where = f"{machine['processor']}, {machine['cores_used']} cores used, torch {machine['versions']['torch']}"
    return f"{text}\n{_table(head, rows)}\n{where}; {machine['when']}; load before {machine['load_average']}.\n"


def _contestants(results: dict[str, Any]) -> str:
    rows = []
    for about in results["contestants"].values():
        versions = about.get("versions", {})
        text = about.get("absent") or ", ".join(f"{k} {v}" for k, v in versions.items() if v)
        rows.append([about["label"], text, about["configuration"]])
    return "## Contestants\n\n" + _table(["", "versions", "configuration"], rows)


def _left_out(results: dict[str, Any]) -> str:
    missing: dict[tuple[str, str], list[str]] = {}
    for work in results["works"]:
        for kind in ("missing", "failed"):
            for name, why in work.get(kind, {}).items():
                names = missing.setdefault((name, why if kind == "missing" else f"FAILED: {why}"), [])
                if work["work"] not in names:
                    names.append(work["work"])
    rows = [[name, ", ".join(works), why] for (name, why), works in sorted(missing.items())]
    return "## What a library does not have\n\n" + _table(["", "works", "why"], rows) if rows else ""


# Charts --------------------------------------------------------------------------------------------------------------


def draw_standard(results: dict[str, Any], mode: str, path: Path) -> Path:
    """Images per second of the standard pipeline, a panel a size, a bar a contestant."""
    works = [w for w in results["works"] if w["work"] == "standard" and mode in w["modes"]]
    rows = max(len(w["modes"][mode]) for w in works)
    title = f"The standard pipeline: images per second, {_CORES[mode]}"
    figure = style.new_figure(style.WIDTH, 0.9 + len(works) * (0.55 + 0.27 * rows), title)
    for ax, work in zip(figure.subplots(len(works), 1, squeeze=False)[:, 0], works, strict=True):
        entries = {n: e for n, e in work["modes"][mode].items() if n != "kitae (control)"}
        names = sorted(entries, key=lambda n: float(entries[n]["median"]))
        rates = [entries[n]["median"] for n in names]
        colours = [
            axes.BLUE if n in OURS else style.MUTED if n == "copy" or not entries[n]["same_job"] else axes.VERMILLION
            for n in names
        ]
        ax.barh(range(len(names)), rates, color=colours, height=0.7)
        ax.set_xscale("log")
        ax.set_xlim(min(rates) / 2, max(rates) * 4)
        labels = [results["contestants"][n]["label"] + ("" if entries[n]["same_job"] else " *") for n in names]
        ax.set_yticks(range(len(names)), axes.labels(labels, 330, style.SMALL))
        for at, value in enumerate(rates):
            ax.text(value * 1.1, at, text_number(value), va="center", fontsize=style.SMALL, color=style.INK)
        axes.dress(ax, heading=f"{work['size']} px", grid="x")
        ax.tick_params(axis="y", labelsize=style.SMALL)
        ax.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        ax.minorticks_off()
    figure.supxlabel(
        "logarithmic; * one draw for the whole batch: another job", fontsize=style.SMALL, color=style.MUTED
    )
    return style.save(figure, path)


def draw_ratios(results: dict[str, Any], mode: str, path: Path) -> Path:
    """How many times faster than the fastest peer, a row a work, a dot a size with its range over rounds."""
    works: dict[str, dict[int, dict[str, Any]]] = {}
    for work in results["works"]:
        peer = work["summary"].get(mode, {}).get("peer")
        if peer is not None:
            works.setdefault(work["work"], {})[work["size"]] = peer
    names = list(works)[::-1]
    figure = style.new_figure(style.WIDTH, 1.3 + 0.25 * len(names), "Times faster than the fastest other library")
    ax = figure.subplots()
    sizes = sorted({size for found in works.values() for size in found})
    for at, size in enumerate(sizes):
        rows = [(y, works[n][size]) for y, n in enumerate(names) if size in works[n]]
        x = [found["median"] for _, found in rows]
        error = [[m - f["min"] for m, (_, f) in zip(x, rows, strict=True)],
                 [f["max"] - m for m, (_, f) in zip(x, rows, strict=True)]]  # fmt: skip
        ax.errorbar(
            x,
            [y + 0.16 - 0.32 * at / max(len(sizes) - 1, 1) for y, _ in rows],
            xerr=error,
            fmt=MARKERS[at],
            color=axes.SERIES[at],
            markersize=5,
            linewidth=1.2,
            label=f"{size} px",
        )
    ax.axvline(1, color=style.INK, linewidth=1)
    ax.set_xscale("log")
    ax.set_yticks(range(len(names)), [n.replace("_", " ") for n in names])
    axes.dress(ax, grid="both", xlabel=f"times faster (logarithmic), {_CORES[mode]}; 1: equally fast")
    ax.tick_params(axis="y", labelsize=style.SMALL)
    ax.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.legend(ax, columns=len(sizes))
    return style.save(figure, path)
