"""Pictures of report pages, at two widths, light and dark: docs/images/pages/NAME-WIDTH-SCHEME.png

    python scripts/screenshots.py run=runs/demo compression=runs/demo-small study=studies/results/ledger-trained
    python scripts/screenshots.py comparison=runs/demo,runs/plain

Needs Chromium (Debian's package `chromium`, or --browser).
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from PIL import Image

from kitae.reporting.page import compare, report

OUT = Path(__file__).resolve().parents[1] / "docs" / "images" / "pages"
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip
WIDTHS = {1280: 1600, 390: 1400}  # and how much of the page is shown
SCHEMES = {"light": 1, "dark": 0}


def require(browser: str) -> None:
    """Raises SystemExit where there is no such program."""
    if shutil.which(browser) is None:
        raise SystemExit(f"{browser}: no such program; install Debian's package chromium, or give --browser")


def shoot(browser: str, page: Path, out: Path, width: int, height: int, scheme: str) -> None:
    with tempfile.TemporaryDirectory() as profile:
        flags = [
            *FLAGS, f"--user-data-dir={profile}", f"--window-size={max(width, 500)},{height}",
            f"--blink-settings=preferredColorScheme={SCHEMES[scheme]}", f"--screenshot={out}",
        ]  # fmt: skip
        subprocess.run([browser, *flags, page.resolve().as_uri()], check=True, capture_output=True, timeout=120)
    with Image.open(out) as image:  # few colours: a third of the bytes
        image.convert("RGB").quantize(128).save(out, optimize=True)


def narrow(page: Path, folder: Path) -> Path:
    """A page that shows another in a frame of 390 pixels: Chromium's window is never narrower than 500."""
    frame = folder / "frame.html"
    frame.write_text(
        f'<body style="margin:0"><iframe src="{page.resolve().as_uri()}" width="390" height="1400" style="border:0">'
        "</iframe></body>"
    )
    return frame


def pages(pairs: Sequence[str], scratch: Path) -> Iterator[tuple[str, Path]]:
    """The name and the newly written page of each NAME=FOLDER[,FOLDER...]; several folders are compared."""
    for pair in pairs:
        name, _, folders = pair.partition("=")
        if not folders:
            raise SystemExit(f"{pair}: write NAME=FOLDER, or NAME=FOLDER,FOLDER")
        paths = [Path(folder) for folder in folders.split(",")]
        yield name, report(paths[0]) if len(paths) == 1 else compare(paths, scratch / "comparison.html")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pages", nargs="+", metavar="NAME=FOLDER[,FOLDER...]")
    parser.add_argument("--browser", default="chromium")
    given = parser.parse_args()
    require(given.browser)
    OUT.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        for name, page in pages(given.pages, Path(scratch)):
            for width, height in WIDTHS.items():
                for scheme in SCHEMES:
                    out = OUT / f"{name}-{width}-{scheme}.png"
                    shown = page if width > 500 else narrow(page, Path(scratch))
                    shoot(given.browser, shown, out, width, height, scheme)
                    if width < 500:
                        with Image.open(out) as image:
                            image.crop((0, 0, width, height)).save(out, optimize=True)
                    print(out)


if __name__ == "__main__":
    main()
