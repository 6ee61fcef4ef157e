"""Does `kitae train DATA --minutes M` end with its minutes, alone and beside busy processes?

    python benchmarks/minutes.py --minutes 1 3 10 --seeds 0
    python benchmarks/minutes.py --set photos-mini --minutes 0.3 --seeds 0 --out runs/minutes.json    does it run?

For each of the minutes and seeds, the command runs twice, one after the other: with the machine to itself, and beside
as many processes as there are cores, which multiply matrices without a pause. The busy ones begin before the command
and end after it. Both begin with nothing decoded, and have the same splits, which are those of `quality.py`. Rows that
are in --out already are not run again.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import common
from quality import run, write_lists


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--set", default="trashnet", help="as `quality.py --sets`")
    parser.add_argument("--minutes", nargs="+", type=float, default=[1.0, 3.0, 10.0])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--out", type=Path, default=common.RESULTS / "minutes.json")
    given = parser.parse_args(arguments)
    cores = common.available_cores()
    here = common.hardware(cores)
    results = common.load(given.out) if given.out.is_file() else {"what": __doc__, "machine": here}
    if results["machine"]["processor"] != here["processor"]:
        raise SystemExit(f"minutes.py: --out {given.out}: has rows of another machine; choose another file")
    rows = results.setdefault("rows", [])
    done = {(row["set"], row["minutes"], row["seed"], row["beside"]) for row in rows}
    lists = write_lists(given.set, given.seeds, common.SCRATCH / "quality")
    for seed in given.seeds:
        for minutes in given.minutes:
            for beside in (0, cores):
                if (given.set, minutes, seed, beside) in done:
                    continue
                with common.busy(beside):
                    row = run("kitae", lists[seed], minutes, seed)
                share = row["seconds"] / (60 * minutes)
                rows.append({"set": given.set, "minutes": minutes, "seed": seed, "beside": beside, **row})
                common.save(given.out, results)
                print(f"{minutes:g} min, beside {beside}: {share:.2f} of them, {row['accuracy']:.3f}", flush=True)
    print(f"results: {given.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
