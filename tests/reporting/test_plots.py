"""run.plot gives matplotlib figures, a run shows itself, and pyplot is never imported."""

from __future__ import annotations

import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from matplotlib import rc_context
from matplotlib.figure import Figure

from kitae.errors import KitaeError
from kitae.reporting import plots, style
from kitae.reporting.results import Predicted
from kitae.run import Run
from tests.reporting.conftest import HOSTILE


def words(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.texts]


def test_figures_of_a_run(make_run: Callable[..., Run], tmp_path: Path) -> None:
    plot = make_run().plot
    for figure in (plot.curves(), plot.confusion(), plot.calibration()):
        assert isinstance(figure, Figure)
        assert figure._repr_png_()[:4] == b"\x89PNG"  # type: ignore[attr-defined]
        figure.savefig(tmp_path / "figure.png")
        assert pickle.loads(pickle.dumps(figure))._repr_png_() == figure._repr_png_()  # type: ignore[attr-defined]
    assert "curves" in repr(plot)


def test_names_are_no_formulas_whatever_saves_a_figure(
    make_run: Callable[..., Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = np.zeros((1, 8, 8), np.uint8)
    samples = SimpleNamespace(test=[0], tested=lambda place: image)
    monkeypatch.setattr(plots.Samples, "find", lambda *_: samples)
    plot = make_run().plot
    with rc_context({"text.usetex": True, "font.family": ["monospace"]}):
        for figure in (plot.mistakes(), plot.confusion()):
            figure.savefig(tmp_path / "figure.png")
            for text in (*figure.texts, *(text for ax in figure.axes for text in ax.texts)):
                assert (text.get_parse_math(), text.get_usetex()) == (False, False), text.get_text()
                assert text.get_fontfamily() == list(style._families())


def test_a_figure_of_many_classes_stays_small(make_run: Callable[..., Run]) -> None:
    width, height = make_run(classes=tuple(map(str, range(400)))).plot.confusion().get_size_inches()
    assert width == 40
    assert height < 45


def test_what_is_missing_is_named(make_run: Callable[..., Run]) -> None:
    with pytest.raises(KitaeError, match="no epoch"):
        make_run("new", rows=0, done=False).plot.curves()
    with pytest.raises(KitaeError, match="--resume"):
        make_run("unfinished", done=False).plot.confusion()
    finished = make_run("without-images")
    with pytest.raises(KitaeError, match="cache"):
        finished.plot.mistakes()
    with pytest.raises(KitaeError, match="most"):
        finished.plot.mistakes(0)
    (finished.path / "predictions.parquet").unlink()
    with pytest.raises(KitaeError, match=r"predictions\.parquet"):
        finished.plot.calibration()


def test_mistakes_are_named_by_the_images_they_were_made_on(
    make_run: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    run, image = make_run(), np.zeros((1, 8, 8), np.uint8)
    samples = SimpleNamespace(test=[0], tested=lambda place: image)
    monkeypatch.setattr(plots.Samples, "find", lambda *_: samples)
    assert "Most confident mistakes, test" in words(run.plot.mistakes(2))
    run.write_evaluation({"out_of_fold": run.evaluation()["test"], "best_epoch": 3})
    assert "Most confident mistakes, out-of-fold images" in words(run.plot.mistakes(2))
    monkeypatch.setattr(Predicted, "mistakes", lambda *_: [])
    with pytest.raises(KitaeError, match="no mistake on out-of-fold images"):
        run.plot.mistakes()


def test_a_run_is_one_line_and_a_table(make_run: Callable[..., Run]) -> None:
    run = make_run()
    assert "\n" not in repr(run)
    assert "test accuracy" in repr(run)
    assert "test opened" in run._repr_html_()
    assert len(run.to_pandas()) == 5
    run.write_evaluation({"out_of_fold": {**run.evaluation()["test"], "folds": []}, "best_epoch": 3})
    assert "out-of-fold accuracy 88.9 %" in repr(run)  # test need not be there
    unfinished = make_run(HOSTILE[1], done=False)
    assert "5 of 9 epochs" in repr(unfinished)
    assert "--resume" in unfinished._repr_html_()
    assert HOSTILE[1] not in unfinished._repr_html_()
    for content, told in (("{}", "cannot be shown"), ("{", "damaged")):
        (run.path / "evaluation.json").write_text(content)
        assert "damaged" in repr(run)
        assert told in run._repr_html_()


def test_figures_do_not_import_pyplot() -> None:
    draw = "from kitae.reporting.plots import new_figure; new_figure(2, 1, 'title')._repr_png_()"
    code = f"{draw}; import sys; assert 'matplotlib.pyplot' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
