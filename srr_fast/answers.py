# SPDX-License-Identifier: Apache-2.0
"""Prompts, candidates and answers as JSON has them: what the command, shards and servers read and write."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .results import BestOfNResult
    from .text import RankedResponse

Prompt = str | list[Mapping[str, Any]]


def text_of(value: Any) -> str | None:
    """A candidate: a string or ``{"text": ...}``."""
    value = value.get("text") if isinstance(value, Mapping) else value
    return value if isinstance(value, str) else None


def prompt_of(value: Any) -> Prompt | None:
    """A prompt: a string, ``{"prompt": ...}``, ``{"messages": [...]}`` or the list of messages itself."""
    if isinstance(value, Mapping):
        value = value.get("prompt", value.get("messages"))
    messages = isinstance(value, list) and all(
        isinstance(m, Mapping) and {"role", "content"} <= m.keys() for m in value
    )
    return value if isinstance(value, str) or (messages and value) else None


def result_rows(ranked: Sequence[RankedResponse]) -> list[dict[str, Any]]:
    """Ranked responses as JSON has them."""
    return [{"index": r.index, **_numbers(r.score, r.prob, r.safety), "document": r.text} for r in ranked]


def answer(prompt: Prompt, result: BestOfNResult) -> dict[str, Any]:
    """The answer to a prompt, and its candidates, as JSON has them."""
    return {
        "prompt": prompt,
        "text": result.text,
        "index": result.index,
        **_numbers(result.score, result.prob, result.safety),
        "abstained": result.abstained,
        "candidates": [
            {
                "index": i,
                **_numbers(c.score, c.prob, c.safety),
                "document": c.text,
                "n_tokens": c.n_tokens,
                "pruned": c.pruned,
            }
            for i, c in enumerate(result.candidates)
        ],
        "timings": result.timings._asdict(),
    }


def _numbers(score: float | None, prob: float | None, safety: float | None) -> dict[str, float | None]:
    """null for the score of a candidate that is out: JSON has no infinity."""
    out = score is None or not math.isfinite(score)
    return {"relevance_score": None if out else score, "prob": prob, "safety": safety}
