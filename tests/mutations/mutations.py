"""Seeded mistakes, each of which some test must notice: (file, text, replacement, tests that should fail).

The text occurs exactly once in the file. `make check-slow` applies them one by one to a copy of the package.
"""

from __future__ import annotations

from typing import NamedTuple


class Mutation(NamedTuple):
    """One mistake: `text` of src/kitae/`file` becomes `replacement`, and one of `tests` (pytest arguments) fails."""

    file: str
    text: str
    replacement: str
    tests: str


DEPTHWISE = "tests/training/test_depthwise.py"
FIT = "tests/training/test_fit.py"
MIX = "tests/augment/test_engine_mix.py"
BUDGET = "tests/pipelines/test_budget.py"
STATS = "tests/experiments/test_stats.py"
VERIFY = "tests/deployment/test_verify.py"

MUTATIONS = [
    # The loop
    Mutation("training/fit.py", "at.best is not None and value < at.best)", "at.best is not None and value <= at.best)", f"{FIT} -k ties"),
    Mutation("training/fit.py", "spec.validated(at.epoch) - 1 - at.stop_epoch", "at.epoch - 1 - at.stop_epoch", f"{FIT} -k stopping"),
    Mutation("training/fit.py", "if cut_short and at.epoch", "if False and at.epoch", f"{FIT} -k minutes_that_end"),
    Mutation("training/fit.py", "share < self.mix_until", "share <= self.mix_until", f"{FIT} -k not_mixed"),
    Mutation("training/fit.py", "(self.unmixed or self.augment, max(first, mixed)", "(self.unmixed or self.augment, mixed", f"{FIT} -k mixing_ends"),
    Mutation("training/spec.py", "- after // self.validate_every", "- after", "tests/pipelines/test_pace.py -k recut_counts"),
    Mutation("training/spec.py", "if metric == \"val_loss\" else value), -loss", "if metric == \"val_loss\" else value), loss", f"{FIT} -k ties"),
    Mutation("training/fit.py", "at.epoch, at.step, at.seen = at.epoch + 1, 0, 0", "at.epoch, at.step, at.seen = at.epoch + 1, 0, at.seen", f"{FIT} -k 'resume or learns or two_runs'"),
    Mutation("training/batches.py", "batches = samples // batch_size", "batches = -(-samples // batch_size)", f"{FIT} -k 'full_batches or rest'"),
    Mutation("training/batches.py", "min(spec.batch_size, samples - samples % even)", "spec.batch_size", f"{FIT} tests/pipelines/test_train.py -k 'full_batches or shrinks'"),
    Mutation("training/batches.py", "start = step * shape.batch_size + own * world.rank", "start = step * own", "tests/training/test_batches.py"),
    Mutation("training/batches.py", "index=index, step=step)", "index=index, step=0)", "tests/training/test_batches.py"),
    Mutation("training/learner.py", "number = at.epoch * self.shape.steps + at.step", "number = at.step", "tests/training/test_learner.py"),
    Mutation("training/learner.py", "torch._foreach_copy_(self._buffers, self._buffers_before)", "pass", f"{FIT} -k trace"),
    Mutation("training/learner.py", "loss / self.shape.accumulate", "loss", f"{FIT} -k accumulation"),
    Mutation("training/learner.py", "nn.utils.clip_grads_with_norm_(self.model.parameters(), spec.clip_norm, norm)", "pass", "tests/training/test_learner.py"),
    Mutation("training/learner.py", "                self._after_step(self.model)", "                pass", f"{FIT} -k masks"),
    Mutation("training/learner.py", "(1 - self._teacher.weight) * loss + self._teacher.weight * lesson", "loss", f"{FIT} -k teacher"),
    Mutation("training/learner.py", "eps = self.spec.label_smoothing", "eps = 0.0", "tests/training/test_learner.py"),
    Mutation("training/checkpoint.py", "if metadata.get(\"loop\", 1) != LOOP:", "if False:", f"{FIT} -k earlier_loop"),
    Mutation("training/checkpoint.py", "if metadata.get(\"fingerprint\") != fingerprint:", "if False:", f"{FIT} -k same_recipe"),
    Mutation("training/schedule.py", "return (step + 1) / (warmup + 1)", "return step / (warmup + 1)", "tests/training/test_schedule.py"),
    Mutation("training/schedule.py", "(total - step) / (total - peak + 1)", "(total - step) / (total - peak)", "tests/training/test_schedule.py"),
    Mutation("training/optim.py", "decayed = parameter.ndim > 1 and", "decayed =", "tests/training/test_optim.py"),
    Mutation("training/optim.py", "decay = min(self.decay, (1 + updates) / (10 + updates))", "decay = self.decay", "tests/training/test_optim.py"),
    Mutation("training/losses.py", "* temperature**2", "", "tests/training/test_losses.py"),
    Mutation("training/precision.py", "bool(flags & {\"avx512_bf16\", \"amx_bf16\", \"bf16\"})", "True", "tests/training/test_precision.py"),
    Mutation("native/depthwise.py", "p = y + s[9] - i * s[11]", "p = y - s[9] + i * s[11]", DEPTHWISE),
    Mutation("native/threads.py", "last = count * part // parts, count * (part + 1) // parts", "last = count * part // parts, count * part // parts + 1", DEPTHWISE),
    Mutation("native/link.py", "builder.add(builder.add(word, ir.Constant(_I32, 0x7FFF)), odd)", "word", DEPTHWISE),
    Mutation("data/build.py", "if tiny and max(height, width) > TINY:", "if False:", "tests/data/test_store.py -k tiny"),
    # Keyed randomness
    Mutation("keyed.py", "for _ in range(10):", "for _ in range(9):", "tests/test_keyed.py"),
    Mutation("keyed.py", "philox(i & _MASK, i >> _SHIFT, e, s,", "philox(i & _MASK, i & _MASK, e, s,", "tests/test_keyed.py"),
    Mutation("keyed.py", "f\"{name} {occurrence}\"", "f\"{name}\"", "tests/test_keyed.py"),
    Mutation("keyed.py", "+ 0.5) * TWO_POW_MINUS_32)", ") * TWO_POW_MINUS_32)", "tests/test_keyed.py"),
    # Mixing
    Mutation("augment/mix.py", "out[1] = 1.0 - (x2 - x1) * (y2 - y1) / (height * width)", "out[1] = share", MIX),
    Mutation("augment/mix.py", "targets[pairs ^ 1]] += rest", "targets[pairs]] += rest", MIX),
    Mutation("augment/mix.py", "side = math.sqrt(1.0 - share)", "side = 1.0 - share", f"{MIX} tests/augment/test_golden_distributions.py"),
    # Evaluation and statistics
    Mutation("evaluation/evaluate.py", "np.bincount(truth * K + predicted, minlength=K * K)", "np.bincount(predicted * K + truth, minlength=K * K)", "tests/evaluation/test_evaluate.py"),
    Mutation("evaluation/evaluate.py", "model(convert(view)).float() / temperature for view", "model(convert(view)).float() for view", "tests/evaluation/test_evaluate.py tests/pipelines/test_train.py -k 'view or tta or averaged'"),
    Mutation("evaluation/intervals.py", "z * z / (4 * count * count)", "0", "tests/evaluation/test_intervals.py"),
    Mutation("evaluation/intervals.py", "float(2 * estimate - high)", "float(low)", "tests/evaluation/test_intervals.py tests/evaluation/test_calibration.py"),
    Mutation("evaluation/intervals.py", "max(1.0, between / independent)", "1.0", "tests/evaluation/test_intervals.py -k groups"),
    Mutation("evaluation/intervals.py", "effective(now.astype(np.float64) - was, groups, alike=False)", "float(truth.size)", "tests/evaluation/test_intervals.py -k groups"),
    Mutation("evaluation/intervals.py", "p=0.5).confidence_interval(LEVEL)", "p=0.5).confidence_interval(0.9)", "tests/evaluation/test_intervals.py"),
    Mutation("experiments/stats.py", "p_of[what] * (len(p_of) - rank)", "p_of[what] * len(p_of)", f"{STATS} -k 'holm or twice'"),
    Mutation("experiments/stats.py", "total = own.value + share.value", "total = 2 * share.value", f"{STATS} -k 'reference or paired'"),
    Mutation("experiments/stats.py", "own = _Variance(float(apart.var(ddof=1)), len(shared) - 1)", "own = _Variance(float(apart.var(ddof=0)), len(shared))", f"{STATS} -k 'paired or covers or reference'"),
    # The budget
    Mutation("pipelines/candidates.py", 'row["drop_interval"][1] if spec.sure else row["drop"]', 'row["drop"]', f"{BUDGET} -k sure"),
    Mutation("pipelines/candidates.py", "return points <= spec.max_drop + 1e-9", "return points < spec.max_drop", f"{BUDGET} -k budget"),
    Mutation("pipelines/budget.py", 'key=lambda c: (c.row["drop"], c.row["loss"])', 'key=lambda c: (c.row["drop"], -c.row["loss"])', f"{BUDGET} -k ties"),
    Mutation("pipelines/networks.py", 'f"{key} {part}".encode()', 'b""', f"{BUDGET} -k holds_its_zeros"),
    # The probe and the splits
    Mutation("training/probe.py", "min(losses, key=lambda value: losses[value]) if losses", "max(losses, key=lambda value: losses[value]) if losses", "tests/training/test_probe.py"),
    # Export
    Mutation("deployment/verify.py", "got = np.concatenate([*trials, sweep])", "got = np.concatenate([*(sweep[:size] for size in sizes), sweep])", VERIFY),
    Mutation("deployment/verify.py", "got - expected) - (ABSOLUTE + RELATIVE * expected)", "got - expected) - 1.0", VERIFY),
    # found by a review on 2026-11-27
    Mutation("training/spec.py", 'update={"epochs": epochs, "recut": ()}', 'update={"epochs": epochs}', "tests/pipelines/test_train.py -k fine_tuning_scales"),
    Mutation("folders.py", "for name in sorted(self.names, key=lambda name: name == self.first):\n            if (old", "for name in self.names:\n            if (old", "tests/pipelines/test_train.py -k killed_while_it_overwrites"),
    Mutation("data/remote.py", "noted.read_text() != content.hexdigest()", "False", "tests/data/test_shards.py -k has_changed"),
    Mutation("data/parquet.py", "if own != given)", "if False)", "tests/data/test_parquet.py -k number_their_classes"),
    Mutation("pipelines/pace.py", "distributed.from_main(unused(made) <= _UNUSED * clock.seconds, world)", "unused(made) <= _UNUSED * clock.seconds", "tests/pipelines/test_pace.py -k main_process"),
    Mutation("experiments/stats.py", "not (coarse and _chance(raw, negligible))", "True", f"{STATS} -k equal_differences"),
]  # fmt: skip
