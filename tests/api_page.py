# SPDX-License-Identifier: Apache-2.0
"""docs/api.md, from the signatures and docstrings of ``srr_fast.__all__``: ``python -m tests.api_page``."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import srr_fast

PAGE = Path(__file__).parent.parent / "docs" / "api.md"
HEAD = """\
# The public API

Written by `python -m tests.api_page` from signatures and docstrings; `tests/test_api.py` fails where this page differs.
These names, `srr_fast.lists`, `srr_fast.metrics`, the options of the `srr-fast` command, the files of a ranker and the
routes of the server keep their meaning within a minor version; everything else may change in any release.
"""


def page() -> str:
    return "\n".join([HEAD, *(_entry(name) for name in srr_fast.__all__)])


def _entry(name: str) -> str:
    value = getattr(srr_fast, name)
    parts = [f"### `{name}`", _code(name, value, inspect.getdoc(value) or "")]
    if inspect.isclass(value):
        for own, member in vars(value).items():
            function = member.__func__ if isinstance(member, classmethod | staticmethod) else member
            if not own.startswith("_") and inspect.isfunction(function) and function.__doc__:
                parts.append(_code(f"{name}.{own}", function, inspect.cleandoc(function.__doc__)))
    return "\n\n".join(parts) + "\n"


def _code(name: str, value: Any, text: str) -> str:
    return f"```text\n{name}{_signature(value)}\n\n{text}\n```"


def _signature(value: Any) -> str:
    """Without annotations, which versions of Python print in their own ways."""
    signature = inspect.signature(value)
    plain = [one.replace(annotation=one.empty) for one in signature.parameters.values()]
    return str(signature.replace(parameters=plain, return_annotation=signature.empty))


if __name__ == "__main__":
    PAGE.write_text(page())
