"""The check of pages: what a page asks for from elsewhere, and what a browser says of it."""

from __future__ import annotations

import json
import sys
from html import escape
from pathlib import Path

import pytest

import check_pages
from check_pages import checked, main, requests_of

# Lines of a browser that copies the wide page that it is given.
KEEP = """
if '--dump-dom' in sys.argv and not sys.argv[-1].endswith('frame.html'):
    import shutil
    shutil.copyfile(sys.argv[-1].removeprefix('file://'), {!r})
"""


@pytest.mark.parametrize(
    ("html", "found"),
    [
        ('<script src="https://cdn.example/x.js"></script>', ["https://cdn.example/x.js"]),
        ('<link rel="stylesheet" href="http://example.org/x.css">', ["http://example.org/x.css"]),
        ("<style>body{background:url(https://example.org/x.png)}</style>", ["https://example.org/x.png"]),
        ('<a href="https://example.org/page">a link is not loaded</a>', []),
        ('<img src="data:image/png;base64,AAAA">', []),
    ],
)
def test_what_a_page_loads_from_elsewhere(html: str, found: list[str]) -> None:
    assert requests_of(html) == found


def browser(folder: Path, said: str) -> Path:
    """A program that is called as Chromium is, and prints this page."""
    path = folder / "browser"
    path.write_text(f"#!{sys.executable}\nimport sys\nprint({said!r} if '--dump-dom' in sys.argv else 'Browser 1')\n")
    path.chmod(0o755)
    return path


def test_the_result_is_read_from_the_page_that_the_browser_prints(tmp_path: Path) -> None:
    page, result = tmp_path / "page.html", {"violations": [{"rule": "image-alt"}], "overflow": 12, "rules": 40}
    page.write_text("<html><body></body></html>")
    said = f'<body><pre id="axe-result">{escape(json.dumps(result))}</pre></body>'
    for width in (390, 1280):
        assert checked(str(browser(tmp_path, said)), page, "let axe", width, 800, "dark") == result


@pytest.mark.parametrize(
    ("violations", "overflow", "loads", "status"),
    [
        ([], 0, "", 0),
        ([{"rule": "image-alt", "impact": "critical", "places": 1}], 0, "", 1),
        ([], 12, "", 1),
        ([], 0, '<img src="https://example.org/x.png">', 1),
    ],
)
def test_details_are_folded_and_unfolded_and_what_axe_cannot_decide_is_kept(
    violations: list[dict[str, object]], overflow: int, loads: str, status: int, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    page, axe, out = tmp_path / "page.html", tmp_path / "axe.min.js", tmp_path / "pages.json"
    page.write_text(f"<html><body><details><p>folded</p></details>{loads}</body></html>")
    axe.write_text("let axe")
    unsure = [{"rule": "color-contrast", "impact": "serious", "places": 2, "first": "<p>"}]
    folded = {"violations": [], "unsure": [], "overflow": 0, "rules": 40}
    unfolded = {**folded, "unsure": unsure, "violations": violations, "overflow": overflow}
    result = {"version": "4", "folded": folded, "unfolded": unfolded}
    said = f'<body><pre id="axe-result">{escape(json.dumps(result))}</pre></body>'
    program = browser(tmp_path, said)
    program.write_text(program.read_text() + KEEP.format(str(tmp_path / "asked.html")))
    monkeypatch.setattr(check_pages, "OUT", out)
    monkeypatch.setattr(check_pages, "pages", lambda *_: [("run", page)])
    monkeypatch.setattr(sys, "argv", ["check_pages.py", "run=r", "--axe", str(axe), "--browser", str(program)])
    assert main() == status
    views = json.loads(out.read_text())["pages"]["run"]["views"]
    assert len(views) == 8
    assert all(view == (unfolded if name.endswith(" unfolded") else folded) for name, view in views.items())
    assert "run, 390 px, dark, unfolded: 1 unsure" in capsys.readouterr().out
    asked = (tmp_path / "asked.html").read_text()
    assert 0 < asked.index('querySelectorAll("details")) one.open = unfolded') < asked.index("axe.run(")
    assert 0 < asked.index("await look(false)") < asked.index("await look(true)")
    assert 'resultTypes: ["violations", "incomplete"]' in asked


def test_a_page_without_a_result_is_no_page_without_violations(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text("<html></html>")
    with pytest.raises(SystemExit, match="gave no result at 1280 px, light"):
        checked(str(browser(tmp_path, "<html></html>")), page, "let axe", 1280, 800, "light")


def test_a_missing_file_of_axe_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["check_pages.py", "run=nowhere", "--axe", str(tmp_path / "axe.min.js")])
    with pytest.raises(SystemExit, match=r"axe\.min\.js: no such file; npm pack axe-core"):
        main()


def test_a_missing_browser_and_a_word_without_a_folder_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "axe.min.js").write_text("let axe")
    words = ["run", "--axe", str(tmp_path / "axe.min.js")]
    monkeypatch.setattr(sys, "argv", ["check_pages.py", *words, "--browser", "no-such-browser"])
    with pytest.raises(SystemExit, match="no-such-browser: no such program"):
        main()
    monkeypatch.setattr(sys, "argv", ["check_pages.py", *words, "--browser", str(browser(tmp_path, ""))])
    with pytest.raises(SystemExit, match="run: write NAME=FOLDER"):
        main()
