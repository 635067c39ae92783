# SPDX-License-Identifier: Apache-2.0
"""A sampling loop for ``generate``: prompts are prefilled once, finished rows not computed; or its steps are compiled.

Knows rows and caches; knows nothing of what is pooled, scored or stopped. The steps around it are generate's own, which
is why some of its underscored methods are called here, and one in beams.py, and nowhere else.
"""

from __future__ import annotations

import copy
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import torch
import transformers
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from . import cache_argument, hooking

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from transformers import GenerationConfig

    from .capture import Capture

SELECTABLE = (DynamicLayer, DynamicSlidingWindowLayer)  # cache layers whose rows can be repeated and selected
DONE_TO_LEAVE = 0.125  # share of the computed rows that must have finished before the others are copied together
SPARE = 64  # positions
# Whether a list for output_hidden_states is one of blocks, of which k - 1 gives state k, and state 0 is left out.
BY_BLOCK = (5, 17) <= tuple(map(int, transformers.__version__.split(".")[:2])) < (5, 23)


class RoomyLayer(DynamicLayer):
    """A full-attention cache layer that writes new positions into spare room, where its base copies all it holds.

    layer: what it starts from. ``keys`` and ``values`` are the used front of ``room``: both [rows, ..., positions, d].
    """

    keys: Tensor
    values: Tensor

    def __init__(self, layer: DynamicLayer) -> None:
        super().__init__()
        vars(self).update(vars(layer))
        self.room = self.keys, self.values

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        used, new = self.keys.shape[-2], key_states.shape[-2]
        if used + new > self.room[0].shape[-2]:
            self.room = _with_room(self.keys, used + new), _with_room(self.values, used + new)
        for room, states in zip(self.room, (key_states, value_states), strict=True):
            room.narrow(-2, used, new).copy_(states)
        return self._use(used + new)

    def batch_select_indices(self, indices: Tensor) -> None:
        self.room = self.room[0][indices], self.room[1][indices]
        self._use(self.keys.shape[-2])

    def _use(self, positions: int) -> tuple[Tensor, Tensor]:
        self.keys, self.values = (room.narrow(-2, 0, positions) for room in self.room)
        return self.keys, self.values


