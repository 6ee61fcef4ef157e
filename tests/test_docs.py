"""What the README and the docs show works: Python runs, YAML loads, commands parse, links lead somewhere.

A block that no test runs says why, in a comment above it:

    <!-- not run: it takes minutes -->
"""

from __future__ import annotations

import importlib
import inspect
import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

import kitae
from kitae.cli import app
from kitae.experiments.after import STEPS
from kitae.experiments.outcome import EVALUATION, OF_RUN
from kitae.experiments.study_spec import StudySpec
from kitae.models.build import MODELS, build
from kitae.models.libraries import check_name
from kitae.preprocess import PreprocessRules, decode
from kitae.recipe import Recipe, shipped
from tests.images import assert_alike, write_folder

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "README.ja.md", *sorted((ROOT / "docs").rglob("*.md"))]
LANGUAGES = {"python", "yaml", "text", ""}  # text is output, and "" are commands of a shell
OTHER_COMMANDS = (
    "pip install ", "python3 -m venv ", ". .venv/bin/activate", "make ", "python -m kitae", "python scripts/",
    "torchrun ",
)  # fmt: skip


@dataclass(frozen=True)
class Block:
    """A fenced block of a page; `why_not` is the reason that it is not run."""

    page: Path
    line: int
    language: str
    text: str
    why_not: str | None

    @property
    def param(self) -> object:
        translated = self.language == "python" and self.page.name == "README.ja.md"
        marks = [pytest.mark.slow] if translated else []  # it trains as README.md does
        return pytest.param(self, id=f"{self.page.relative_to(ROOT)}:{self.line}", marks=marks)


def blocks(page: Path) -> Iterator[Block]:
    lines = page.read_text(encoding="utf-8").splitlines()
    start: int | None = None
    for number, line in enumerate(lines):
        if not line.startswith("```"):
            continue
        if start is None:
            start = number
            continue
        above = next((one for one in reversed(lines[:start]) if one.strip()), "")
        found = re.fullmatch(r"<!-- not run: (.+) -->", above)
        text = "\n".join(lines[start + 1 : number]) + "\n"
        yield Block(page, start + 1, lines[start][3:].strip(), text, found[1] if found else None)
        start = None


BLOCKS = [block for page in PAGES for block in blocks(page)]


def of(language: str) -> list[object]:
    """The blocks of a language; what two pages show alike is there once."""
    found = {(block.text, block.why_not): block for block in reversed(BLOCKS) if block.language == language}
    return [block.param for block in reversed(found.values())]


def commands(block: Block) -> Iterator[str]:
    lines = block.text.replace("\\\n", " ").splitlines()
    return (line.strip() for line in lines if line.strip() and not line.strip().startswith("#"))


MIGRATION = "".join(page.read_text(encoding="utf-8") for page in PAGES if page.parent.name == "migration")
SETTINGS = sorted(set(re.findall(r"`(--set [^`]+)`", MIGRATION)))
COMMANDS = sorted({line for b in BLOCKS if b.language == "" for line in commands(b) if line.startswith("kitae ")})


def test_every_block_is_of_a_known_kind() -> None:
    assert {block.language for block in BLOCKS} <= LANGUAGES


@pytest.mark.parametrize("block", of(""))
def test_a_block_without_a_language_holds_commands(block: Block) -> None:
    for line in commands(block):
        assert line.startswith(("kitae ", *OTHER_COMMANDS)), f"{line!r}: mark output as ```text"


@pytest.mark.parametrize("line", COMMANDS)
def test_commands_are_understood(line: str) -> None:
    words = shlex.split(line, comments=True)
    app.parse_args(words[1:], exit_on_error=False, print_error=False)
    if words[1:2] == ["study"] and "ablate" not in words and "mine.yaml" not in words:
        StudySpec.load(words[2])
    assignments = words[words.index("--set") + 1 :] if "--set" in words and words[1] == "train" else []
    fields = [word for word in assignments if "=" in word and not word.startswith("--")]
    if fields and not any("pretrained" in field for field in fields):
        recipe = Recipe.load(words[2] if words[2] in shipped() else "cifar10-strong").override(*fields)
        if any(field.startswith("model.name=") for field in fields):
            build(recipe.model, classes=10, channels=3, image_size=32)


