# SPDX-License-Identifier: Apache-2.0
"""JSON as the standard has it, where Python's reader is more generous."""

from __future__ import annotations

import json
import math
import reprlib
from typing import Any, NoReturn


def loads(data: bytes) -> Any:
    """The value of a JSON text in UTF-8: no NaN, no infinity, no key twice, no lone surrogate.

    Raises ValueError for anything else, nesting that is too deep for Python included.
    """
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"is not UTF-8: {error.reason} at byte {error.start}") from None
    try:
        value = json.loads(text, object_pairs_hook=_unique, parse_constant=_refuse, parse_float=_finite)
        if "\\u" in text:
            json.dumps(value, ensure_ascii=False).encode()
    except json.JSONDecodeError as error:
        raise ValueError(f"is not JSON: {error.msg} at column {error.colno}") from None
    except UnicodeEncodeError:
        raise ValueError("is not Unicode: a lone surrogate") from None
    except RecursionError:
        raise ValueError("is nested too deeply") from None
    return value


def _refuse(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _finite(digits: str) -> float:
    if not math.isfinite(value := float(digits)):
        raise ValueError(f"{digits} is not finite")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(values := dict(pairs)) != len(pairs):
        twice = next(name for i, (name, _) in enumerate(pairs) if name in dict(pairs[:i]))
        raise ValueError(f"field {reprlib.repr(twice)} occurs twice")
    return values
