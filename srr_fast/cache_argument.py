# SPDX-License-Identifier: Apache-2.0
"""What the argument that takes a cache is called: ``cache`` since transformers 5.24, before it ``past_key_values``."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from transformers import GenerationMixin

NAMES = ("cache", "past_key_values")


def of(function: Callable[..., Any]) -> str | None:
    """The name among the arguments of a forward or the like; None where it takes no cache."""
    return next((name for name in NAMES if name in inspect.signature(function).parameters), None)


GENERATE = of(GenerationMixin.prepare_inputs_for_generation) or NAMES[-1]  # among generate's model_kwargs
