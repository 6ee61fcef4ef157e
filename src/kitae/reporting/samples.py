"""Pictures and properties of a run's images: counts, duplicates, the augmented images that the network saw.

Everything is read from the store that the run was trained on, if it is still in the cache: a page never decodes the
source again. Images in shards are decoded from there, for which the cache may have to download a shard again; pictures
are left out once one cannot be read. Test images are only shown if the run has opened its test and written its
predictions; nothing is measured on them here.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from kitae.errors import KitaeError
from kitae.reporting.results import RunRecord
from kitae.reporting.style import Image
from kitae.reporting.values import finite, share

if TYPE_CHECKING:
    from kitae.data.splits import Splits
    from kitae.data.store import Store

SIDE = 112  # pixels of the longer side of a picture in a page
CLASSES_SHOWN, PER_CLASS = 12, 6
SEEN, EPOCHS_SEEN = 6, 3
_EXAMPLES = 5


@dataclass(frozen=True)
class Photo:
    """A picture in a page.

    Attributes:
        source: a data URI. width, height: as it is shown, in CSS pixels.
        sharp: it was enlarged, and its pixels should stay visible.
        alt: what it is, for those who do not see it. lines: below it.
    """

    source: str
    width: int
    height: int
    sharp: bool
    alt: str
    lines: tuple[str, ...] = ()


def photo(image: Image, alt: str, lines: Sequence[str] = ()) -> Photo:
    """A picture of uint8 [C, H, W], C = 1 or 3: small ones as they are (PNG), larger ones reduced (JPEG)."""
    from PIL import Image as Pillow

    array = np.ascontiguousarray(image[0] if image.shape[0] == 1 else image.transpose(1, 2, 0))
    picture = Pillow.fromarray(array)
    small = max(picture.size) <= SIDE // 2
    buffer = io.BytesIO()
    if small:
        picture.save(buffer, "PNG", optimize=True)
        factor = SIDE / max(picture.size)
        size = round(picture.width * factor), round(picture.height * factor)
    else:
        picture.thumbnail((SIDE, SIDE), Pillow.Resampling.LANCZOS)
        picture.save(buffer, "JPEG", quality=85)
        size = picture.size
    kind = "png" if small else "jpeg"
    source = f"data:image/{kind};base64," + base64.b64encode(buffer.getvalue()).decode()
    return Photo(source, size[0], size[1], small, alt, tuple(lines))


@dataclass(frozen=True)
class Quality:
    """The quality of the data, judged from the images.

    Attributes:
        skipped: (name, reason) of images that could not be read.
        compared: the images whose pixels were compared, in the singular; without test where that is not shown.
        groups: sets of images with the same pixels. images: how many images are in them.
        across: of the sets, those that lie in more than one split. conflicts: those with more than one class.
        examples: names of the images of some conflicts, else of some sets.
    """

    skipped: tuple[tuple[str, str], ...]
    compared: str
    groups: int
    images: int
    across: int
    conflicts: int
    examples: tuple[tuple[str, ...], ...]


class Samples:
    """The images of a run.

    Attributes:
        problem: why there are no pictures, as of shards that were moved; empty while all could be drawn.
    """

    def __init__(self, record: RunRecord, store: Store, splits: Splits) -> None:
        self.record, self.store, self.splits = record, store, splits
        self.problem = ""

    @classmethod
    def find(cls, record: RunRecord) -> Samples | None:
        """The images that a run was trained on; None where they are not in the cache any more, or it cannot be read."""
        from kitae.data.store import find_store

        try:
            store = find_store(str(record.environment.get("store")), record.recipe.data)
            if store is None or tuple(store.classes) != record.facts.classes:
                return None
            return cls(record, store, record.run.splits(store))
        except KitaeError:
            return None

    @cached_property
    def test(self) -> NDArray[np.int64]:
        """Rows of the images that were judged: test, which the run opened before, or those of all folds; or none."""
        found, judged, rows = self.record.predicted, self.record.evaluation, np.empty(0, np.int64)
        if judged.test is None and judged.out_of_fold is not None:
            rows = self.splits.train
        elif self.record.openings:
            rows = self.splits.open_test(lambda: None)  # counted when it was opened; here its pictures are only shown
        return rows if found is not None and len(rows) == len(found.names) else np.empty(0, np.int64)

    def counts(self) -> dict[str, list[int]]:
        """Images of each class, split by split."""
        parts = {"train": self.splits.train, "validation": self.splits.val}
        labels, k = np.asarray(self.store.labels), len(self.store.classes)
        found = {name: np.bincount(labels[rows], minlength=k).tolist() for name, rows in parts.items() if len(rows)}
        test = self.record.evaluation.test
        if test is not None and len(test.per_class) == k:
            found["test"] = [row.count for row in test.per_class.values()]
        return found

    def of_classes(self) -> list[tuple[str, list[Photo]]]:
        """A few training images of each class, or of some classes if there are many."""
        labels = np.asarray(self.store.labels)[self.splits.train]
        names = self.store.classes
        chosen: list[int] = np.linspace(0, len(names) - 1, min(CLASSES_SHOWN, len(names))).astype(int).tolist()
        rows = {k: self.splits.train[labels == k][:PER_CLASS].tolist() for k in chosen}
        drawn = {k: self._photos((row, f"training image of {names[k]}", ()) for row in of) for k, of in rows.items()}
        return [] if self.problem else [(names[k], shown) for k, shown in drawn.items()]

    def seen(self) -> list[tuple[str, list[Photo]]]:
        """Some training images as they are stored, and as the network saw them in some epochs: redrawn by their keys.

        Each with its heading: the stored ones, then an epoch each. None if an image cannot be read, or the recipe has
        custom ops that are not registered here.
        """
        if self.problem:
            return []
        try:
            return self._seen()
        except KitaeError as error:
            self.problem = str(error)
            return []

    def _seen(self) -> list[tuple[str, list[Photo]]]:
        import torch

        from kitae.augment import Augment
        from kitae.crops import first_crop
        from kitae.data.loader import ImageSet, begun_order, blocks_of
        from kitae.training.batches import epoch_shape
        from kitae.training.learner import shrunk
        from kitae.training.schedule import size_at

        recipe, store, facts = self.record.recipe, self.store, self.record.facts
        names, seed = store.classes, recipe.train.seed
        crop, ops = first_crop(recipe.augment, store.images, 1)
        mean, std, mix = facts.mean, facts.std, recipe.augment.mix
        aug = Augment(ops, mix=mix, seed=seed, mean=mean, std=std, num_classes=len(names), threads=1)
        rows, data = self.splits.train, begun_order(store.images, recipe.data)
        blocks = blocks_of(store.images, rows, data, recipe.train.batch_size)
        images = ImageSet(store.images, rows, store.labels, names, recipe.data.balance, crop=crop, blocks=blocks)
        shape = epoch_shape(len(images), recipe.train, int(finite(self.record.environment.get("processes")) or 1))
        ended = max((row.epoch for row in self.record.epochs), default=0)  # fewer than planned where it stopped early
        # Of each epoch its first pass through the images.
        orders = {epoch: images.order(seed, epoch * shape.passes)[: shape.pass_steps * shape.batch_size]
                  for epoch in range(min(EPOCHS_SEEN, ended))}  # fmt: skip
        if not orders:
            return []
        chosen = orders[0][: shape.batch_size]
        for epoch in range(1, len(orders)):  # what a pass leaves out is another part in each epoch
            common = chosen[np.isin(chosen, orders[epoch])]
            if len(common):
                chosen = common
            else:
                del orders[epoch]
        chosen = chosen[:SEEN]
        columns = [("as stored", [photo(pixels, f"a training image of {names[label]}", [names[label]])
                                  for pixels, label in zip(*images.gather(chosen), strict=True)])]  # fmt: skip
        scale, shift = (np.asarray(values, np.float32)[:, None, None] for values in (std, mean))
        for epoch, order in orders.items():
            drawn, size = epoch * shape.passes, shape.batch_size
            places = [int(np.flatnonzero(order == index)[0]) for index in chosen]
            batches = {}
            for step in {place // size for place in places}:
                rows = order[step * size : (step + 1) * size]
                batch = images.gather(rows, seed=seed, epoch=drawn)
                values, targets = aug(*batch, epoch=drawn, index=rows, step=step)
                update = epoch * shape.updates + step // shape.accumulate
                sides = size_at((values.shape[2], values.shape[3]), update, recipe.train, shape.updates)
                batches[step] = shrunk(torch.from_numpy(values), sides).numpy(), targets
            found = []
            for place in places:
                values, targets = batches[place // size]
                inside = place % size
                shown = np.clip(np.rint((values[inside] * scale + shift) * 255), 0, 255).astype(np.uint8)
                label = _mixture(targets[inside], names)
                found.append(photo(shown, f"as seen in epoch {epoch + 1}: {', '.join(label)}", label))
            columns.append((f"epoch {epoch + 1}", found))
        return columns

    def mistakes(self, most: int) -> list[Photo]:
        """The most confident mistakes on the test images."""
        found = self.record.predicted
        if found is None or not len(self.test):
            return []
        return self._photos(map(self._predicted, found.mistakes(most)))

    def tested(self, place: int) -> Image:
        """uint8 [C, H, W], the test image at a position of the predictions."""
        return self._pixels(int(self.test[place]))

    def confused(self, true: str, predicted: str, most: int) -> list[Photo]:
        """Test images of one class that were predicted as another, the most confident first."""
        found, names = self.record.predicted, self.record.facts.classes
        if found is None or not len(self.test):
            return []
        pair = np.flatnonzero((found.label == names.index(true)) & (found.predicted == names.index(predicted)))
        order = pair[np.argsort(-found.confidence[pair], kind="stable")][:most]
        return self._photos(map(self._predicted, order.tolist()))

    def quality(self) -> Quality:
        """Unreadable and identical images, and those of them that have two classes or lie in two splits."""
        store = self.store
        side = np.full(len(store), -1)
        for number, rows in enumerate((self.splits.train, self.splits.val, self.test)):
            side[rows] = number
        shown = np.flatnonzero(side >= 0)
        _, place, count = np.unique(store.twins[shown], return_inverse=True, return_counts=True)
        groups: dict[int, list[int]] = {}
        for row in shown[count[place] > 1].tolist():
            groups.setdefault(int(store.twins[row]), []).append(row)
        alike = list(groups.values())
        conflicts = [rows for rows in alike if len({int(store.labels[row]) for row in rows}) > 1]
        examples = (conflicts or alike)[:_EXAMPLES]
        every = len(self.splits.train) + len(self.splits.val) + self.splits.test_count
        return Quality(
            store.skipped,
            "image" if (side >= 0).sum() == every else "training or validation image",
            len(alike),
            sum(map(len, alike)),
            sum(len(set(side[rows].tolist())) > 1 for rows in alike),
            len(conflicts),
            tuple(
                tuple(f"{store.names[row]} ({store.classes[store.labels[row]]})" for row in rows) for rows in examples
            ),
        )

    def _photos(self, wanted: Iterable[tuple[int, str, Sequence[str]]]) -> list[Photo]:
        """The pictures of rows of the store, each with its alternative text and lines; none once one cannot be read."""
        if self.problem:  # a server that does not answer is not asked for every picture
            return []
        try:
            return [photo(self._pixels(row), alt, lines) for row, alt, lines in wanted]
        except KitaeError as error:
            self.problem = str(error)
            return []

    def _predicted(self, place: int) -> tuple[int, str, Sequence[str]]:
        """The row of a test image, and what its picture says."""
        found, names = self.record.predicted, self.record.facts.classes
        assert found is not None
        true, taken = names[found.label[place]], names[found.predicted[place]]
        sure = share(float(found.confidence[place]), 0)
        alt = f"{found.names[place]}: {true}, predicted as {taken} with {sure}"
        return int(self.test[place]), alt, [f"{taken}, {sure}", f"is {true}"]

    def _pixels(self, row: int) -> Image:
        """uint8 [C, H, W] of an image."""
        return np.array(self.store.images[row])


def _mixture(target: NDArray[np.float32], names: Sequence[str]) -> list[str]:
    """The label that a picture was given, in words: `Shirt`, or `60 % Shirt` and `40 % Coat`."""
    order = [int(k) for k in np.argsort(-target, kind="stable")[:2] if target[k] > 0.004]
    return [names[k] if target[k] > 0.996 else f"{share(float(target[k]), 0)} {names[k]}" for k in order]
