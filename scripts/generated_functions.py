"""Lets mkdocstrings, which reads source, find the functions of `kitae.augment.functional` that are made at import."""

from __future__ import annotations

from typing import Any

import griffe

MODULE = "kitae.augment.functional"


class GeneratedFunctions(griffe.Extension):
    """Adds what an import of the module finds and its source does not show."""

    def on_module_members(self, *, mod: griffe.Module, agent: Any, **_: Any) -> None:
        if mod.path == MODULE and isinstance(agent, griffe.Visitor):
            parser, options = agent.docstring_parser, agent.docstring_options
            imported = griffe.inspect(
                mod.name, filepath=None, parent=mod.parent, docstring_parser=parser, docstring_options=options
            )
            for name, function in imported.functions.items():
                if name not in mod.members:
                    mod.set_member(name, function)
