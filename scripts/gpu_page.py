"""The page docs/benchmarks/gpu.md from the results of `benchmarks/gpu.sh`; benchmark_pages.py writes it.

A part without results is named, and has no section. Remarks about certain figures end with them: they are only there
while the results are those of their day.
"""

from __future__ import annotations

import json
import statistics
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from means import mean_interval

RESULTS = Path(__file__).parents[1] / "benchmarks" / "results"

HEAD = """\
# On a GPU

Made by the parts of `benchmarks/gpu.py`; the figures are those of `benchmarks/results/gpu`, and of `speed` for
trainings by `kitae train`. `benchmarks/gpu.sh` runs all parts in at most 25 minutes, and `TINY=1 benchmarks/gpu.sh`
does so on a CPU with small settings, to see whether they work.
"""
WAYS = {
    "kitae, compiled executor, then copied": "Compiled on {cores} cores, then copied",
    "kitae, torch executor on the device": "Batched on the GPU",
    "kornia": "Kornia on the GPU",
    "torchvision, image by image on the device": "torchvision, image by image on the GPU",
}
WORKS = {
    "standard": "crop, flip, jitter, erasing",
    "auto_augment": "AutoAugment",
    "rand_augment": "RandAugment",
    "random_resized_crop": "random resized crop, flip",
}
NETWORKS = {
    "resnet9-w32-32": "ResNet-9, width 32", "resnet18-32": "ResNet-18", "resnet50-224": "ResNet-50, 224 px",
    "efficientnet_b0-224": "EfficientNet-B0, 224 px", "loop-resnet18": "ResNet-18, 32 px",
    "loop-resnet50": "ResNet-50, 224 px",
}  # fmt: skip
STEPS = {
    "fp32": "fp32", "bf16": "bf16", "fp16": "fp16", "bf16 compiled": "bf16, torch.compile",
    "bare bf16": "a bare loop in bf16", "fp32 compiled": "fp32, torch.compile", "bare fp32": "a bare loop in fp32",
}  # fmt: skip
LOOPS = {
    "kitae": "`kt.train`, run folder included",
    "bare": "the limit: the bare step, one batch of floats on the GPU",
    "tutorial": "tutorial loop: DataLoader, float32",
    "tuned": "tutorial loop with bfloat16, channels_last, pinned memory and workers that stay",
}
HOSTS = {
    "bare": "a bare step",
    "the host decides": "Kitae's, where the host decides whether a step is applied",
    "the device decides": "Kitae's, where the device decides",
}
ALONE = "One process under torchrun with NCCL works; two or more GPUs have not been tried.\n"

# part -> the day of the figures that the text is about, and the text
REMARKS = {
    "augment": (
        "2026-11-26",
        """\
At 224 px Kornia is faster: by a tenth for the standard pipeline, where its intervals overlap ours, and by a factor of 2
for policies, which it applies to the batch as a whole. When this was measured, the batched resized crop ran sample by
sample; it now runs on a whole batch, which has not been measured on a GPU yet.

Training uses the compiled executor on every device, in a separate thread, so the images are bit-identical on a CPU and
on a GPU. With 16 cores it produces several times as many images as a ResNet-50 can train on in the same time (batches
of 128 in 34.5 ms, below).
""",
    ),
    "parity": (
        "2026-11-26",
        """\
In the ops that are not equal, nearly all values that differ do so by one level; a threshold (solarize in AutoAugment)
can turn a small difference into a large one.
""",
    ),
    "syncs": (
        "2026-11-26",
        """\
Steps with Muon and with `train.accumulate` are now decided on the GPU as well, with results that are equal bit for bit
on a CPU; their waits have not been counted on a GPU yet. fp16 waits, since its scaler decides on the host.
""",
    ),
    "steps": (
        "2026-11-26",
        """\
ResNet-50, 224 px, batch 128, channels_last (from the log of that day: the file with these rows was lost):

| | milliseconds a step |
|---|---|
| fp32 | 52.6 |
| bf16 | 34.5 |
| fp16 | 30.2 |
| bf16, torch.compile | 35.7 |
| a bare loop in bf16 | 34.0 |

In the networks at 32 px the host is the bottleneck: the kernels of small networks finish before Python launches the
next ones, and Kitae's step needed 2 ms more of the host than a bare loop (it checks for non-finite values, and saves a
copy of BatchNorm's statistics). For such a network, half precision saves memory but no time. The step has been
shortened since: on a CPU, where the device would decide, it needs 0.5 ms more than a bare step of 2.4 ms
(`benchmarks/results/host.json`), and needed 0.9 to 1.0 before. The new step has not been timed on a GPU.
""",
    ),
}


