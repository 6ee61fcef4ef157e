"""Studies, searches, benchmarks, pictures, recipes."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from kitae import console
from kitae.cli.app import (
    RESEARCH,
    Open,
    Sets,
    Whole,
    WholeOrDefault,
    answering,
    app,
    bench_app,
    show_app,
    study_app,
    write_page,
)
from kitae.cli.data import data_spec, require_outside
from kitae.errors import KitaeError, RecipeError, did_you_mean, require

_Recipe = Annotated[str, Parameter(help="A shipped recipe's name or a .yaml file.")]
# Of every command that runs studies.
_Workers = Annotated[Whole, Parameter(help="Runs to do in parallel.")]
_Threads = Annotated[WholeOrDefault, Parameter(help="Threads per run; default: its share of this machine's cores.")]
_RAY = "Address of a Ray cluster to run on, or `local`"
_Ray = Annotated[str | None, Parameter(help=f"{_RAY}.")]
_RayOfSearch = Annotated[
    str | None, Parameter(help=f"{_RAY}; also set --workers and --threads to what the cluster has room for.")
]
_Gpus = Annotated[float, Parameter(help="With --ray, GPUs of each run, such as 1 or 0.5; it sees no others.")]


@study_app.default
@answering
def study(
    spec: str | None = None,
    *,
    out: Path | None = None,
    set_: Sets = None,
    plan: bool = False,
    tiny: bool = False,
    workers: _Workers = 1,
    threads: _Threads = None,
    ray: _Ray = None,
    gpus: _Gpus = 0,
    overwrite: bool = False,
    open_: Open = False,
) -> None:
    """Run or resume a study, and print what it shows.

    Example: kitae study mixing --plan

    Args:
        spec: A study file or a shipped study's name; without it the shipped ones are listed.
        out: The study folder; default runs/study-NAME. An interrupted study is resumed.
        plan: Print the runs, the estimated time and the smallest effect that the seeds can show, then stop.
        tiny: Run the study's tiny version, to check that the file works; its numbers mean nothing.
        overwrite: Replace the study in --out.
    """
    if spec is None:
        given = {"--out": out, "--set": set_, "--plan": plan, "--tiny": tiny, "--ray": ray, "--overwrite": overwrite}
        if option := next((name for name, value in given.items() if value), None):
            raise RecipeError(f"{option}: needs the name of a study: kitae study NAME {option} ...")
        from kitae.experiments.study_spec import StudySpec, shipped

        _list("study", {name: StudySpec.load(name).about for name in shipped()}, "what it measures")
        return
    if not plan:
        console.starting(f"study {spec}")
    _study(
        spec, *(set_ or ()), plan=plan, out=out, cluster=_ray(ray, gpus, plan=plan), overwrite=overwrite,
        browser=open_, tiny=tiny, workers=workers, threads=threads,
    )  # fmt: skip


def _list(what: str, abouts: Mapping[str, str], about: str) -> None:
    """Print the names of shipped files, each with its sentence."""
    console.answer([{"name": name, "about": text} for name, text in abouts.items()])
    console.table("", [what, about], [[name, text] for name, text in abouts.items()], right=9)


def _study(
    spec: Any, *assignments: str, plan: bool, out: Path | None, cluster: Any, overwrite: bool, browser: bool,
    **options: Any,
) -> None:  # fmt: skip
    """Plan a study, or run it and print its result; exit with 1 where every run failed."""
    from kitae.experiments.study import plan_study, study

    if plan:
        planned = plan_study(spec, *assignments, **options)
        console.answer(planned.data())
        console.say(planned.text())
        return
    result = study(spec, out, *assignments, overwrite=overwrite, executor=cluster, report=console.say, **options)
    console.answer({"path": result.path, **result.data()})
    _print_result(result)
    console.say(f"everything is in {result.path}")
    write_page(result.path, browser=browser)
    if len(result.failed) == len(result.runs):
        sys.exit(1)


def _print_result(result: Any) -> None:
    """Print the result of a study or a search: as text on a terminal, else its tables as tab-separated values."""
    if console.interactive():  # as text its tables may be wider than the terminal, and can be copied from it
        console.say(result.table())
        return
    for part in result.parts():
        if isinstance(part, str):
            console.say(part)
        else:
            console.table("", *part)


def _ray(address: str | None, gpus: float, *, plan: bool = False) -> Any:
    if address is None:
        if gpus:
            raise RecipeError(f"--gpus {gpus:g}: only Ray gives GPUs to runs; on this machine alone, add --ray local")
        return None
    if not plan:
        require("ray")  # which is not used before the plan is made
    from kitae.experiments.executors import RayCluster

    return RayCluster(None if address == "local" else address, gpus)


@study_app.command
@answering
def ablate(
    recipe: _Recipe,
    *,
    out: Path | None = None,
    set_: Sets = None,
    design: Literal["one_out", "one_in", "screening"] = "one_out",
    seeds: Whole = 3,
    only: list[str] | None = None,
    metric: str = "test.accuracy",
    foldover: bool = False,
    plan: bool = False,
    workers: _Workers = 1,
    threads: _Threads = None,
    ray: _Ray = None,
    gpus: _Gpus = 0,
    overwrite: bool = False,
    open_: Open = False,
) -> None:
    """Run an ablation study of a recipe: what does each of its techniques contribute?

    Example: kitae study ablate fashion-mini --seeds 5

    Args:
        out: The study folder; default runs/study-NAME. An interrupted study is resumed.
        design: one_out removes each technique, one_in adds each alone, screening averages over the others.
        seeds: Number of seeds.
        only: Names of the techniques to vary; --plan lists them.
        metric: The number to compare: test.accuracy, val.accuracy, test.balanced_accuracy, ...; as in a study file.
        foldover: With screening: twice the runs, so that interactions of two techniques do not bias the averages.
        plan: Print the plan and stop.
        overwrite: Replace the study in --out.
    """
    if not plan:
        console.starting(f"study ablate {recipe}")
    from kitae.experiments.study_spec import ablation

    spec = ablation(
        recipe, *(set_ or ()), design=design, seeds=seeds, only=only or (), metric=metric, foldover=foldover
    )
    _study(
        spec, plan=plan, out=out, cluster=_ray(ray, gpus, plan=plan), overwrite=overwrite, browser=open_,
        workers=workers, threads=threads,
    )  # fmt: skip


@app.command(group=RESEARCH, sort_key=2)
@answering
def search(
    data: str,
    *,
    recipe: str = "fashion-mini",
    out: Path = Path("runs/search"),
    set_: Sets = None,
    arms: Whole = 30,
    rematch_seeds: Whole = 5,
    workers: _Workers = 1,
    threads: _Threads = None,
    ray: _RayOfSearch = None,
    gpus: _Gpus = 0,
    overwrite: bool = False,
) -> None:
    """Search for the augmentation, mixing and smoothing that suit your data: presets first, a rematch at the end.

    Example: kitae search photos/

    Args:
        data: A folder, a .parquet or a .csv file, or a source as in a recipe's data.source.
        recipe: The recipe that gives the model and the number of epochs.
        out: The search folder; an interrupted search is resumed.
        arms: Number of settings to try, including the presets.
        rematch_seeds: Number of new seeds for the rematch between the winner and the best preset.
        overwrite: Replace the search in --out.
    """
    console.starting(f"search {data}")
    from kitae.data.sources import source_named
    from kitae.experiments.search import search as run_search
    from kitae.recipe import Recipe, assignments

    result = run_search(
        Recipe.load(recipe), out, *assignments({"data.source": source_named(data)}), *(set_ or ()), arms=arms,
        rematch_seeds=rematch_seeds, workers=workers, threads=threads, executor=_ray(ray, gpus), overwrite=overwrite,
        report=console.say,
    )  # fmt: skip
    console.answer({"path": result.path, **result.data()})
    _print_result(result)
    console.say(f"the winner's recipe is {out / 'winner.yaml'}")


_GALLERY_SIZE = 128  # pixels of photographs, unless data.image_size is set


@show_app.command
def augment(data: str = "fashion-mini", *, out: Path = Path("gallery"), set_: Sets = None, seed: Whole = 0) -> None:
    """Draw every augmentation on your own training images.

    Example: kitae show augment photos/

    Args:
        data: A folder, a .parquet or a .csv file, or a source as in a recipe's data.source.
        out: The folder for the pictures.
        seed: Seed of the random parameters that are drawn.
    """
    with console.status(f"show augment {data}"):
        import numpy as np

        from kitae.data.splits import make_splits
        from kitae.data.store import open_store
        from kitae.pipelines.facts import framed
        from kitae.recipe import assigns
        from kitae.reporting.gallery import draw_gallery

        given = data_spec(data, set_)
        require_outside(out, given)
        spec = framed(given, _GALLERY_SIZE, resize=assigns(set_ or (), "data.resize"))
        with console.counting("decoding images") as progress:
            store = open_store(spec, progress=progress)
        train = make_splits(store, spec).train
        rows = np.concatenate([train[store.labels[train] == label][:8] for label in range(len(store.classes))])
        files = draw_gallery(store.images[rows], store.labels[rows], store.classes, out, seed)
    for file in files:
        console.say(str(file))


@show_app.command
@answering
def mistakes(run: Path, *, class_: Annotated[str | None, Parameter(name="--class")] = None) -> None:
    """List the test images that a run gets wrong, the most confident mistakes first.

    Of a cross-validated run (`kitae train --folds`), the out-of-fold images. A confident mistake may be a wrong label.

    Example: kitae show mistakes runs/mine

    Args:
        run: A finished run's folder.
        class_: Only images of this class, or predicted as it.
    """
    from kitae.data.base import composed
    from kitae.reporting.results import RunRecord
    from kitae.run import Run

    opened = Run.open(run)
    opened.require_finished()
    record = RunRecord.open(opened)
    found, names = record.predicted, record.facts.classes
    if found is None:
        raise KitaeError(f"{run}: has no predictions.parquet; it was trained without a test, or the file was deleted")
    class_ = None if class_ is None else composed(class_)
    if class_ is not None and class_ not in names:
        raise RecipeError(f"--class {class_}: is not a class of {run}{did_you_mean(class_, names)}")
    rows = [
        {"image": found.names[i], "class": names[found.label[i]], "predicted": names[found.predicted[i]],
         "confidence": float(found.confidence[i])}
        for i in found.mistakes()
    ]  # fmt: skip
    rows = [row for row in rows if class_ is None or class_ in (row["class"], row["predicted"])]
    console.answer({"path": run, "where": record.evaluation.where, "images": len(found.names), "mistakes": rows})
    console.listing(
        ["image", "class", "predicted", "confidence"],
        [[row["image"], row["class"], row["predicted"], console.percent(row["confidence"])] for row in rows],
        "not shown; pipe the output or use --json to get all", right=3,
    )  # fmt: skip
    of_class = "" if class_ is None else f" with {class_}"
    console.remark(
        f"{console.plural(len(rows), 'mistake')}{of_class} in {len(found.names):,} images ({record.evaluation.where}); "
        f"{opened.report} shows the most confident ones"
    )


def _benched(
    run: Callable[..., dict[str, Any]], recipe: str, assignments: list[str] | None
) -> tuple[dict[str, Any], str]:
    """What a benchmark measures of a recipe with these overrides, and the title of its table."""
    from kitae.recipe import Recipe

    with console.counting("decoding images") as progress:
        facts = run(Recipe.load(recipe).override(*(assignments or ())), progress)
    console.answer(facts)
    return facts, f"a batch of {facts['batch_size']} images, {facts['device']}, {facts['threads']} threads"


@bench_app.command(name="precision")
@answering
def bench_precision(recipe: _Recipe = "fashion-mini", *, set_: Sets = None) -> None:
    """Time a training step of a recipe in every precision that this machine supports, and show what `auto` chooses.

    Example: kitae bench precision cifar10-quick
    """
    with console.status(f"bench precision {recipe}"):
        from kitae.pipelines.bench import bench_precision as run_bench

        facts, title = _benched(run_bench, recipe, set_)
    rows = []
    for name, row in facts["precisions"].items():
        low, high = row["interval"]
        rows.append(
            [name + (" (auto)" if name == facts["chosen"] else ""), f"{1000 * row['seconds']:.1f}",
             f"{facts['batch_size'] / row['seconds']:,.0f}", f"{row['ratio']:.2f} ({low:.2f} to {high:.2f})"]
        )  # fmt: skip
    console.table(title, ["precision", "ms", "images/s", "time, fp32 = 1 (95 %)"], rows)
    if facts["behind"] is None:
        console.say(
            f"auto chooses {facts['chosen']}, whose loss is not finite here: set train.precision={facts['fastest']}"
        )
    else:
        console.say(f"auto chooses {facts['chosen']}, which takes {facts['behind']:.2f} times as long as the fastest")


@bench_app.command(name="train")
@answering
def bench_train(recipe: _Recipe = "fashion-mini", *, set_: Sets = None) -> None:
    """Show where the time of a training step goes: data, augmentation, forward, backward, optimizer, other.

    Example: kitae bench train cifar10-quick
    """
    with console.status(f"bench train {recipe}"):
        from kitae.pipelines.bench import bench_train as run_bench

        facts, title = _benched(run_bench, recipe, set_)
    times = facts["milliseconds"]
    whole = sum(times.values())
    rows = [[name, f"{time:.2f}", f"{100 * time / whole:.1f} %"] for name, time in times.items()]
    console.table(f"{title}, {facts['precision']}", ["part", "ms", "share"], rows)
    console.say(f"{1000 * facts['batch_size'] / whole:,.0f} images/s, if nothing overlaps")


@bench_app.default
@answering
def bench(recipe: _Recipe = "fashion-mini", *, set_: Sets = None) -> None:
    """Time reading, augmenting and learning from one batch of a recipe on this machine.

    Example: kitae bench cifar10-quick
    """
    with console.status(f"bench {recipe}"):
        from kitae.pipelines.bench import bench as run_bench

        facts, title = _benched(run_bench, recipe, set_)
    times, copy = facts["milliseconds"], facts["milliseconds"]["copy"]
    words = {"copy": "plain copy to float (the limit)", "gather": "reading the batch", "augment": "augmenting it"}
    parts = [(words[name], f"{time:.2f}", time, f"{copy / time:.2f}") for name, time in times.items()]
    steps = facts["step_milliseconds"].items()
    parts += [(f"forward and backward, {name}", f"{time:.1f}", time, "") for name, time in steps]
    rows = [[name, ms, f"{1000 * facts['batch_size'] / time:,.0f}", limit] for name, ms, time, limit in parts]
    console.table(title, ["part", "ms", "images/s", "relative to the limit"], rows)
    console.say(
        f"augmentation takes {100 * facts['share']:.1f} % of a step; timing the copy twice gave a ratio of "
        f"{facts['control']:.2f} (1.00 on an idle machine)"
    )


@app.command(group=RESEARCH, sort_key=5)
@answering
def recipe(name: str | None = None, *, set_: Sets = None, schema: bool = False) -> None:
    """List the shipped recipes, print one, or print the JSON schema of all recipes.

    Example: kitae recipe fashion-mini

    Args:
        name: A shipped recipe or a .yaml file; without it the shipped ones are listed.
        schema: Print the JSON schema.
    """
    from kitae.recipe import Recipe, read_text, shipped

    if schema and name is not None:
        raise RecipeError(f"--schema: is the same for all recipes; leave out {name}")
    if set_ and (schema or name is None):
        raise RecipeError("--set: needs the name of a recipe: kitae recipe NAME --set ...")
    if schema:
        sys.stdout.write(json.dumps(Recipe.model_json_schema(), indent=2) + "\n")
    elif name is None:
        abouts = {key: text.splitlines()[0].removeprefix("# ") for key, text in shipped().items()}
        _list("recipe", abouts, "what it does")
    else:
        wanted = Recipe.load(name).override(*(set_ or ()))  # an invalid file is an error, not a page of text
        console.answer(wanted)
        console.say((wanted.to_yaml() if set_ else read_text(name)[0]).rstrip("\n"))
