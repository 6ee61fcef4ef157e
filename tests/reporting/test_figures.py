"""Every figure is written whole, has the size it should, and shows what it was given."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from kitae.errors import KitaeError
from kitae.reporting import charts, style
from kitae.reporting.figures import grid_figure
from kitae.reporting.plots import _worst_mistakes, figure_of
from kitae.reporting.results import Bins, Epoch, Split
from kitae.run import Run
from tests.reporting.conftest import HOSTILE, epochs, measured, pixels

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (6, 3, 32, 32), dtype=np.uint8)
LONG = [f"class number {i} with an unreasonably long name" for i in range(120)]


def saved(draw: Callable[..., Figure], *args: Any, **options: Any) -> Callable[[Path], Path]:
    return lambda path: style.save(draw(*args, **options), path)


def curves(rows: list[dict[str, Any]], best: int | None = None) -> Callable[[Path], Path]:
    return saved(figure_of, charts.curves([Epoch.model_validate(row) for row in rows], best))


def confusion(counts: np.ndarray[Any, Any], names: list[str] | tuple[str, ...]) -> Callable[[Path], Path]:
    split = Split.model_validate({"per_class": {name: {"count": 9} for name in names}, "confusion": counts.tolist()})
    chart = charts.confusion(split, "test", whole=True)
    assert chart is not None
    return saved(figure_of, chart, "test", "A note", width=max(style.WIDTH, 0.13 * len(names) + 2))


BINS = Bins(np.array([0.5, 0.9]), *np.array([[0.52, 0.9], [0.4, 0.8], [0.3, 0.7], [0.5, 0.9]]), np.array([7, 50]))

DRAWINGS: dict[str, Callable[[Path], Path]] = {
    "curves": curves(epochs(40)),
    "curves of one epoch": curves(epochs(1)),
    "confusion": confusion(np.array(measured(HOSTILE)["confusion"]), HOSTILE),
    "reliability": saved(figure_of, charts.reliability(BINS, BINS), "test"),
    "mistakes": saved(_worst_mistakes, list(zip(IMAGES, HOSTILE * 2, HOSTILE * 2, [0.9] * 6, strict=True)), "x"),
    "grid": saved(grid_figure, [IMAGES[:4], IMAGES[4:]], row_titles=HOSTILE[:2], column_titles=["a"] * 4, title="x"),
}
CROWDED: dict[str, Callable[[Path], Path]] = {
    **DRAWINGS,
    "confusion of 12": confusion(np.eye(12, dtype=int) * 12345, LONG[:12]),
    "confusion of 20": confusion(np.full((20, 20), 7), LONG[:20]),
    **{f"confusion of {k}": confusion(np.eye(k, dtype=int), LONG[:k]) for k in (2, 37, 100, 120)},
    "mistakes with long names": saved(_worst_mistakes, [(image, LONG[0], LONG[1], 1.0) for image in IMAGES], "x"),
    "small learning rates": curves([{**row, "learning_rate": 1.23456e-5 * row["epoch"]} for row in epochs(300)]),
    "grid of 10": saved(grid_figure, [[IMAGES[0]] * 10] * 2, row_titles=LONG[:2], column_titles=LONG[:10],
                        title=" ".join(LONG)),
}  # fmt: skip


@pytest.mark.parametrize("name", CROWDED)
def test_a_figure_is_whole_and_no_text_overlaps(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from matplotlib.figure import Figure
    from matplotlib.text import Text

    boxes: list[tuple[str, Any]] = []  # of the last pass, the one that is seen
    draw_figure, draw_text = Figure.draw, Text.draw

    def forget(figure: Any, renderer: Any) -> None:
        boxes.clear()
        draw_figure(figure, renderer)

    def note(text: Any, renderer: Any, *rest: Any, **more: Any) -> None:
        if text.get_visible() and text.get_text().strip():
            boxes.append((text.get_text(), text.get_window_extent(renderer).padded(-1)))
        draw_text(text, renderer, *rest, **more)

    monkeypatch.setattr(Figure, "draw", forget)
    monkeypatch.setattr(Text, "draw", note)
    path = tmp_path / "made" / "figure.png"
    assert CROWDED[name](path) == path
    assert [entry.name for entry in path.parent.iterdir()] == ["figure.png"]
    picture = pixels(path)
    height, width = picture.shape[:2]
    assert name not in DRAWINGS or (width == 960 and height < 3000)
    inked = (picture < 200).any(axis=2)
    assert inked.mean() > 0.004
    assert not inked[[0, -1]].any(), "nothing runs over an edge"
    assert not inked[:, [0, -1]].any()
    assert boxes
    for words, box in boxes:
        assert box.x0 >= -2, words
        assert box.y0 >= -2, words
        assert box.x1 <= width + 2, words
        assert box.y1 <= height + 2, words
    for i, (words, box) in enumerate(boxes):
        clash = [other for other, place in boxes[i + 1 :] if box.overlaps(place)]
        assert not clash, f"{words!r} lies over {clash}"


def test_same_data_same_bytes_in_threads_too(tmp_path: Path) -> None:
    files = [tmp_path / f"{i}.png" for i in range(4)]
    threads = [threading.Thread(target=DRAWINGS["curves of one epoch"], args=(file,)) for file in files]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({file.read_bytes() for file in files}) == 1


def test_failed_write_is_one_line_and_leaves_what_was_there(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("kept")
    with pytest.raises(KitaeError) as caught:
        DRAWINGS["curves of one epoch"](tmp_path / "file" / "figure.png")
    assert "\n" not in str(caught.value)
    assert "figure.png" in str(caught.value)
    (tmp_path / "taken.png").mkdir()
    with pytest.raises(KitaeError, match=r"taken\.png"):
        DRAWINGS["curves of one epoch"](tmp_path / "taken.png")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["file", "taken.png"]


def _near(picture: Any, colour: str) -> Any:
    wanted = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)])
    return np.abs(picture.astype(int) - wanted).max(axis=2) < 12


def test_curves_mark_the_best_epoch_given(tmp_path: Path) -> None:
    def dashed(best: int) -> float:
        picture = pixels(curves(epochs(20), best)(tmp_path / "c.png"))
        _, columns = np.nonzero(_near(picture[150:], "#566370"))  # below the title and the first heading
        return float(np.bincount(columns, minlength=960)[200:].argmax())  # right of the labels of the axes

    assert dashed(18) - dashed(9) > 200


def test_a_figure_has_the_texts_and_marks_of_the_chart_on_the_page() -> None:
    chart = charts.curves([Epoch.model_validate(row) for row in epochs(3)], 2)
    figure = figure_of(chart)
    texts = [text.get_text() for text in figure.axes[0].texts]
    assert texts == re.findall(r"<text[^>]*>([^<]*)<", chart.file())
    assert {"Loss", "0.7 validation", "0.667 train"} <= set(texts)
    (marks,) = figure.axes[0].collections
    assert len(marks.get_paths()) == len(re.findall("<(?:line|path|circle|rect) ", str(chart.__html__())))
    assert min(text.get_fontsize() for text in figure.axes[0].texts) > style.SMALL


def test_scores_of_few_epochs_are_one_line() -> None:
    """Epochs that were not validated have no scores; one whose scores are not finite breaks the line."""
    scores = ("val_loss", "val_accuracy", "train_clean_accuracy")
    rows = epochs(40)
    some = [{k: v for k, v in row.items() if row["epoch"] % 4 == 0 or k not in scores} for row in rows]
    broken = [{**row, "val_loss": None} if row["epoch"] == 20 else row for row in some]

    def lines(made: list[dict[str, Any]]) -> list[list[float]]:
        chart = charts.curves([Epoch.model_validate(row) for row in made], 36)
        found = re.findall(r'<path d="M([^"]+)" class="s2"', chart.file())
        return [[float(x) for x in points.split()[::2]] for points in found]

    loss, accuracy = lines(rows)
    assert (len(loss), len(accuracy)) == (40, 40)
    few = lines(some)
    assert few == [loss[3::4], accuracy[3::4]]
    assert [len(line) for line in lines(broken)] == [4, 5, 10]


def test_rows_of_a_chart_are_drawn_with_all_of_their_words(tmp_path: Path) -> None:
    chart = charts.recalls(Split.model_validate(measured(HOSTILE)))
    assert chart is not None
    texts = " ".join(text.get_text() for text in figure_of(chart).axes[0].texts)
    assert "30 images" in texts
    assert "(50 to 100)" in texts
    assert saved(figure_of, chart)(tmp_path / "a.png").exists()


def test_confusion_shows_where_the_mistakes_are(tmp_path: Path) -> None:
    """Orange off the diagonal exactly in the row and column that were confused."""
    right, wrong = np.eye(4, dtype=int) * 10, np.eye(4, dtype=int) * 10
    wrong[0, 0], wrong[0, 3] = 0, 10
    clean = pixels(confusion(right, list("abcd"))(tmp_path / "a.png"))
    mixed = pixels(confusion(wrong, list("abcd"))(tmp_path / "b.png"))
    assert clean.shape == mixed.shape
    orange = (mixed[..., 0].astype(int) - mixed[..., 2]) > 100
    assert not ((clean[..., 0].astype(int) - clean[..., 2]) > 100).any()
    y, x = np.nonzero(orange)
    assert y.mean() < mixed.shape[0] / 2
    assert x.mean() > mixed.shape[1] / 2


def test_missing_numbers_are_left_out_not_drawn_as_zero(tmp_path: Path) -> None:
    rows = epochs(6)
    without = [{**row, "val_loss": None, "train_loss": float("inf")} for row in rows]
    full = pixels(curves(rows)(tmp_path / "a.png"))
    less = pixels(curves(without)(tmp_path / "b.png"))
    assert less.shape[0] < full.shape[0]  # the panel of losses is gone


def test_grid_shows_the_pixels_it_was_given(tmp_path: Path) -> None:
    """A small image is enlarged by a whole factor: every pixel becomes one flat square."""
    image = RNG.integers(0, 256, (3, 8, 8), dtype=np.uint8)
    picture = pixels(saved(grid_figure, [[image]])(tmp_path / "g.png"))
    factor = 300 // 8
    block = picture[12 : 12 + 8 * factor, 12 : 12 + 8 * factor]
    np.testing.assert_array_equal(block, image.transpose(1, 2, 0).repeat(factor, 0).repeat(factor, 1))
    grey = pixels(saved(grid_figure, [[image[:1]]])(tmp_path / "h.png"))
    assert (grey == grey[..., :1]).all()


def test_a_grid_fills_its_figure_at_every_resolution(tmp_path: Path) -> None:
    """As `savefig(dpi=300)` and notebooks for fine screens ask for."""
    grid_figure([[IMAGES[0]]]).savefig(tmp_path / "g.png", dpi=2 * style.DPI)
    factor = 2 * (300 // 32)
    block = pixels(tmp_path / "g.png")[24 : 24 + 32 * factor, 24 : 24 + 32 * factor]
    np.testing.assert_array_equal(block, IMAGES[0].transpose(1, 2, 0).repeat(factor, 0).repeat(factor, 1))


def test_worst_mistakes_keep_the_confidence_when_the_name_is_long(tmp_path: Path) -> None:
    name = "an extremely long class name " * 4
    long_ = pixels(saved(_worst_mistakes, [(IMAGES[0], name, name, 0.987)], "x")(tmp_path / "a.png"))
    other = pixels(saved(_worst_mistakes, [(IMAGES[0], name, name, 0.123)], "x")(tmp_path / "b.png"))
    assert (long_ != other).any()


def test_names_that_are_shortened_alike_have_their_number() -> None:
    names = [f"a class with a name of many words that ends in {end} like all the others" for end in "ab"]
    split = Split.model_validate({"per_class": {name: {"count": 9} for name in names}, "confusion": [[9, 0], [0, 9]]})
    chart = charts.confusion(split, "test")
    assert chart is not None
    assert {"0: a class", "1: a class"} <= set(
        re.findall(r">(\d: a class)", str(chart.__html__()).replace("</title>", ">"))
    )


def test_text_fits_its_width() -> None:
    for text in ("", " ", "one", "word " * 60, "x" * 500, "a\nb\tc\x00d", "猫", "\u202e x"):
        assert style.text_width(style.fit(text, 120, 11), 11) <= 120
        lines = style.wrap(text, 120, 11)
        assert 1 <= len(lines) <= 2
        assert all(style.text_width(line, 11) <= 120 and "\n" not in line for line in lines)


def test_best_epoch_follows_the_recipe(make_run: Callable[..., Run]) -> None:
    run = make_run(done=False)
    assert run.best_epoch() == 4  # the last epoch has the lower accuracy and the lowest loss
    run.recipe = run.recipe.override("train.select=val_loss")
    assert run.best_epoch() == 5
    run.write_metrics([{"epoch": 1, "val_loss": None}])
    assert run.best_epoch() is None