def _with_room(held: Tensor, positions: int) -> Tensor:
    *rows, used, d = held.shape
    room = held.new_empty(*rows, positions + positions // 8 + SPARE, d)
    room.narrow(-2, 0, used).copy_(held)
    return room


def sample(
    model: Any,
    input_ids: Tensor,
    logits_processor: Callable[[Tensor, Tensor], Tensor],
    stopping_criteria: Callable[[Tensor, Any], Tensor],
    generation_config: GenerationConfig,
    *,
    n: int,
    capture: Capture,
    ks: Sequence[int] = (),
    **model_kwargs: Any,
) -> Tensor:
    """For ``custom_generate=``: what ``generate`` returns, sequences [B * n, P + T], in less time.

    input_ids: [B * n, P], each prompt n times in a row. capture: is told which rows are computed. ks: where the
    model's ``hidden_states`` should hold what the capture's layers give; without them nothing is compiled.

    Only the model's forward leaves out finished rows. Logits processors, stopping criteria and the sampling see all
    rows, as in generate's loop, with logits of zero in those left out: the same seed draws the same tokens, up to how
    the model rounds at other batch sizes.

    Where generate would compile the steps after the prefill, they are compiled, of all rows, and the capture takes the
    states that the model itself gives out, if those of the prefill, which is not compiled, are what the hooks saw.
    Otherwise, where the cache is of another kind, it is generate's loop that runs, uncompiled.
    """
    uncompiled = copy.copy(generation_config)
    uncompiled.disable_compile = True
    forwards: _Needed | _Compiled
    if _rows_can_leave(len(input_ids), model_kwargs):
        forwards = _Needed(model, model_kwargs, capture)
    elif ks and model._valid_auto_compile_criteria(model_kwargs, generation_config):
        forwards = _Compiled(model, model_kwargs, capture, ks)
    else:
        return model._sample(input_ids, logits_processor, stopping_criteria, uncompiled, **model_kwargs)
    logits = forwards.prefill(input_ids, uncompiled, n)
    pad = generation_config.pad_token_id or 0
    unfinished = torch.ones(len(input_ids), dtype=torch.bool, device=input_ids.device)
    with model._optimize_model_for_decode():
        while True:
            scores = logits_processor(input_ids, logits)
            if generation_config.do_sample:
                tokens = torch.multinomial(scores.softmax(-1), num_samples=1).squeeze(1)
            else:
                tokens = scores.argmax(-1)
            input_ids = torch.cat([input_ids, tokens.where(unfinished, pad)[:, None]], 1)
            unfinished &= ~stopping_criteria(input_ids, None)
            count = int(unfinished.sum())  # the one thing of a step that is waited for
            if count == 0:
                return input_ids
            logits = forwards.step(input_ids, unfinished, count)


class _Needed:
    """Forwards of what is needed: each prompt once, then the rows that are unfinished, and finished ones that did not
    leave yet. ``prefill`` and ``step`` give logits [rows, V], zeros for the rows left out."""

    def __init__(self, model: Any, model_kwargs: dict[str, Any], capture: Capture) -> None:
        self.model, self.kwargs, self.capture = model, model_kwargs, capture

    def prefill(self, input_ids: Tensor, config: GenerationConfig, n: int) -> Tensor:
        once = slice(None, None, n)
        outputs = self.model._prefill(input_ids[once], config, _select(once, self.kwargs))
        cache = self.kwargs[cache_argument.GENERATE]
        cache.batch_repeat_interleave(n)
        cache.layers = [RoomyLayer(layer) if type(layer) is DynamicLayer else layer for layer in cache.layers]
        self.kwargs = self.model._update_model_kwargs_for_generation(outputs, self.kwargs)
        self.computed = torch.arange(len(input_ids), device=input_ids.device)
        return _last(outputs, input_ids).repeat_interleave(n, 0)

    def step(self, input_ids: Tensor, unfinished: Tensor, count: int) -> Tensor:
        computed = len(self.computed)
        if computed - count >= DONE_TO_LEAVE * computed:
            self._leave(unfinished[self.computed].nonzero().squeeze(1))
        inputs = self.model.prepare_inputs_for_generation(
            input_ids[self.computed], next_sequence_length=1, **self.kwargs
        )
        outputs = self.model(**inputs, return_dict=True)
        self.kwargs = self.model._update_model_kwargs_for_generation(outputs, self.kwargs)
        last = _last(outputs, input_ids)
        rows = len(input_ids)
        return last if len(last) == rows else last.new_zeros(rows, last.shape[1]).index_copy(0, self.computed, last)

    def _leave(self, places: Tensor) -> None:
        """Of the computed rows only those at these places stay."""
        self.kwargs[cache_argument.GENERATE].batch_select_indices(places.cpu())  # layers may lie on several devices
        self.kwargs = _select(places, self.kwargs)
        self.capture.rows = self.computed = self.computed[places]


class _Compiled:
    """Forwards of all rows, compiled after the prefill if the capture can take the states that they give out."""

    def __init__(self, model: Any, model_kwargs: dict[str, Any], capture: Capture, ks: Sequence[int]) -> None:
        self.model, self.capture = model, capture
        self.kwargs = model_kwargs | {"output_hidden_states": [k - 1 if BY_BLOCK else k for k in ks]}
        L = model.config.get_text_config(decoder=True).num_hidden_layers
        self.places = [k - L - 1 for k in ks]  # from the end: where state 0 is left out, the others have moved up

    def prefill(self, input_ids: Tensor, config: GenerationConfig, n: int) -> Tensor:
        self.capture.witness = []
        outputs = self.model._prefill(input_ids, config, dict(self.kwargs))
        self.follows = self.capture.follow(_given(outputs, self.places))
        self.forward = self.model.get_compiled_call(config.compile_config) if self.follows else self.model
        if not self.follows:
            del self.kwargs["output_hidden_states"]
        self.kwargs = self.model._update_model_kwargs_for_generation(outputs, self.kwargs)
        return _last(outputs, input_ids)

    def step(self, input_ids: Tensor, unfinished: Tensor, count: int) -> Tensor:
        inputs = self.model.prepare_inputs_for_generation(input_ids, next_sequence_length=1, **self.kwargs)
        with hooking.steady() if self.follows else nullcontext():
            outputs = self.forward(**inputs, return_dict=True)
        if self.follows:
            self.capture.take(_given(outputs, self.places))
        self.kwargs = self.model._update_model_kwargs_for_generation(outputs, self.kwargs)
        return _last(outputs, input_ids)


def _rows_can_leave(rows: int, model_kwargs: dict[str, Any]) -> bool:
    cache = model_kwargs.get(cache_argument.GENERATE)
    positions = model_kwargs.get("position_ids")
    return (
        bool(model_kwargs.get("use_cache"))
        and type(cache) is DynamicCache
        and not cache.offloading
        and bool(cache.layers)
        and all(type(layer) in SELECTABLE for layer in cache.layers)
        and (positions is None or positions.dim() == 2)  # those of models that see images have an axis before the rows
        and all(value.shape[:1] == (rows,) for value in model_kwargs.values() if isinstance(value, Tensor))
    )


def _select(places: Tensor | slice, model_kwargs: dict[str, Any]) -> dict[str, Any]:
    return {name: value[places] if isinstance(value, Tensor) else value for name, value in model_kwargs.items()}


def _given(outputs: Any, places: Sequence[int]) -> list[Tensor]:
    """The states at these places, negative, that a forward gave out; none where it does not have them all."""
    states = outputs.hidden_states or ()
    found = [states[place] for place in places if -place <= len(states)]
    return found if len(found) == len(places) and all(isinstance(part, Tensor) for part in found) else []


def _last(outputs: Any, input_ids: Tensor) -> Tensor:
    """The logits after the last position, a copy [rows, V] in float32 where the ids are."""
    return outputs.logits[:, -1].to(copy=True, dtype=torch.float32, device=input_ids.device)
