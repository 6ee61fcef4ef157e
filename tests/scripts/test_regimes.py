"""What the ledger says of the length of training, on made-up results whose truth is known."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from kitae.experiments.executors import Inline
from kitae.experiments.result import StudyResult
from kitae.experiments.study import study
from kitae.experiments.study_spec import StudySpec
from ledger import draw, load, markdown, publish
from regimes import MOST_SENTENCES, advice, curves
from tests.experiments.test_study import FAKE

VARIANTS: dict[str, Any] = {
    "flip and crop": {},
    "none": {"augment.train": []},
    "mixup": {"augment.mix": {"mixup_alpha": 1.0, "cutmix_alpha": 0.0}},
    "cutmix": {"augment.mix": {"mixup_alpha": 0.0, "cutmix_alpha": 1.0}},
}
OPTIONS = {**FAKE, "train": "tests.experiments.fake_train:train_of_some_length"}


def published(folder: Path, epochs: int, name: str | None = None, width: int = 16, **fields: Any) -> StudyResult:
    name = name or f"when-{epochs}-epochs"
    settings = {"train.epochs": epochs, "model.width": width, "train.precision": "bf16", **fields.pop("set", {})}
    spec = StudySpec.parse(
        {"name": name, "base": "fashion-mini", "set": settings, "design": "compare", "variants": VARIANTS,
         "contrasts": {"basic over none": ["flip and crop", "none"]}, "also": [], **fields}
    )  # fmt: skip
    study(spec, folder / name, executor=Inline(), **OPTIONS)
    return StudyResult.open(publish(folder / name, folder / "results"))


@pytest.fixture
def results(tmp_path: Path) -> list[StudyResult]:
    for epochs in (12, 25, 50, 200):
        published(tmp_path, epochs)
    published(tmp_path, 100, "ledger-trained", seeds=[0, 1, 2, 3, 4])
    published(tmp_path, 100, "when-wide", width=32)
    published(tmp_path, 100, "a-hundred")  # the same with fewer seeds
    published(tmp_path, 25, "ledger-small", set={"train.batch_size": 64})  # two other comparisons
    published(tmp_path, 12, "over-none", reference="none", contrasts={}, seeds=[0, 1, 2, 3, 4])
    return load(tmp_path / "results")


def test_the_same_comparison_at_several_lengths_is_one_curve(results: list[StudyResult]) -> None:
    found = curves(results)
    assert set(found) == {"MixUp", "CutMix", "flip and crop"}
    for points in found.values():
        assert [(p.width, p.epochs) for p in points] == [
            (16, 12), (16, 25), (16, 50), (16, 100), (16, 200), (32, 100),
        ]  # fmt: skip
    measured = found["CutMix"]
    assert [p.study for p in measured][3:5] == ["ledger-trained", "when-200-epochs"]
    for point, truth in zip(measured, (-7.5, -3.0, 0.0, 3.0, 6.0, 3.0), strict=True):
        assert point.effect.estimate == pytest.approx(truth, abs=0.7)


def test_advice_follows_the_lengths_at_which_effects_are_shown(results: list[StudyResult]) -> None:
    always, lengths = advice(results)
    assert always.startswith("Use flip and crop: ")
    assert "12 to 200 epochs" in always
    assert " in all 8 comparisons" in always
    assert lengths.startswith("With 25 epochs or fewer, leave MixUp and CutMix off: -")
    assert "; from 100 epochs on, use them: +" in lengths


def test_advice_on_lengths_is_from_one_setting(tmp_path: Path) -> None:
    """A study of its own settings says nothing of a length, but it can contradict."""
    weaker = {**VARIANTS, "mixup": {"augment.mix": {"mixup_alpha": 1.0, "cutmix_alpha": 0.0, "prob": 0.5}}}
    when = [published(tmp_path, epochs) for epochs in (12, 200)]
    other = published(tmp_path, 25, "other", set={"train.batch_size": 64}, variants=weaker)
    assert advice([*when, other])[1].startswith("With 12 epochs or fewer, leave MixUp and CutMix off: -")
    contrary = published(tmp_path, 200, "contrary", set={"train.batch_size": 64}, seeds=[0, 1, 2, 3, 4])
    turned = replace(contrary, runs=contrary.runs.assign(**{"test.accuracy": -contrary.runs["test.accuracy"]}))
    assert not any("on, use them" in line for line in advice([*when, turned]))
    assert any("on, use them" in line for line in advice([*when, contrary]))


def test_the_page_says_what_differs_between_studies(tmp_path: Path) -> None:
    weaker = {**VARIANTS, "mixup": {"augment.mix": {"mixup_alpha": 1.0, "cutmix_alpha": 0.0, "prob": 0.5}}}
    short, *longer = (published(tmp_path, epochs) for epochs in (12, 25, 200))
    assert "other images to train" not in markdown([short, *longer])
    moved = replace(short, runs=short.runs.assign(store="another"))
    assert "`when-12-epochs` had another file of the same set" in markdown([moved, *longer])
    small = published(tmp_path, 25, "ledger-small")
    trained = published(tmp_path, 100, "ledger-trained", variants=weaker)
    assert "100 % of the batches in `ledger-small` and `ledger-trained`, 50 % of the batches in" in markdown(
        [small, trained]
    )
    machines = [json.dumps({"gpu": "A100" if row < 5 else None, "processor": "CPU"}) for row in range(len(small.runs))]
    text = markdown([replace(small, runs=small.runs.assign(machine=machines))])
    assert "A100: 5 runs (flip and crop 2, none 1, mixup 1, cutmix 1); CPU, 2 threads a run: 7 runs (" in text


def test_two_curves_of_one_technique_and_as_many_images_are_both_kept(tmp_path: Path) -> None:
    small = [published(tmp_path, epochs, f"small-{epochs}", set={"train.batch_size": 64}) for epochs in (12, 25)]
    found = curves([*(published(tmp_path, epochs) for epochs in (12, 25)), *small])
    assert len(found) == 6
    assert {"when-12-epochs", "small-12"} == {points[0].study for name, points in found.items() if "MixUp" in name}


def test_no_advice_where_the_intervals_support_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_SCATTER", "0.2")
    noisy = [published(tmp_path, epochs) for epochs in (12, 200)]
    assert advice(noisy) == []
    assert markdown(noisy).startswith("# The ledger\n\n## When")


def test_techniques_that_differ_are_advised_on_one_by_one(tmp_path: Path) -> None:
    swapped = {**VARIANTS, "cutmix": VARIANTS["mixup"], "mixup": {"train.label_smoothing": 0.1}}  # which does nothing
    found = advice([published(tmp_path, epochs, variants=swapped, contrasts={}) for epochs in (12, 200)])
    (line,) = found
    assert line.startswith("With 12 epochs or fewer, leave CutMix off: -")
    assert "; from 200 epochs on, use it: +" in line


def test_at_most_five_sentences(tmp_path: Path) -> None:
    names = ("mixup", "full", "auto_augment", "cutout", "smoothing", "constant rate")
    effects: dict[str, Any] = {
        name: {**VARIANTS["mixup"], "train.ema": 0.9 + place / 100} for place, name in enumerate(names)
    }
    variants = {"flip and crop": {}, "none": {"augment.train": []}, **effects}
    found = advice([published(tmp_path, epochs, variants=variants) for epochs in (12, 25)])
    assert len(found) == MOST_SENTENCES
    assert found[0].startswith("Use flip and crop")
    assert "cosine" in found[-1], "advice on the learning rate keeps its place"


def test_the_page_opens_with_advice_then_regimes_then_the_figure(results: list[StudyResult], tmp_path: Path) -> None:
    text = markdown(results)
    assert [line for line in text.splitlines() if line.startswith("#")][:4] == [
        "# The ledger", "## Regimes side by side", "## When does a technique help?", "## Claims and verdicts",
    ]  # fmt: skip
    assert text.split("\n\n")[1] == "\n".join(f"- {sentence}" for sentence in advice(results))
    assert "| Technique | 1,000 images, 25 epochs | 1,000 images, 100 epochs |" in text
    assert sum(line.startswith("| MixUp | **-") for line in text.splitlines()) == 1
    picture = draw(results, tmp_path / "docs" / "ledger.md")
    assert picture == tmp_path / "docs" / "images" / "ledger-when.png"
    assert f"]({picture.relative_to(tmp_path / 'docs')})" in text
    wide = Image.open(picture).size[0]
    one_width = [result for result in results if result.settings["width"] == 16]
    narrow = draw(one_width, tmp_path / "one" / "ledger.md")
    assert narrow is not None
    assert Image.open(narrow).size[0] < wide, "a panel per width"
    assert draw([results[0]], tmp_path / "none" / "ledger.md") is None
    assert not (tmp_path / "none").exists()