def augmentation(found: dict[str, Any]) -> str:
    rounds = next(iter(next(iter(found["works"].values()))["images_per_second"].values()))["n"]
    lines = [
        _wrapped(
            f"Images per second, from uint8 images in host memory to normalised float32 on the GPU; median of {rounds} "
            "interleaved rounds. Every image has its own random draws, except in Kornia's AutoAugment and RandAugment, "
            "which draw one policy for a whole batch."
        ),
        f"| Work | {' | '.join(WAYS.values()).format(cores=found['machine']['cores'])} |", "|---" * 5 + "|",
    ]  # fmt: skip
    for name, row in found["works"].items():
        work, side = name.split()
        medians = [row["images_per_second"].get(way, {}).get("median") for way in WAYS]
        best = max(median for median in medians if median is not None)
        cells = [
            "" if median is None else f"**{_digits(median)}**" if median == best else _digits(median)
            for median in medians
        ]
        lines.append(f"| {WORKS[work]}, {side} px | {' | '.join(cells)} |")
    left_out = {way: why for row in found["works"].values() for way, why in row["left_out"].items()}
    lines += ["", *(f"Left out: {WAYS[way].format(cores='')} ({why})." for way, why in left_out.items())]
    return "\n".join(lines).rstrip() + "\n"


def parity(found: dict[str, Any]) -> str:
    most = max(row["share_of_values"] for row in found["ops"].values())
    return _wrapped(
        "The batched executor on the GPU against the compiled one, for the same draws: of "
        f"{found['of']} ops and pipelines {found['equal']} are equal in every value. In the others at most "
        f"{100 * most:.2f} % of the values differ."
    )


def syncs(found: dict[str, Any]) -> str:
    kinds = found.get("kinds") or {"sgd": found}  # earlier results had one kind
    counts = ", ".join(f"{row['waits']} with {kind}" for kind, row in kinds.items() if row["waits"] is not None)
    return _wrapped(
        f"How often the host waits for the GPU in {found['steps']} training steps: {counts}. Whether a step is applied "
        "is decided on the GPU, and its counters are read every 25 steps."
    )


def steps(found: dict[str, Any]) -> str:
    parts = []
    for batch in dict.fromkeys(row["batch"] for row in found["networks"].values()):
        networks = {name: row for name, row in found["networks"].items() if row["batch"] == batch}
        heads = " | ".join(f"{NETWORKS.get(name, name)} | " for name in networks)
        lines = [
            f"Batch {batch}, milliseconds a step and peak memory:", "", f"| | {heads}|".replace("  ", " "),
            "|---" * (1 + 2 * len(networks)) + "|",
        ]  # fmt: skip
        for step, words in STEPS.items():
            if not any(step in row["seconds"] for row in networks.values()):
                continue
            cells: list[str] = []
            for row in networks.values():
                if step in row["seconds"]:
                    peak = row["peak_bytes"].get(step)
                    cells += [f"{1000 * row['seconds'][step]['median']:.1f}", "" if peak is None else _mib(peak)]
                else:
                    cells += ["", ""]
            lines.append(f"| {words} | {' | '.join(cells)} |")
        parts.append("\n".join([*lines, ""]))
    return "\n".join(parts)


def host(found: dict[str, Any]) -> str:
    lines = ["Milliseconds of a step on 4 images of 16 px, one thread: nearly all of it starts kernels.", ""]
    lines += ["| | milliseconds (lowest to highest) |", "|---|---|"]
    lines += [f"| {HOSTS[name]} | {_span(taken, '.2f')} |" for name, taken in found["milliseconds"].items()]
    return "\n".join(lines) + "\n"


