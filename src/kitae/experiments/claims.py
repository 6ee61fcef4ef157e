"""Verdicts: whether a measured effect supports a claim."""

from __future__ import annotations

import math
from typing import Literal

from kitae.experiments.stats import Effect

Verdict = Literal["confirmed", "not shown", "refuted"]


def judge(
    effect: Effect, between: tuple[float | None, float | None] | None, within: float | None
) -> tuple[Verdict, str]:
    """Compare a measured effect with a claimed one.

    confirmed   between: an effect in the claimed direction is shown, and its interval reaches the claimed size;
                within: the whole interval is inside.
    refuted     the whole interval is short of the claimed size (between), or outside (within).
    not shown   anything else: the runs do not decide.

    Returns:
        The verdict, and a remark such as `smaller than claimed`.
    """
    if math.isnan(effect.low):
        return "not shown", "no interval"
    none = effect.neutral
    if within is not None:
        if none - within <= effect.low and effect.high <= none + within:
            return "confirmed", ""
        if effect.low > none + within or effect.high < none - within:
            return "refuted", "a larger difference"
        return "not shown", "the interval is wider than the claim"
    assert between is not None
    low, high = between
    up = (low if low is not None else none) >= none and (high is None or high > none)
    # Seen in the claimed direction: `least` is the claimed minimum, `most` its maximum.
    least, most = (low, high) if up else (high, low)
    reach, short = (effect.high, effect.low) if up else (effect.low, effect.high)
    least = none if least is None else least

    def beyond(a: float, b: float) -> bool:
        return a >= b if up else a <= b

    shown = effect.shown and beyond(effect.estimate, none)
    if not beyond(reach, least):
        opposite = effect.shown and not beyond(effect.estimate, none)
        return "refuted", "the opposite" if opposite else "smaller than claimed" if shown else "not of that size"
    if shown:
        if most is not None and beyond(short, most) and short != most:
            return "confirmed", "larger than claimed"
        return "confirmed", "" if beyond(effect.estimate, least) else "at the low end"
    clear = effect.low > none or effect.high < none
    return "not shown", "not certain after Holm's correction" if clear and not effect.shown else ""
