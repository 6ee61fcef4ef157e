"""How fast augmentation is: every op and the usual pipelines, against the other libraries, in one run.

    python benchmarks/augment.py                          all of it (about 12 minutes on two quiet cores)
    python benchmarks/augment.py --quick                  does it run? (figures mean nothing)
    python benchmarks/augment.py --only standard --only rotate --size 32
    python benchmarks/augment.py --docs-only              tables and charts from results that are there, and from those
                                                          of thread_profile.py

What is compared, and what is inside the clock, is written in `contestants.py`. Every contestant has worker processes of
its own, which wait while others run. A work is measured in rounds: in each round every contestant is timed once, for a
fraction of a second, in an order that moves on by one from round to round. So a machine that slows down slows everyone
down, and what is reported are medians over rounds of rates, and of ratios *within* a round.

Cores are equal: `one` is one process with one thread; `all` is all cores, for libraries that go image by image one
process a core (each with the images in its own memory, told by a line of text to start, so that moving images between
processes is not measured: the sum of their rates counts), for batched libraries one process whose threads are the cores
or one process a core, whichever is faster; ours is one process with threads. Single ops are measured in `all`, ours and
the limit in `one` too; `--modes one,all` measures everyone in both.

The environments of kornia and of the two albumentations are made by `sh benchmarks/peers.sh`; a library that is not
there is named in the results and left out. Everyone runs with an allocator that keeps freed memory: glibc otherwise
gives large batches back to the system and faults them in again, which costs batched torch dearly.

Results go to benchmarks/results/augment.json after every work; a full run writes docs/benchmarks/ too.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import augment_docs
import common
import numpy as np
from contestants import BY_NAME, CONTESTANTS, WORKS, Contestant, Variant, Work

PATIENCE = 300.0  # seconds that a worker may take to answer
DEATHS = 3  # of a contestant's workers, after which it is left out
SETTINGS = {  # seconds a round, rounds
    "headline": (0.15, 5),
    "op": (0.08, 5),
}
CALIBRATION = 0.05  # seconds, to choose among variants
MODES = ("one", "all")


class WorkerError(Exception):
    """A worker died, or did not answer."""


class Worker:
    """A process that holds one contestant."""

    def __init__(
        self, contestant: type[Contestant], rank: int, python: Path, folder: Path, quick: bool, cores: int
    ) -> None:
        self._log = tempfile.TemporaryFile()  # noqa: SIM115  # lives as long as the process
        threads = str(cores if "threads" in contestant.all_cores and rank == 0 else 1)
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": threads,
            "MKL_NUM_THREADS": threads,
            "OPENBLAS_NUM_THREADS": "1",
            "MALLOC_MMAP_THRESHOLD_": str(1 << 30),
            "MALLOC_TRIM_THRESHOLD_": str(2**31 - 1),
            "NO_ALBUMENTATIONS_UPDATE": "1",
            "ALBUMENTATIONS_NO_TELEMETRY": "1",
            "PYTHONWARNINGS": "ignore",
        }
        script = Path(__file__).with_name("contestants.py")
        self.process = subprocess.Popen(
            [str(python), str(script), contestant.name, str(rank), str(folder), str(int(quick))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env=environment,
        )
        self._rest = b""

    def send(self, command: dict[str, Any]) -> None:
        """Ask; the answer is fetched by `answer`."""
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps(command).encode() + b"\n")
            self.process.stdin.flush()
        except OSError as error:
            raise WorkerError(self._epitaph()) from error

    def answer(self) -> dict[str, Any]:
        """The next answer. Raises WorkerError where there is none."""
        assert self.process.stdout is not None
        end = time.monotonic() + PATIENCE
        while b"\n" not in self._rest:
            ready, _, _ = select.select([self.process.stdout], [], [], max(0.0, end - time.monotonic()))
            if not ready:
                raise WorkerError(f"no answer within {PATIENCE:.0f} s")
            part = os.read(self.process.stdout.fileno(), 1 << 16)
            if not part:
                raise WorkerError(self._epitaph())
            self._rest += part
        line, _, self._rest = self._rest.partition(b"\n")
        found: dict[str, Any] = json.loads(line)
        return found

    def _epitaph(self) -> str:
        code = self.process.wait()
        self._log.seek(0)
        lines = self._log.read().decode(errors="replace").strip().splitlines()
        return f"the worker ended with status {code}: {lines[-1] if lines else 'no message'}"

    def stop(self) -> None:
        """End the process."""
        try:
            if self.process.stdin is not None:
                self.process.stdin.close()  # a worker ends with its input
            self.process.wait(5)
        except (OSError, subprocess.TimeoutExpired):
            self.process.kill()
            self.process.wait()
        if self.process.stdout is not None:
            self.process.stdout.close()
        self._log.close()


@dataclass
class Crew:
    """The worker processes of one contestant."""

    contestant: type[Contestant]
    python: Path
    folder: Path
    quick: bool
    cores: int
    workers: list[Worker] = field(default_factory=list)
    about: dict[str, Any] = field(default_factory=dict)
    deaths: int = 0

    def hire(self, count: int) -> None:
        """Have at least so many workers."""
        fresh = [
            Worker(self.contestant, rank, self.python, self.folder, self.quick, self.cores)
            for rank in range(len(self.workers), count)
        ]
        self.workers += fresh
        for worker in fresh:
            self.about = worker.answer()
            if "error" in self.about:
                raise WorkerError(str(self.about["error"]))

    def ask(self, count: int, command: dict[str, Any]) -> list[dict[str, Any]]:
        """Ask the first `count` workers at once. Raises WorkerError where one dies."""
        try:
            self.hire(count)
            for worker in self.workers[:count]:
                worker.send(command)
            return [worker.answer() for worker in self.workers[:count]]
        except WorkerError:
            self.deaths += 1
            self.dismiss()
            raise

    def dismiss(self) -> None:
        """End all workers."""
        for worker in self.workers:
            worker.stop()
        self.workers = []


@dataclass
class Entry:
    """A contestant in one mode of one work, and what was measured of it."""

    crew: Crew
    mode: str
    key: str  # its name in the results; the control differs from its contestant
    processes: int = 1
    threads: int = 1
    build: int = -1
    variant: Variant = field(default_factory=dict)
    about: dict[str, Any] = field(default_factory=dict)
    rates: list[float] = field(default_factory=list)
    last: dict[str, Any] = field(default_factory=dict)

    def round(self, seconds: float) -> float:
        """Images a second in one round: the sum over the processes. Raises WorkerError, ValueError."""
        command = {"do": "round", "id": self.build, "seconds": seconds, "at": time.monotonic() + 0.003}
        answers = self.crew.ask(self.processes, command)
        for answer in answers:
            if "error" in answer:
                raise ValueError(answer["error"])
        self.last = answers[0]
        return float(sum(answer["images"] / answer["seconds"] for answer in answers))

    def result(self) -> dict[str, Any]:
        """For the results file."""
        return {
            **common.spread(self.rates),
            "processes": self.processes,
            "threads": self.threads,
            **({"variant": self.variant} if self.variant else {}),
            **({"note": self.about["note"]} if self.about.get("note") else {}),
            "same_job": self.about.get("same_job", True),
            "output": {k: round(self.last[k], 4) for k in ("low", "high", "mean", "std")},
        }


class Benchmark:
    """One run."""

    def __init__(self, options: argparse.Namespace, folder: Path) -> None:
        self.options, self.folder = options, folder
        self.cores: int = options.cores
        self.builds = itertools.count()
        self.sources: dict[int, str] = {}
        self.crews: dict[str, Crew] = {}
        self.absent: dict[str, str] = {}
        for name in options.contestants:
            contestant = CONTESTANTS[name]
            python = Path(sys.executable)
            if contestant.environment:
                python = options.peers / contestant.environment / "bin" / "python"
                if not python.exists():
                    self.absent[name] = "not installed: sh benchmarks/peers.sh makes its environment"
                    continue
            self.crews[name] = Crew(contestant, python, folder, options.quick, self.cores)

    # Preparing -------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start a worker of each contestant; who cannot start is left out, with the reason."""
        for name, crew in list(self.crews.items()):
            try:
                crew.hire(1)
            except WorkerError as error:
                crew.dismiss()
                self.absent[name] = str(error)
                del self.crews[name]

    def pool(self, work: Work, size: int) -> None:
        """Write the images of a work where the workers find them."""
        for side in {size, work.source(size)}:
            if side not in self.sources:
                count = 32 if self.options.quick else (2048 if side <= 64 else 256)
                images, self.sources[side] = common.images(side, count, self.options.data)
                np.save(self.folder / f"images-{side}.npy", images)

    def entries(self, work: Work, size: int, failures: dict[str, Any]) -> list[Entry]:
        """Who takes part in a work, built and in its fastest variant."""
        found: list[Entry] = []
        for name, crew in self.crews.items():
            if crew.deaths >= DEATHS:
                failures["failed"][name] = "left out: its workers died too often"
                continue
            both = self.options.both or work.kind == "headline" or name in ("kitae", "copy")
            modes = list(MODES) if both else self.options.modes
            if self.cores == 1:
                modes = ["one"]
            known: Variant | None = None
            try:
                crew.ask(len(crew.workers), {"do": "clear"})
                for mode in modes:
                    entry = self.settle(crew, mode, work, size, known)
                    # What is fastest for one process of one thread is so for many of them.
                    known = entry.variant if "processes" in crew.contestant.all_cores else None
                    found.append(entry)
                    if name == "kitae" and work.kind == "headline":
                        found.append(
                            Entry(crew, mode, "kitae (control)", 1, entry.threads, entry.build, {}, entry.about)
                        )
            except MissingWork as missing:
                failures["missing"][name] = str(missing)
            except (WorkerError, ValueError) as error:
                failures["failed"][name] = str(error)
                found = [e for e in found if e.crew is not crew]
        return found

    def settle(self, crew: Crew, mode: str, work: Work, size: int, known: Variant | None) -> Entry:
        """Build a contestant for a work in a mode, in the fastest of its variants."""
        ways = [(1, 1)]
        if mode == "all":
            ways = [(self.cores, 1) if way == "processes" else (1, self.cores) for way in crew.contestant.all_cores]
        variants = [known] if known is not None else crew.contestant.variants(work.name)
        candidates: list[Entry] = []
        problem = ""
        for variant, (processes, threads) in itertools.product(variants, ways):
            entry = Entry(crew, mode, crew.contestant.name, processes, threads, next(self.builds), variant)
            command = {
                "do": "build",
                "id": entry.build,
                "work": work.name,
                "size": size,
                "threads": threads,
                "variant": variant,
            }
            answers = crew.ask(processes, command)
            for answer in answers:
                if "missing" in answer:
                    raise MissingWork(answer["missing"])
                problem = answer.get("error", problem)
            if not any("error" in answer for answer in answers):
                entry.about = answers[0]
                candidates.append(entry)
        if not candidates:
            raise ValueError(problem)
        if len(candidates) == 1:
            return candidates[0]
        seconds = min(CALIBRATION, self.options.seconds or CALIBRATION)
        return max(candidates, key=lambda e: e.round(seconds))

    # Measuring -------------------------------------------------------------------------------------------------------

    def measure(self, work: Work, size: int) -> dict[str, Any]:
        """All rounds of one work at one size."""
        began = time.monotonic()
        self.pool(work, size)
        failures: dict[str, Any] = {"missing": {}, "failed": {}, "absent": dict(self.absent)}
        entries = self.entries(work, size, failures)
        seconds, rounds = SETTINGS[work.kind]
        seconds, rounds = self.options.seconds or seconds, self.options.rounds or rounds
        for turn in range(rounds):
            shift = turn % max(len(entries), 1)
            for entry in [*entries[shift:], *entries[:shift]]:
                if entry.crew.contestant.name in failures["failed"]:
                    continue
                try:
                    entry.rates.append(entry.round(seconds))
                except (WorkerError, ValueError) as error:
                    failures["failed"][entry.crew.contestant.name] = str(error)
            entries = [e for e in entries if e.crew.contestant.name not in failures["failed"]]
        modes = {m: {e.key: e.result() for e in entries if e.mode == m and e.rates} for m in MODES}
        result = {
            "work": work.name,
            "kind": work.kind,
            "text": work.text,
            "size": size,
            "images": self.sources[work.source(size)],
            "seconds_per_round": seconds,
            "modes": {m: found for m, found in modes.items() if found},
            "summary": summary(modes),
            **{k: v for k, v in failures.items() if v},
            "took_seconds": round(time.monotonic() - began, 1),
        }
        return result

    def close(self) -> None:
        """End all workers."""
        for crew in self.crews.values():
            crew.dismiss()


