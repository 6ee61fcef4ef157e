"""Steps that follow a training run inside a study, by their names under `after`.

A step is a function (run, folder, **settings) -> {name: number}, whose numbers become metrics `STEP.NAME`. `folder` is
the run's; a step may write beside it. Another function is named as `module:function`.
"""

from __future__ import annotations

STEPS: dict[str, str] = {}
