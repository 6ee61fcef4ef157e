"""Check report pages with axe-core: docs/guides/report.md shows the result, benchmarks/results/pages.json holds it.

    python scripts/check_pages.py run=runs/demo compression=runs/demo-small study=studies/results/ledger-trained
    python scripts/check_pages.py comparison=runs/demo,runs/plain --axe axe.min.js

Each page is opened at 390 and 1280 pixels, light and dark, with its details folded and then unfolded. Checked are
axe-core's rules (WCAG 2.1 A and AA and its best practices; `unsure` has the serious ones that it cannot decide),
whether the page is wider than the window, its bytes, and that it asks for nothing from elsewhere; it exits with 1 where
one of these fails. Needs Chromium (Debian's package `chromium`, or --browser) and axe-core (`npm pack axe-core`, MPL
2.0; not a part of Kitae).
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from html import unescape
from pathlib import Path
from typing import Any

from kitae.files import read_json, write_json
from screenshots import FLAGS, SCHEMES, WIDTHS, narrow, pages, require

ROOT = Path(__file__).resolve().parents[1]
OUT = ROOT / "benchmarks" / "results" / "pages.json"
_ELSEWHERE = re.compile(r"""(?:src|href|url)\s*[=(]\s*["']?(https?://[^"')\s>]+)""")
_POLICY = re.compile(r"<meta[^>]*Content-Security-Policy[^>]*>")  # it allows no script, so no axe either
_LINK = re.compile(r"""<a\s[^>]*href="https?://[^"]*\"""")
# The frame of a narrow page is another origin, so the result is sent to it.
_ASK = """<script>{axe}</script><script>
addEventListener("load", async () => {{
  const told = results => results.map(v => ({{rule: v.id, impact: v.impact, places: v.nodes.length,
    first: v.nodes[0].html.slice(0, 200)}}));
  const look = async unfolded => {{
    for (const one of document.querySelectorAll("details")) one.open = unfolded;
    const found = await axe.run(document, {{resultTypes: ["violations", "incomplete"]}});
    const violations = told(found.violations);
    const unsure = told(found.incomplete.filter(v => v.impact === "serious" || v.impact === "critical"));
    return {{violations, unsure, rules: found.passes.length + violations.length,
      overflow: document.documentElement.scrollWidth - document.documentElement.clientWidth}};
  }};
  const said = {{version: axe.version, folded: await look(false), unfolded: await look(true)}};
  (parent === window ? window : parent).postMessage(JSON.stringify(said), "*");
}});
</script>"""
_HEAR = """<script>addEventListener("message", event => {
  const out = document.createElement("pre"); out.id = "axe-result"; out.textContent = event.data;
  document.body.append(out);
});</script>"""


def requests_of(html: str) -> list[str]:
    """Addresses that a page loads something from; links are not loaded."""
    return _ELSEWHERE.findall(_LINK.sub("", html))


def checked(browser: str, page: Path, axe: str, width: int, height: int, scheme: str) -> dict[str, Any]:
    """What axe-core finds on a page at a width and in a colour scheme: its `version`, and `folded` and `unfolded`."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        asking = folder / "page.html"
        text = _POLICY.sub("", page.read_text(encoding="utf-8"))
        heard = _HEAR if width > 500 else ""
        asking.write_text(text + heard + _ASK.format(axe=axe), encoding="utf-8")
        shown = asking
        if width < 500:
            shown = narrow(asking, folder)
            shown.write_text(_HEAR + shown.read_text())
        flags = [
            *FLAGS, f"--user-data-dir={folder / 'profile'}", f"--window-size={max(width, 500)},{height}",
            f"--blink-settings=preferredColorScheme={SCHEMES[scheme]}", "--virtual-time-budget=60000", "--dump-dom",
        ]  # fmt: skip
        done = subprocess.run(
            [browser, *flags, shown.as_uri()], check=True, capture_output=True, text=True, timeout=300
        )
    found = re.search(r'<pre id="axe-result">(.*?)</pre>', done.stdout, re.DOTALL)
    if found is None:
        raise SystemExit(f"{page}: axe-core gave no result at {width} px, {scheme}")
    result: dict[str, Any] = json.loads(unescape(found[1]))
    return result


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pages", nargs="+", metavar="NAME=FOLDER[,FOLDER...]")
    parser.add_argument("--axe", type=Path, default=Path("axe.min.js"))
    parser.add_argument("--browser", default="chromium")
    given = parser.parse_args()
    if not given.axe.is_file():
        raise SystemExit(f"{given.axe}: no such file; npm pack axe-core, and give --axe package/axe.min.js")
    axe = given.axe.read_text(encoding="utf-8").replace("</script", "<\\/script")
    require(given.browser)
    version = subprocess.run([given.browser, "--version"], check=True, capture_output=True, text=True).stdout.strip()
    results = read_json(OUT) if OUT.is_file() else {"pages": {}}
    failed = False
    with tempfile.TemporaryDirectory() as scratch:
        for name, page in pages(given.pages, Path(scratch)):
            elsewhere = requests_of(page.read_text(encoding="utf-8"))
            if elsewhere:
                failed = True
                print(f"{name}: asks for {', '.join(elsewhere)}")
            views = {}
            for width, height in WIDTHS.items():
                for scheme in SCHEMES:
                    found = checked(given.browser, page, axe, width, height, scheme)
                    results["axe"] = found.pop("version")
                    for details, seen in found.items():
                        views[f"{width} {scheme} {details}"] = seen
                        failed |= bool(seen["violations"]) or seen["overflow"] > 0
                        for kind in ("violations", "unsure"):
                            print(f"{name}, {width} px, {scheme}, {details}: {len(seen[kind])} {kind}", seen[kind])
                        if seen["overflow"] > 0:
                            print(f"{name}, {width} px, {scheme}, {details}: {seen['overflow']} px too wide")
            size = page.stat().st_size
            results["pages"][name] = {"bytes": size, "from_elsewhere": elsewhere, "views": views}
    results["browser"] = version
    write_json(OUT, results)
    print(OUT)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