def loop(found: dict[str, Any]) -> str:
    parts = [
        _wrapped(
            "The whole loop: reading, augmentation, steps, and a validation after each epoch, with the same network, "
            "batch and images; the bare step only steps. All but the tutorial's loop train in bfloat16 and "
            "channels_last. They take turns of whole epochs. Host: processor time of the thread that trains, for each "
            "step, with the time that it waits for the GPU in a loop."
        )
    ]
    head = [
        "loop", "images/s", "Kitae is faster by", "waits for images", "host, ms a step",
        "processor seconds for 1,000 images", "peak memory of the GPU", "of the host",
    ]  # fmt: skip
    for name, row in found["rows"].items():
        lines = [f"### {NETWORKS.get(name, name)}, batch {row['batch']}", "", f"| {' | '.join(head)} |"]
        lines.append("|---" * len(head) + "|")
        rates = row["images_per_second"]
        for one, rate in sorted(rates.items(), key=lambda item: -item[1]["median"]):
            over, waits = row["kitae_over"].get(one), row["waiting_share"].get(one)
            peak = row["device_peak_bytes"].get(one)
            cells = [
                LOOPS[one], _span(rate, ",.0f"), _span(over, ".2f") if over else "",
                "" if waits is None else f"{100 * waits:.0f} %",
                f"{row['host_milliseconds_per_step'][one]['median']:.1f}",
                f"{row['cpu_seconds_per_1000_images'][one]['median']:.2f}", "" if peak is None else _mib(peak),
                _mib(row["peak_memory_bytes"][one]),
            ]  # fmt: skip
            lines.append(f"| {' | '.join(cells)} |")
        rounds = next(iter(rates.values()))["n"]
        lines += ["", f"{rounds} rounds. Images: {row['images']}."]
        if "parts_milliseconds" in row:
            told = ", ".join(f"{part} {taken:,.2f}" for part, taken in row["parts_milliseconds"].items())
            lines.append(f"Kitae's step in milliseconds, each part waited for: {told}.")
        lines += [f"Left out: {LOOPS[one]} ({why})." for one, why in row["left_out"].items()]
        parts.append("\n".join([*lines, ""]))
    return "\n".join(parts)


def plan(found: dict[str, Any]) -> str:
    low, high = (100 * end for end in found["test"]["accuracy_interval"])
    told = [line for line in found["said"] if not line.startswith(("next:", "page:", "kitae: compiling"))]
    said = _wrapped(
        f"`{' '.join(found['command'])}` took {found['seconds_taken']:.0f} s of its {60 * found['minutes']:.0f} s, "
        f"with {found['epochs']} epochs of fine-tuning and {_mib(found['peak_memory_bytes'])} at its peak. It reached "
        f"{100 * found['test']['accuracy']:.1f} % of {found['test']['count']} test images ({low:.1f} to {high:.1f}). "
        "It printed:"
    )
    return "\n".join([said, *("    " + line.replace("\t", "  ") for line in told), ""])


def ddp(found: dict[str, Any]) -> str:
    lines = [
        _wrapped(
            "The same training with one and two processes, of a network without BatchNorm. One process with nccl forms "
            "a group of its own; two share a GPU only with gloo, since nccl refuses that, and `kitae train` does too."
        ),
        "| processes | connected by | sum of 4 MiB, ms | largest gap of losses | test loss | ResNet-18, images/s |",
        "|---" * 6 + "|",
    ]  # fmt: skip
    for name, way in found["ways"].items():
        summed, same = found["exchange"][name], found.get("same", {}).get(name)
        speed = found.get("speed", {}).get(name)
        by = f"{way['backend'] or 'nothing'}{', on one GPU' if way['share_a_gpu'] else ''}"
        cells = [
            str(way["processes"]), by, f"{1000 * summed['seconds']['median']:.2f}",
            f"{same['largest_difference_of_losses']:.1e}" if same else "",
            f"{same['test']['loss']:.4f}" if same else "", _span(speed["images_per_second"], ",.0f") if speed else "",
        ]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    lines.append("")
    if "batches" in found:
        said = "have the same hash in every way" if found["batches"]["equal"] else "DIFFER between the ways"
        on_cpu = ", on a CPU too" if "cpu" in found["batches"]["sha256"] else ""
        lines += [f"The {found['batches']['batches']} batches of two epochs {said}{on_cpu}.", ""]
    if "killed" in found:
        patience = found["killed"]["process_timeout"]
        for name, ended in found["killed"]["ways"].items():
            lines.append(
                _wrapped(
                    f"With {name}: after one was killed, all had ended within {ended['seconds']['max']:.1f} s "
                    f"(`train.process_timeout` {patience} s). One that was left said: `{ended['message'].strip()}`"
                )
            )
    if "refused" in found:
        lines.append(_wrapped(f"`kitae train` with two processes on one GPU: `{found['refused']['message']}`"))
    return "\n".join(lines).rstrip() + "\n"


