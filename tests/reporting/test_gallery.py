"""Galleries: complete files, the right pixels in them, the same for the same seed, clear refusals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kitae.augment import Augment
from kitae.augment import functional as f
from kitae.errors import DataError
from kitae.reporting import gallery
from kitae.reporting.style import save
from tests.images import picture
from tests.reporting.conftest import HOSTILE, pixels

FILES = ["geometry", "colour", "noise", "mixup", "cutmix", "policies", "augmix", "epochs"]
CLASSES = tuple(f"class {i}" for i in range(10))


def images(count: int, size: tuple[int, int] = (24, 24), channels: int = 3) -> Any:
    return np.stack([picture(i % 10, i, size).transpose(2, 0, 1)[:channels] for i in range(count)])


FACTOR = 7  # images of 24 pixels in cells of 180 or so are enlarged seven times


def contains(page: Any, image: Any) -> bool:
    """Whether an image stands on a page, enlarged without a change to its colours."""
    colour = np.broadcast_to(image, (3, *image.shape[1:])).transpose(1, 2, 0)
    big = colour.repeat(FACTOR, 0).repeat(FACTOR, 1)
    height, width = big.shape[:2]
    places = np.argwhere((page[: 1 - height, : 1 - width] == big[0, 0]).all(2))
    return any(np.array_equal(page[y : y + height, x : x + width], big) for y, x in places)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    batch, folder = images(7), tmp_path_factory.mktemp("gallery") / "new"
    files = gallery.draw_gallery(batch, [i % 10 for i in range(7)], CLASSES, folder, seed=3)
    assert [path.stem for path in files] == FILES
    assert all(path.parent == folder for path in files)
    return batch, folder


def test_the_pixels_are_those_of_the_ops(drawn: tuple[Any, Path]) -> None:
    """Unchanged by drawing: each shown image is found on its page, enlarged by a whole factor."""
    batch, folder = drawn
    shown = batch[:5]
    expected = {
        "geometry": [shown[0], f.horizontal_flip(shown)[4], f.rotate(shown, 30.0)[1]],
        "colour": [f.invert(shown)[2], f.equalize(shown)[3], f.solarize(shown, 128)[0], f.hue(shown, -0.2)[0]],
        "noise": [f.sharpness(shown, 4.0)[4]],
        "mixup": [shown[0], shown[1], f.mixup(shown[:2], None, 0.25)[0], f.mixup(shown[2:4], None, 0.5)[0]],
        "augmix": [shown[2], Augment([{"augmix": {}}], seed=3)(shown, epoch=0, index=np.arange(5))[2]],
    }
    for name, pictures in expected.items():
        page = pixels(folder / f"{name}.png")
        for i, image in enumerate(pictures):
            assert contains(page, image), f"{name}: picture {i} is not on the page"
    assert not contains(pixels(folder / "mixup.png"), f.rotate(shown, 90.0)[0])


def test_same_seed_same_pictures(tmp_path: Path, drawn: tuple[Any, Path]) -> None:
    batch, folder = drawn
    for seed, same in ((3, True), (4, False)):
        again = save(gallery.draw_policies(batch[:5], CLASSES[:5], seed), tmp_path / f"{seed}.png")
        assert np.array_equal(pixels(again), pixels(folder / "policies.png")) == same


@pytest.fixture
def captured(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The rows and captions that would be drawn."""
    seen: dict[str, Any] = {}
    monkeypatch.setattr(gallery, "grid_figure", lambda rows, **more: seen.update(rows=rows, **more))
    return seen


def test_cutmix_captions_say_the_share_that_is_left(captured: dict[str, Any]) -> None:
    batch = np.stack([np.full((3, 16, 16), level, np.uint8) for level in (10, 200)])
    gallery.draw_cutmix(batch, ("a", "b"), 1)
    assert len(captured["rows"]) == 3
    for row, captions in zip(captured["rows"], captured["captions"], strict=True):
        for image, (caption,) in zip(row, captions, strict=True):
            assert caption == f"λ = {(image == 10).mean():.2f}"
        assert len(set(captions)) > 1  # several draws, not one of the whole batch


def test_augmix_chains_add_up(captured: dict[str, Any]) -> None:
    """Original and chains, weighted by the captions, give the last picture up to the rounding of the captions."""
    gallery.draw_augmix(images(4), CLASSES[:4], 5)
    for row, captions in zip(captured["rows"], captured["captions"], strict=True):
        weights = [float(caption[0].split(" %")[0]) / 100 for caption in captions[:4]]
        mean = sum(w * image.astype(float) for w, image in zip(weights, row[:4], strict=True))
        assert np.abs(mean - row[4]).max() < 0.02 * 255 + 1


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ({"degrees": (12, 12)}, ("turn -12°",)),  # affine counts clockwise, the caption counter-clockwise
        ({"degrees": (-8, -8), "scale": (1.25, 1.25)}, ("+8°, scale 1.25",)),
        ({"scale": (0.5, 0.5)}, ("scale 0.50",)),
        ({"degrees": 0}, ("not moved",)),
    ],
    ids=str,
)
def test_motions_in_words(parameters: dict[str, Any], words: tuple[str, ...]) -> None:
    program = Augment([{"affine": parameters}]).plan(epoch=0, index=[7], size=(20, 30))
    assert gallery._words(program, 0) == words


def test_shifts_in_words_are_where_the_pixels_went() -> None:
    image = np.zeros((1, 3, 41, 41), np.uint8)
    image[..., 20, 20] = 255
    aug = Augment([{"affine": {"translate": (0.3, 0.3), "degrees": 0}}], seed=2)
    for index in range(12):
        out = aug(image, epoch=0, index=[index])[0, 0]
        y, x = (int(v) - 20 for v in np.argwhere(out == 255)[0])
        said = gallery._words(aug.plan(epoch=0, index=[index], size=(41, 41)), 0)
        across = [f"{'right' if x > 0 else 'left'} {abs(x)}"] if x else []
        along = [f"{'down' if y > 0 else 'up'} {abs(y)}"] if y else []
        assert said == (", ".join(across + along) or "not moved",)


@pytest.mark.parametrize(("size", "channels"), [((15, 40), 1), ((224, 224), 3)])
def test_two_images_of_any_shape_and_hostile_names(size: tuple[int, int], channels: int, tmp_path: Path) -> None:
    files = gallery.draw_gallery(images(2, size, channels), [2, 0], HOSTILE, tmp_path)
    assert len(files) == len(FILES)
    for path in files:
        page = pixels(path)
        assert page.shape[1] == 960
        assert page.shape[0] > 200
        assert (page != 255).any(2).mean() > 0.2


def test_first_of_each_class_is_shown() -> None:
    assert gallery._of_many_classes([4, 4, 4, 1, 4, 0, 1, 2, 3]) == [0, 3, 5, 7, 8]
    assert gallery._of_many_classes([1, 1, 1]) == [0, 1, 2]


@pytest.mark.parametrize("batch", [images(1), images(2, (4, 4))], ids=["one", "tiny"])
def test_too_few_or_too_small_images_are_refused(batch: Any, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="at least 2 images of at least 8 x 8"):
        gallery.draw_gallery(batch, [0] * len(batch), CLASSES, tmp_path)
