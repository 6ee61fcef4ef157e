"""A page keeps all that is outside the marks of its ops."""

from __future__ import annotations

import pytest

from op_reference import BEGIN, END, rewrite


def test_a_page_keeps_what_is_outside_its_marks() -> None:
    assert rewrite(f"above\n{BEGIN}old\n{END}below\n", "new\n") == f"above\n{BEGIN}new\n{END}below\n"


@pytest.mark.parametrize("text", [f"above\n{BEGIN}old\nbelow\n", f"above\n{END}below\n", f"{END}{BEGIN}below\n"])
def test_a_page_without_a_mark_is_not_cut(text: str) -> None:
    with pytest.raises(ValueError, match="needs <!-- ops: begin -->"):
        rewrite(text, "new\n")
