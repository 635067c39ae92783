# SPDX-License-Identifier: Apache-2.0
"""`BestOfN.generate` interrupted at every place where somebody else's code runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from transformers import LogitsProcessor, LogitsProcessorList, StoppingCriteria, StoppingCriteriaList

from srr_fast import BestOfN, minichat


class Interrupted(BaseException):
    """No handler of Exception stops it, as none stops KeyboardInterrupt."""


class Found(NamedTuple):
    raised: int
    wrong: list[str]


class _Bomb:
    """Raises at its so-manieth call."""

    def __init__(self, at: int) -> None:
        self.left = at

    def tick(self, *args: Any) -> None:
        self.left -= 1
        if self.left == 0:
            raise Interrupted


class _Processor(_Bomb, LogitsProcessor):
    def __call__(self, input_ids: Any, scores: Any) -> Any:
        self.tick()
        return scores


class _Criterion(_Bomb, StoppingCriteria):
    def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
        self.tick()
        return torch.zeros(len(input_ids), dtype=torch.bool)


def sweep(tokens: int = 6) -> Found:
    """Raise at each call of each kind, with and without beams and pruning."""
    model, tokenizer, ranker = minichat.load()
    bon = BestOfN(model, tokenizer, ranker)
    hooks = _hooks(model)
    raised, wrong = 0, []
    for options in ({}, {"prune": [(2, 0.5)]}, {"num_beams": 3}):

        def generate(**more: Any) -> object:
            torch.manual_seed(0)
            return bon.generate("How do I open a jar?", n=3, max_new_tokens=tokens, **options, **more)[0].candidates  # noqa: B023

        want = generate()
        for place in ("first layer", "last layer", "processor", "criterion"):
            for at in range(1, 2 * tokens):
                try:
                    with _planted(model, place, at) as more:
                        generate(**more)
                except Interrupted:
                    raised += 1
                else:
                    break  # it has fewer calls than that
                if _hooks(model) != hooks:
                    wrong.append(f"{place} {at} {options}: a hook stays")
                if generate() != want:
                    wrong.append(f"{place} {at} {options}: other candidates afterwards")
    return Found(raised, wrong)


@contextmanager
def _planted(model: Any, place: str, at: int) -> Iterator[dict[str, Any]]:
    """Options of generate that raise at that call of this place, or none where the model itself raises meanwhile."""
    if place == "processor":
        yield {"logits_processor": LogitsProcessorList([_Processor(at)])}
    elif place == "criterion":
        yield {"stopping_criteria": StoppingCriteriaList([_Criterion(at)])}
    else:
        layer = model.model.layers[0 if place == "first layer" else -1]
        handle = layer.register_forward_hook(_Bomb(at).tick)
        try:
            yield {}
        finally:
            handle.remove()


def _hooks(model: Any) -> int:
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())