class MissingWork(Exception):  # noqa: N818  # not an error: many libraries lack something
    """The contestant has no such thing."""


# What the rates say --------------------------------------------------------------------------------------------------


def fastest(entries: dict[str, Any], wanted: Callable[[str], bool]) -> str | None:
    """The name with the highest median among those who did the same job."""
    names = [n for n, e in entries.items() if wanted(n) and e["same_job"]]
    return max(names, key=lambda n: float(entries[n]["median"]), default=None)


def summary(modes: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Of each mode: ours over the faster torchvision, over the fastest peer, and as a share of the copy."""
    out: dict[str, Any] = {}
    for mode, entries in modes.items():
        ours = entries.get("kitae")
        if ours is None:
            continue
        line: dict[str, Any] = {}
        for key, wanted in (
            ("torchvision", lambda n: n.startswith("torchvision")),
            ("peer", lambda n: n in CONTESTANTS and CONTESTANTS[n].peer),
            ("copy", lambda n: n == "copy"),
            ("control", lambda n: n == "kitae (control)"),
        ):
            name = fastest(entries, wanted)
            if name is not None:
                line[key] = {"name": name, **common.ratio(ours, entries[name])}
        out[mode] = line
    one, every = modes.get("one", {}), modes.get("all", {})
    out["all_over_one"] = {
        name: common.ratio(every[name], one[name])
        for name in ("kitae", "kitae-torch", "copy")
        if name in one and name in every
    }
    return out


GOALS = [  # works, size, against, at least
    (("standard",), 32, "torchvision", 30.0),
    (("standard",), 224, "torchvision", 10.0),
    (("standard",), 32, "peer", 4.0),
    (("standard",), 224, "peer", 4.0),
    (("auto_augment", "rand_augment", "trivial_augment_wide"), 32, "torchvision", 20.0),
    (("auto_augment", "rand_augment", "trivial_augment_wide"), 224, "torchvision", 6.0),
]


def goals(works: Sequence[dict[str, Any]], cores: int) -> list[dict[str, Any]]:
    """What was asked for, and what was reached (all cores each)."""
    mode = "all" if cores > 1 else "one"
    at = {(w["work"], w["size"]): w for w in works}
    out: list[dict[str, Any]] = []
    for names, size, against, least in GOALS:
        for name in names:
            reached = at.get((name, size), {}).get("summary", {}).get(mode, {}).get(against)
            if reached is not None:
                out.append(
                    {
                        "goal": f"{name}, {size} px: at least {least:g} x {against}",
                        "reached": reached["median"],
                        "against": reached["name"],
                        "ok": reached["median"] >= least,
                    }
                )
    for size in sorted({w["size"] for w in works}):
        here = [w for w in works if w["size"] == size]
        ops = {w["work"]: w["summary"].get(mode, {}).get("peer") for w in here if w["kind"] == "op"}
        out += _all_of(f"{size} px, every op: no slower than the fastest peer", ops, 1.0)
        if cores == 2:
            threads = {w["work"]: w["summary"].get("all_over_one", {}).get("kitae") for w in here}
            out += _all_of(f"{size} px, every work: two threads at least 1.8 x one", threads, 1.8)
    return out


def _all_of(goal: str, found: dict[str, dict[str, Any] | None], least: float) -> list[dict[str, Any]]:
    """A goal that many works have to reach: the lowest of them, and those that miss it."""
    ratios = {name: float(f["median"]) for name, f in found.items() if f is not None}
    if not ratios:
        return []
    lowest = min(ratios, key=lambda name: ratios[name])
    misses = {name: round(value, 3) for name, value in sorted(ratios.items(), key=lambda i: i[1]) if value < least}
    text = f"lowest, {lowest}; {len(ratios) - len(misses)} of {len(ratios)} reach it"
    return [{"goal": goal, "reached": ratios[lowest], "against": text, "ok": not misses, "misses": misses}]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few images, short rounds: does it run?")
    parser.add_argument("--only", action="append", choices=list(BY_NAME), metavar="WORK", help="this work; repeatable")
    parser.add_argument("--kind", choices=["headline", "op"], help="only works of this kind")
    parser.add_argument("--size", action="append", type=int, help="image side; repeatable (32 and 224)")
    parser.add_argument("--cores", type=int, default=None, help="cores for everyone (all that there are)")
    parser.add_argument("--rounds", type=int, default=None)
    parser.add_argument("--seconds", type=float, default=None, help="of a round")
    parser.add_argument(
        "--modes", choices=["one", "all", "one,all"], default=None, metavar="MODES", help="of single ops (all)"
    )
    parser.add_argument("--contestants", default=None, help="names, with commas between: " + ", ".join(CONTESTANTS))
    parser.add_argument("--peers", type=Path, default=common.ROOT / ".venv-peers", help="folder of their environments")
    parser.add_argument(
        "--data", type=Path, default=None, help="folder of cifar10.parquet and imagenette-small.parquet"
    )
    parser.add_argument("--out", type=Path, default=None, help="results, JSON")
    parser.add_argument("--docs", type=Path, default=None, help="folder for the page and its charts")
    parser.add_argument("--docs-only", action="store_true", help="no measuring: the page from the results in --out")
    options = parser.parse_args(arguments)
    chosen = ("quick", "only", "kind", "size", "contestants", "modes", "rounds", "seconds")
    full = not any(getattr(options, name) for name in chosen)
    out = options.out or (common.RESULTS if full or options.docs_only else common.SCRATCH) / "augment.json"
    docs = options.docs or (common.ROOT / "docs" / "benchmarks" if (full and options.out is None) else None)
    if options.docs_only and not out.is_file():
        parser.error(f"{out}: no such file; run this without --docs-only first")
    if options.docs_only:
        print(augment_docs.write(common.load(out), options.docs or common.ROOT / "docs" / "benchmarks", profile(out)))
        return 0
    options.contestants = (options.contestants or ",".join(CONTESTANTS)).split(",")
    unknown = [n for n in options.contestants if n not in CONTESTANTS]
    if unknown:
        parser.error(f"unknown contestant {unknown[0]!r}; there are {', '.join(CONTESTANTS)}")
    options.both = options.modes == "one,all"
    options.modes = (options.modes or "all").split(",")
    options.cores = min(options.cores or common.available_cores(), common.available_cores())
    if options.quick:
        options.rounds, options.seconds = options.rounds or 2, options.seconds or 0.01
    common.keep_to(options.cores)
    works = [w for w in WORKS if (not options.only or w.name in options.only) and options.kind in (None, w.kind)]
    sizes = options.size or [32, 224]
    results: dict[str, Any] = {
        "what": "images per second of augmentation, parameter drawing and normalisation to float32 included",
        "complete": False,
        "quick": options.quick,
        "machine": common.hardware(options.cores),
        "settings": {
            "cores": options.cores,
            "sizes": sizes,
            "kinds": {k: {"seconds": s, "rounds": r} for k, (s, r) in SETTINGS.items()},
            "rounds": options.rounds,
            "seconds": options.seconds,
        },
    }
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        benchmark = Benchmark(options, Path(folder))
        try:
            benchmark.start()
            results["contestants"] = {
                name: {
                    "label": CONTESTANTS[name].label,
                    "configuration": CONTESTANTS[name].configuration,
                    **(
                        {"absent": benchmark.absent[name]}
                        if name in benchmark.absent
                        else {"versions": benchmark.crews[name].about["versions"]}
                    ),
                }
                for name in options.contestants
            }
            results["works"] = []
            for work, size in itertools.product(works, sizes):
                found = benchmark.measure(work, size)
                results["works"].append(found)
                results["goals"] = goals(results["works"], options.cores)
                results["took_seconds"] = round(time.monotonic() - began, 1)
                common.save(out, results)
                print(line(found), flush=True)
        finally:
            benchmark.close()
    results["complete"] = full
    results["machine"]["load_average_after"] = common.hardware()["load_average"]
    common.save(out, results)
    print(f"results: {out}")
    if docs is not None:
        print(f"page: {augment_docs.write(results, docs, profile(out))}")
    return 0


def profile(out: Path) -> dict[str, Any] | None:
    """What `thread_profile.py` has measured, beside the results; None where it has not run."""
    found = out.with_name("thread_profile.json")
    return common.load(found) if found.is_file() else None


def line(found: dict[str, Any]) -> str:
    """One work on one line."""
    mode = "all" if "all" in found["modes"] else "one"
    entries, short = found["modes"].get(mode, {}), found["summary"].get(mode, {})
    parts = [f"{found['work']:22} {found['size']:3} px"]
    if "kitae" in entries:
        parts.append(f"{common.text_number(entries['kitae']['median']):>9} img/s")
    parts += [
        f"{short[key]['median']:6.2f} x {short[key]['name']}" for key in ("torchvision", "peer", "copy") if key in short
    ]
    two = found["summary"].get("all_over_one", {}).get("kitae")
    if two is not None:
        parts.append(f"all/one {two['median']:.2f}")
    if found.get("failed"):
        parts.append("FAILED: " + ", ".join(f"{n} ({why})" for n, why in found["failed"].items()))
    return "  ".join(parts) + f"  [{found['took_seconds']} s]"


if __name__ == "__main__":
    sys.exit(main())