SECTIONS: list[tuple[str, str, str, Callable[[dict[str, Any]], str]]] = [
    ("augment", "Augmentation", "augmentation", augmentation),
    ("parity", "Parity", "parity of the two executors", parity),
    ("syncs", "Waiting for the GPU", "how often a step waits for the GPU", syncs),
    ("steps", "A training step", "time and memory of a step", steps),
    ("host", "What a step costs the host", "what a step costs the host", host),
    ("loop", "The whole loop", "the whole loop of `kitae train` against a tutorial's loop", loop),
    ("plan", "A plan for one minute", "whether a plan for one minute holds", plan),
    ("ddp", "Several processes", "several processes, and the end of one of them", ddp),
]
TRAININGS = {
    "cifar10-strong": ("`cifar10-strong` of that day, with SGD, 30 epochs", ["gpu/cifar10-strong-30-epochs"]),
    "cifar10-speed": ("`cifar10-speed`, 9 epochs, 14 views", [f"speed/h100-9-epochs-seed{seed}" for seed in range(3)]),
}
# Of the trainings by `kitae train`, which are of 2026-11-26.
EVALUATED = """
These networks were evaluated with convolutions in TF32, torch's default on this GPU. Now they are in float32, which has
not been measured on a GPU.
"""


def trainings(folder: Path) -> str:
    """Those of `gpu.py train`, or earlier ones by `kitae train`."""
    lines = ["| Recipe | Test accuracy | Training | Machine |", "|---|---|---|---|"]
    remark = ""
    for recipe, (words, earlier) in TRAININGS.items():
        measured = folder / f"train-{recipe}.json"
        if measured.is_file():
            found = json.loads(measured.read_text())
            runs, where, notes = found["runs"], _machine(found["machine"]), ""
            words = f"`{recipe}`, {runs[0]['epochs']} epochs"
        else:
            runs = [json.loads((RESULTS / f"{name}.json").read_text()) for name in earlier]
            where, notes = _machine(runs[0]["machine"]), runs[0]["note"].rpartition(", ")[2]
            remark = EVALUATED
        values = [100 * run["test"]["accuracy"] for run in runs]
        if len(values) > 1:
            mean, low, high = mean_interval(values)
            reached = f"{mean:.1f} % ({low:.1f} to {high:.1f}, mean of {len(values)} seeds)"
        else:
            low, high = (100 * end for end in runs[0]["test"]["accuracy_interval"])
            reached = f"{values[0]:.1f} % ({low:.1f} to {high:.1f}, one seed)"
        seconds = statistics.fmean(run["training_seconds"] for run in runs)
        took = f"{seconds:.0f} s" if seconds >= 100 else f"{seconds:.1f} s"
        lines.append(f"| {words} | {reached} | {', '.join(filter(None, [took, notes]))} | {where} |")
    return "\n".join(lines) + "\n" + remark


def text(folder: Path = RESULTS / "gpu") -> str:
    """The page."""
    sections, missing = [], []
    for name, title, about, write in SECTIONS:
        path = folder / f"{name}.json"
        if not path.is_file():
            missing.append(about)
            continue
        found = json.loads(path.read_text())
        day, remark = REMARKS.get(name, ("", ""))
        remarks = [remark] if remark and found["machine"]["when"].startswith(day) else []
        sections.append("\n".join([f"## {title}\n", write(found), *remarks, f"{_machine(found['machine'])}.\n"]))
    sections.append("## Trainings\n\n" + trainings(folder))
    told = [_wrapped(f"Not measured on a GPU yet: {'; '.join(missing)}.")] if missing else []
    if not (folder / "ddp.json").is_file():
        sections.append(ALONE)
    return "\n".join([HEAD, *told, *sections])


def _wrapped(paragraph: str) -> str:
    return "\n".join(textwrap.wrap(paragraph, 120, break_long_words=False, break_on_hyphens=False)) + "\n"


def _digits(value: float) -> str:
    return f"{float(format(value, '.3g')):,.0f}"


def _span(found: dict[str, Any], form: str) -> str:
    return f"{found['median']:{form}} ({found['min']:{form}} to {found['max']:{form}})"


def _mib(count: int) -> str:
    return f"{count / 2**20:,.0f} MiB"


def _machine(machine: dict[str, Any]) -> str:
    what: Sequence[str] = [machine.get("gpu") or machine["processor"], f"{machine['cores']} CPU cores"]
    return ", ".join([*what, f"torch {machine['versions']['torch']}", machine["when"][:10]])
