"""What every error of Kitae has in common."""

from __future__ import annotations

import pickle

from kitae.errors import KitaeError, RecipeError, TrainingInterruptedError


def test_a_message_is_one_line_whatever_it_quotes() -> None:
    assert str(RecipeError("--set =\x1f\n: not valid\r\n")) == "--set =\x1f : not valid"
    assert str(KitaeError(3)) == "3"
    stopped = TrainingInterruptedError("stopped\nin epoch 3", "resume")
    assert str(stopped) == "stopped in epoch 3; resume"
    assert str(pickle.loads(pickle.dumps(stopped))) == str(stopped), "it crosses processes"