@pytest.mark.parametrize("settings", SETTINGS)
def test_settings_of_another_library_are_understood(settings: str) -> None:
    recipe = Recipe.load("finetune").override("augment.mix={mixup_alpha: 0.2}", *shlex.split(settings)[1:])
    check_name(recipe.model)


@pytest.mark.parametrize("block", of("yaml"))
def test_yaml_blocks_load(block: Block) -> None:
    if block.why_not:
        pytest.skip(block.why_not)
    content = yaml.safe_load(block.text)
    if content.keys() <= Recipe.model_fields.keys():
        Recipe.model_validate(content)
        return
    # A study, or a part of one.
    whole = {"name": "docs", "base": "fashion-mini", "design": "sweep", "factors": {"seed": {"train.ema": [None, 0.9]}}}
    if {"factors", "variants"} & content.keys():
        whole.pop("factors")
    if "claims" in content and "factors" not in content:  # each about an effect of the study around it
        variants = {claim["effect"]: {} for claim in content["claims"].values()}
        whole |= {"design": "compare", "factors": {}, "variants": {"reference": {}, **variants}}
    StudySpec.model_validate({**whole, **content})


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the blocks name: photographs, a finished run, an exported file."""
    import kitae as kt

    folder = tmp_path_factory.mktemp("docs")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("KITAE_CACHE", str(folder / "cache"))
        recipe = Recipe.load("fashion-mini").override(
            "data.limit=200", "model={name: resnet8, width: 8}", "train.epochs=1", "train.batch_size=32",
            "train.precision=fp32",
        )  # fmt: skip
        run = kt.train(recipe, out="runs/first")
        shutil.copytree("runs/first", "runs/photos")
        kt.export(run, "model.onnx")
        write_folder(folder / "photos", train=12, classes=3)
        shutil.copytree(folder / "photos", folder / "new-photos")
        for name in ("photo.jpg", "cat.jpg", "dog.png"):
            Image.fromarray(np.zeros((40, 30, 3), np.uint8)).save(name)
        (folder / "studies").symlink_to(ROOT / "studies")
    return folder


@pytest.mark.parametrize("block", of("python"))
def test_python_blocks_run(block: Block, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if block.why_not:
        pytest.skip(block.why_not)
    shutil.copytree(place, tmp_path / "here", symlinks=True, ignore=shutil.ignore_patterns("cache"))
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("KITAE_CACHE", str(place / "cache"))
    exec(compile(block.text, f"{block.page.name}:{block.line}", "exec"), {"__name__": "docs"})


@pytest.mark.parametrize(
    "rules",
    [
        PreprocessRules(28, 1),
        PreprocessRules(32, 3, "squash"),
        PreprocessRules(32, 3, "crop", store_size=40),
        PreprocessRules((24, 32), 3, "crop", store_size=36, crop_pct=0.875),
        PreprocessRules(48, 3, "squash", store_size=100, crop_pct=0.875),
    ],
    ids=str,
)
def test_preparing_an_image_as_the_guide_shows_gives_the_same_pixels(rules: PreprocessRules, place: Path) -> None:
    (code,) = [block.text for block in BLOCKS if "def prepare(path, rules)" in block.text]
    scope: dict[str, Any] = {}
    exec(code[: code.index("session = ")], scope)
    files = sorted((place / "photos").rglob("*.*"))[:8]  # some are turned by EXIF, and of several sizes
    for file in files:
        with Image.open(file) as image:
            if "A" not in image.mode:
                assert np.array_equal(scope["prepare"](file, rules.to_dict())[0], decode(file, rules)), file


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
        if "://" not in target:
            assert (page.parent / target).exists(), target


@pytest.mark.parametrize("script", ["recipe_reference"])
def test_pages_made_by_a_script_are_up_to_date(script: str) -> None:
    """Run the script again if this fails: python scripts/NAME.py"""
    module = importlib.import_module(script)
    assert module.PAGE.read_text(encoding="utf-8") == module.page()


def test_every_network_is_named() -> None:
    text = (ROOT / "docs/guides/train.md").read_text(encoding="utf-8")
    assert not [name for name in MODELS if f"`{name}`" not in text]


def test_every_metric_and_step_of_a_study_is_named() -> None:
    text = (ROOT / "docs/studies.md").read_text(encoding="utf-8")
    parameters = {name for step in STEPS.values() for name in list(inspect.signature(step).parameters)[2:]}
    assert not [
        name for name in {*OF_RUN, *EVALUATION, *STEPS, *parameters} if not re.search(rf"`(test\.)?{name}`", text)
    ]


def test_every_field_of_a_recipe_has_a_meaning() -> None:
    rows = [line for line in (ROOT / "docs/recipe.md").read_text(encoding="utf-8").splitlines() if line[:3] == "| `"]
    assert len(rows) > 100
    assert not [row for row in rows if not row.removesuffix("|").rpartition("|")[2].strip()]


@pytest.mark.parametrize("script", ["benchmark_pages", "measured"])
def test_pages_of_results_are_up_to_date(script: str) -> None:
    """Run the script again if this fails: python scripts/NAME.py"""
    for page, text in importlib.import_module(script).pages().items():
        assert page.read_text(encoding="utf-8") == text, page.name


@pytest.mark.parametrize("name", ["ALONE", "BESIDE"])
def test_the_epochs_of_the_steps_on_cifar10_add_up_to_the_run(name: str) -> None:
    steps = importlib.import_module("cifar10_steps")
    end, found = steps.run_points(getattr(steps, name))[-1], steps.load(f"{getattr(steps, name)}.json")
    assert end.flops == pytest.approx(found["training_flops"], rel=1e-9)
    assert end.seconds == pytest.approx(found["training_seconds"])


def test_the_ledger_is_up_to_date(tmp_path: Path) -> None:
    """Run the script again if this fails: python scripts/ledger.py studies/results --out docs/ledger.md"""
    ledger = importlib.import_module("ledger")
    results = ledger.load(ROOT / "studies/results")
    text = ledger.markdown(results, ledger.compression_claims.rows())
    assert (ROOT / "docs/ledger.md").read_text(encoding="utf-8") == text
    assert_alike([ledger.draw(results, tmp_path / "ledger.md")], ROOT / "docs/images")


def test_accuracy_with_the_transforms_of_torchvision_is_told_as_measured() -> None:
    found = json.loads((ROOT / "benchmarks/results/parity.json").read_text())
    text = " ".join((ROOT / "docs/benchmarks/parity.md").read_text(encoding="utf-8").split())
    runs = {(run["seed"], run["arm"]): run for run in found["runs"]}
    for seed in range(3):
        cells = [f"{100 * runs[seed, arm]['accuracy']:.2f} %" for arm in ("torchvision", "kitae")]
        assert f"| {seed} | {' | '.join(cells)} |" in text
    low, high = found["interval"]
    assert f"**{found['difference']:+.2f} points, 95 % interval {low:+.2f} to {high:+.2f}**" in text
    assert f"varies by {found['seed_noise']['sd']:.2f} (" in text
    ours, theirs = (np.mean([runs[s, arm]["seconds"] for s in range(3)]) for arm in ("kitae", "torchvision"))
    assert f"{ours:.0f} s with our augmentation and {theirs:.0f} s" in text


def test_figures_of_a_gpu_are_told_as_measured() -> None:
    text = (ROOT / "docs/benchmarks/gpu.md").read_text(encoding="utf-8").replace("**", "")
    results = ROOT / "benchmarks/results/gpu"
    ways = ("kitae, compiled executor, then copied", "kitae, torch executor on the device", "kornia",
            "torchvision, image by image on the device")  # fmt: skip
    works = {
        "standard": "crop, flip, jitter, erasing", "auto_augment": "AutoAugment", "rand_augment": "RandAugment",
        "random_resized_crop": "random resized crop, flip",
    }  # fmt: skip
    for name, row in json.loads((results / "augment.json").read_text())["works"].items():
        work, side = name.split()
        medians = [row["images_per_second"][way]["median"] for way in ways]
        cells = [f"{float(format(median, '.3g')):,.0f}" for median in medians]
        assert f"| {works[work]}, {side} px | {' | '.join(cells)} |" in text
    networks = json.loads((results / "steps.json").read_text())["networks"]
    steps = {"fp32": "fp32", "bf16": "bf16", "fp16": "fp16", "bf16 compiled": "bf16, torch.compile",
             "bare bf16": "a bare loop in bf16"}  # fmt: skip
    for step, words in steps.items():
        cells = []
        for network in ("resnet9-w32-32", "resnet18-32"):
            row = networks[network]
            cells += [f"{1000 * row['seconds'][step]['median']:.1f}", f"{row['peak_bytes'][step] / 2**20:,.0f} MiB"]
        assert f"| {words} | {' | '.join(cells)} |" in text
    equal = json.loads((results / "parity.json").read_text())
    assert f"of {equal['of']} ops and pipelines {equal['equal']} are equal" in " ".join(text.split())


def _headlines() -> Iterator[str]:
    """The figures of the READMEs, from the results that they are taken from."""

    def result(name: str) -> Any:
        return json.loads((ROOT / "benchmarks/results" / name).read_text())

    augment = result("augment.json")
    standard = next(work for work in augment["works"] if (work["work"], work["size"]) == ("standard", 32))
    yield f"{float(format(standard['modes']['all']['kitae']['median'], '.3g')):,.0f}"
    for goal in augment["goals"]:
        if goal["goal"].startswith("standard, 32 px"):
            yield f"{goal['reached']:.0f}"
    seeds = [result(f"speed/cpu-11-epochs-seed{seed}.json") for seed in range(5)]
    yield f"{100 * np.mean([run['test']['accuracy'] for run in seeds]):.1f}"
    yield f"{100 * seeds[0]['test']['accuracy']:.1f}"
    yield f"{seeds[0]['training_seconds'] / 60:.0f}"
    reached = {(row["set"], row["contestant"], row["budget"]): row for row in result("quality.json")["paired"]}
    for contestant, minutes in (("kitae", 1), ("kitae", 5), ("torchvision", 5), ("probe-320", 5)):
        yield f"{100 * reached['trashnet', contestant, minutes]['accuracy']:.1f}"
    probe = reached["trashnet", "probe-320", 5]
    yield f"{probe['seconds']:.0f}"
    second = result("speed/cpu-11-epochs-seed0-beside-airbench.json")
    yield f"{100 * np.mean([run['test']['accuracy'] for run in (second, *seeds[1:])]):.1f}"

    def effect(study: str, name: str) -> Any:
        found = json.loads((ROOT / "studies/results" / study / "effects.json").read_text())
        return next(one for one in found["analyses"]["test.accuracy"]["effects"] if one["name"] == name)

    for name in ("mixup", "cutmix"):  # that cost points
        yield f"{-effect('ledger-small', name)['estimate']:.1f}"
    gains = [effect("ledger-trained", name) for name in ("mixup", "cutmix", "auto_augment", "rand_augment")]
    yield f"{min(gain['estimate'] for gain in gains):.1f}"
    yield f"{max(gain['estimate'] for gain in gains):.1f}"
    for bound in ("estimate", "low", "high"):
        yield f"{effect('ledger-trained', 'full')[bound]:.1f}"
    yield f"{effect('ledger-when-200-epochs', 'full')['estimate']:.1f}"
    assert not effect("ledger-trained", "smoothing")["shown"]
    small = [result(f"compression/few-{seed}.json") for seed in range(3)]
    yield f"{small[0]['smaller']:.1f}"
    yield f"{min(run['faster'] for run in small):.1f}"
    yield f"{max(run['faster'] for run in small):.1f}"
    yield f"{np.mean([run['test']['drop'] for run in small]):.1f}"


@pytest.mark.parametrize("name", ["README.md", "README.ja.md"])
def test_the_figures_of_the_readmes_are_those_of_the_results(name: str) -> None:
    text = (ROOT / name).read_text()
    for figure in _headlines():
        assert re.search(rf"(?<![\d.,]){re.escape(figure)}(?![\d,]|\.\d)", text), figure


def test_the_run_in_the_readme_is_the_committed_one() -> None:
    """Its lines are lines of the output, in this order; `...` leaves some out."""
    (block,) = re.findall(
        r"```text\n\$ kitae train photos-mini[^\n]*\n(.*?)```", (ROOT / "README.md").read_text(), re.S
    )
    output = (ROOT / "benchmarks/results/photos-mini-3-minutes/output.txt").read_text().splitlines()
    place = 0
    for line in block.splitlines():
        if line != "...":
            assert line in output[place:], line
            place = output.index(line, place) + 1


def test_pictures_of_definitions_are_up_to_date(tmp_path: Path) -> None:
    doc_pictures = importlib.import_module("doc_pictures")
    *pictures, curves = doc_pictures.draw(tmp_path)
    assert curves.read_text() == (doc_pictures.IMAGES / curves.name).read_text()
    assert_alike(pictures, doc_pictures.IMAGES)


@pytest.mark.parametrize(("readme", "marks"), [("README.md", "yes partly no"), ("README.ja.md", "○ △ ×")])
def test_the_cells_of_the_readmes_are_those_that_were_checked(readme: str, marks: str) -> None:
    rivals = importlib.import_module("rivals")
    found = json.loads(rivals.CELLS.read_text())
    assert rivals.PAGE.read_text() == rivals.markdown(found), "python scripts/rivals.py"
    lines = [line.strip("| ").split(" | ") for line in (ROOT / readme).read_text().splitlines() if "|" in line]
    at = next(i for i, cells in enumerate(lines) if cells[0] == "timm")
    rows = lines[at + 2 : at + 12]
    words = dict(zip(("yes", "partly", "no"), marks.split(), strict=True))
    checked: dict[str, list[str]] = {}
    for cell in found["cells"]:
        checked.setdefault(cell["row"], []).append(words[cell["cell"]])
        assert cell["evidence"].endswith((".", ")"))
    assert [row[1:] for row in rows] == [[*cells, words["yes"]] for cells in checked.values()]
    assert readme != "README.md" or [row[0] for row in rows] == list(checked)
    assert list(found["read"]) == lines[at][:-1]


def test_every_technique_has_a_picture() -> None:
    pages = [page for page in (ROOT / "docs/techniques").glob("*.md") if page.stem != "index"]
    assert len(pages) > 10
    assert not [page.name for page in pages if not re.search(r"!\[[^]]+\]\(\.\./", page.read_text())]


def test_every_picture_is_shown() -> None:
    text = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    assert not [file.name for file in (ROOT / "docs/images").glob("*.*") if f"images/{file.name})" not in text]


def test_the_minutes_that_a_plan_takes_are_those_measured() -> None:
    shares: dict[bool, list[float]] = {}
    for row in json.loads((ROOT / "benchmarks/results/quality.json").read_text())["rows"]:
        if row["contestant"] == "kitae":
            shares.setdefault(row["budget"] == 1, []).append(row["seconds"] / 60 / row["budget"])
    some, one = ([f"{100 * edge(found):.0f}" for edge in (min, max)] for found in (shares[False], shares[True]))
    text = " ".join((ROOT / "docs/start.md").read_text().split())
    assert f"it took {some[0]} to {some[1]} % of five and of fifteen minutes, and {one[0]} to {one[1]} % of one" in text


def test_few_images_are_told_as_measured() -> None:
    paired = json.loads((ROOT / "benchmarks/results/quality.json").read_text())["paired"]
    kitae = [row for row in paired if row["contestant"] == "kitae" and row["set"].endswith(":200")]
    text = " ".join((ROOT / "docs/faq.md").read_text().split())
    for minutes, told in ((1, "one minute reached"), (5, "five minutes")):
        small = [100 * row["accuracy"] for row in kitae if row["budget"] == minutes]
        assert len(small) == 3
        assert f"{told} {min(small):.0f} to {max(small):.0f} %" in text


def test_progressive_resizing_and_averages_are_told_as_measured() -> None:
    results = ROOT / "benchmarks/results"
    seconds = [
        [json.loads((results / f"progressive/{name}-seed{seed}.json").read_text())["training_seconds"]
         for seed in range(3)]
        for name in ("small-first", "full-size")
    ]  # fmt: skip
    parts = [f"{small / full:.2f}" for small, full in zip(*seconds, strict=True)]
    text = " ".join((ROOT / "docs/techniques/progressive.md").read_text().split())
    assert f"{parts[0]}, {parts[1]} and {parts[2]} of the seconds" in text
    tuned = {one["name"]: one for one in json.loads((results / "speed/tune.json").read_text())["effects"]}
    text = " ".join((ROOT / "docs/techniques/ema.md").read_text().split())
    assert "0.9 and 0.95 changed" in text
    assert f"by {tuned['ema90']['estimate']:+.2f} and {tuned['ema95']['estimate']:+.2f} points" in text
    assert {tuned[name]["text"]["interval"] for name in ("ema90", "ema95")} == {"-0.2 to +0.2"}


def test_calibration_and_probes_are_told_as_measured() -> None:
    measured = importlib.import_module("measured")
    runs, longtail = measured.calibrations("ledger-trained"), measured.calibrations("ledger-minority")
    softened = runs["variant"].isin(["mixup", "cutmix", "smoothing", "full"])
    assert runs.loc[softened, "temperature"].max() < 1 < runs.loc[~softened, "temperature"].min()
    assert longtail["ece"].min() > 3 * runs["ece"].max()
    assert (runs["after"] <= runs["before"]).all()
    gains = {
        (variant, name): [row["val_accuracy"] - row["probe"] for row in splits]
        for variant in ("stages", "few")
        for name, splits in measured.fine_tunings(variant).items()
    }
    textile = [gain for (_, name), found in gains.items() if name == "Simulated textile" for gain in found]
    others = [gain for (_, name), found in gains.items() if name != "Simulated textile" for gain in found]
    assert min(textile) > max(others)
    assert max(max(gains["few", name]) for name in ("photos-mini", "TrashNet")) < 0.015
    run = ROOT / "benchmarks/results/photos-mini-3-minutes/evaluation.json"
    assert json.loads(run.read_text())["best_epoch"] == 0


def _lasted(seconds: float) -> str:
    return "{} min {} s".format(*divmod(round(seconds), 60))


def test_the_trainings_of_cifar10_and_of_the_shipped_recipes_are_told_as_measured() -> None:
    results = ROOT / "benchmarks/results"

    def load(*names: str) -> list[Any]:
        return [json.loads((results / f"{name}.json").read_text()) for name in names]

    def one(run: Any) -> str:
        low, high = run["test"]["accuracy_interval"]
        return f"{100 * run['test']['accuracy']:.1f} % ({100 * low:.1f} to {100 * high:.1f})"

    page = (ROOT / "docs/benchmarks/cifar10.md").read_text(encoding="utf-8")
    for name in ("7-epochs", "5-epochs", "11-epochs-until-half", "9-epochs"):
        (run,) = load(f"speed/cpu-{name}-seed0")
        row = f"| two CPU cores, one seed | {one(run)} | {_lasted(run['training_seconds'])} | "
        assert f"{row}{run['training_flops']:.1e}".replace("e+", "e") in page, name
    guide = " ".join((ROOT / "docs/guides/train.md").read_text(encoding="utf-8").split())
    mean_interval = importlib.import_module("means").mean_interval
    seeds = ("", "-seed1", "-seed2")
    speed = [f"speed/cpu-11-epochs-seed{seed}" for seed in range(5)]
    for names, of in (([f"fashion-mini{seed}" for seed in seeds], "three"),
                      ([f"cifar10-quick{seed}" for seed in seeds], "three"), (speed, "five")):  # fmt: skip
        mean, low, high = mean_interval([100 * run["test"]["accuracy"] for run in load(*names)])
        assert f"{mean:.1f} % (mean of {of} seeds, {low:.1f} to {high:.1f})" in guide
    for name in ("cifar10-quick", speed[0]):
        (run,) = load(name)
        assert f"{100 * run['test']['accuracy']:.1f} % after {_lasted(run['training_seconds'])} of training" in guide
    (run,) = load("fashion-mnist")
    assert f"{_lasted(run['training_seconds'])} of training, {one(run)}" in guide
    (run,) = load("cifar10-strong-width-32")
    assert f"{one(run)} after {_lasted(run['training_seconds'])} of training" in guide
    recipe = shipped()["cifar10-strong"].replace("\n#", "")
    assert f"{_lasted(run['training_seconds'])} of training, {run['training_flops']:.1e}".replace("e+", "e") in recipe
    assert one(run).replace("(", "on test (").replace(")", ", seed 0, 2 views)") in recipe


def test_simulated_studies_shards_and_waits_are_told_as_measured() -> None:
    def result(name: str) -> Any:
        return json.loads((ROOT / f"benchmarks/results/{name}.json").read_text())

    def words(page: str) -> str:
        return " ".join((ROOT / "docs" / page).read_text(encoding="utf-8").split())

    studies = words("studies.md")
    for row in result("simulated_studies")["rows"]:
        covered, false = (format(row[name], ".1%").replace("%", " %") for name in ("covered", "false_winners"))
        assert re.search(rf"\| (covers |its own )?{covered}, (false winners )?{false} \|", studies), row
    plans = {
        (row["effects"], row["seeds"]): row for row in result("simulated_studies")["rows"] if "planned_effect" in row
    }
    told = [f"{plans[case]['planned_effect']:.1f}" for case in ((5, 3), (5, 5), (7, 3))]
    shown = [f"{100 * plans[case]['planned_effect_shown']:.0f}" for case in ((5, 3), (5, 5), (7, 3))]
    assert f"smallest effect is {told[0]} standard deviations of a run, and {shown[0]} of 100 studies" in studies
    assert f"(5 seeds: {told[1]} and {shown[1]})" in studies
    assert f"a screening of 7 with 3 seeds: {told[2]} and {shown[2]}." in studies
    shards, scale = result("shards"), words("scale.md")
    over = {name: row["median"] for name, row in shards["kitae_over"].items()}
    assert (
        f"{shards['images_per_second']['kitae']['median']:,.0f} images per second: {over['torchvision']:.1f} times"
        in scale
    )
    assert f"{over['webdataset']:.1f} times as fast as the webdataset" in scale
    assert f"{over['pillow']:.2f} times as fast as Pillow alone" in scale
    assert f"That is {over['decoder']:.2f} of the rate" in scale
    used = [size for _, size in shards["memory"]["rss_anon"]]
    quarter = len(used) // 4
    grown = np.mean(used[3 * quarter :]) / np.mean(used[quarter : 2 * quarter]) - 1
    assert f"memory grew by {100 * grown:.1f} % from the second to the last quarter" in scale
    beside = [row["over_pytorch"]["median"] for row in result("waiting")["rows"] if row["beside"]]
    assert f"training is {min(beside):.1f} to {max(beside):.1f} times as fast" in words("troubleshooting.md")


def test_early_stopping_is_told_as_measured() -> None:
    accuracy, best, stopped = importlib.import_module("technique_pictures").early_stop()
    text = " ".join((ROOT / "docs/techniques/early-stopping.md").read_text().split())
    wanted = f"stopped after epoch {stopped + 1} and kept {100 * best[stopped]:.1f} % on validation instead of "
    assert wanted + f"{100 * accuracy[-1]:.1f} %" in text


def test_pictures_of_augmentation_are_up_to_date(tmp_path: Path) -> None:
    doc_pictures = importlib.import_module("doc_pictures")
    doc_pictures.augment(doc_pictures.PHOTOS, out=tmp_path)
    pictures = sorted(tmp_path.glob("*.png"))
    assert len(pictures) == 8
    assert_alike(pictures, doc_pictures.IMAGES)


def test_the_api_pages_have_what_the_package_hands_out() -> None:
    """Public names of augmentation, results of the verbs, and what the errors are called."""
    text = "".join(page.read_text() for page in (ROOT / "docs" / "api").glob("*.md"))
    verbs = ("train", "compress", "study", "search", "export", "check", "load", "report")
    names = {"MixSpec", "Program", "CustomOp", "Draw", "Augment", "functional"}
    for verb in verbs:
        returned = str(inspect.signature(getattr(kitae, verb)).return_annotation)
        names |= {verb, *re.findall(r"[A-Z]\w+", returned)}
    assert "::: kitae.errors\n" in text
    assert not [name for name in names - {"Path", "Any"} if f".{name}\n" not in text]


def test_every_page_is_in_the_navigation() -> None:
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    for page in (ROOT / "docs").rglob("*.md"):
        assert page.relative_to(ROOT / "docs").as_posix() in text, page


@pytest.mark.slow
@pytest.mark.skipif(find_spec("mkdocs") is None or find_spec("mkdocstrings") is None, reason="needs the extra docs")
def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "WARNING  -" not in done.stderr
    page = (tmp_path / "site" / "api" / "runs.html").read_text(encoding="utf-8")
    assert "predict" in page
    assert not re.search(r'(?:src|href)="https?://[^"]*\.(?:js|css|woff2?)"', page)  # nothing is loaded from elsewhere
