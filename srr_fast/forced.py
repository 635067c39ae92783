# SPDX-License-Identifier: Apache-2.0
"""Pooled states of given token ids: a forward that ends at the deepest layer read, shared prefixes, bounded batches.

Knows token ids only; knows nothing of texts, rankers or scores. :func:`pool_given` reads prompts that share a cache,
for causal models; :func:`pool_readings` reads each sequence whole, for any model.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm
from transformers import DynamicCache

from . import cache_argument, functional
from .decoding import SELECTABLE
from .hooking import LayerListener, joined

if TYPE_CHECKING:
    from transformers import PreTrainedModel

BATCH_TOKENS = 16384  # where nobody says otherwise
FORWARD_TOKENS = 128  # positions that cost about as much as one more forward

Ids = Sequence[int]


class Reading(NamedTuple):
    """A sequence to run and the tokens of it to pool.

    ids: [T] int32, T > 0. start, stop: the half-open range pooled. types: [T] int8 token type ids, None without.
    """

    ids: np.ndarray
    start: int
    stop: int
    types: np.ndarray | None = None


class _AllRead(Exception):
    """Ends a forward whose states have all come: ``states`` [rows, T, d]."""

    def __init__(self, states: Tensor) -> None:
        self.states = states


class TruncatedForward(LayerListener):
    """Runs a model up to the deepest of some blocks; a context manager.

    layers: as in :class:`LayerListener`; their states are concatenated. Forwards of others run to their end.
    """

    def __init__(self, model: PreTrainedModel, layers: Sequence[nn.Module]) -> None:
        super().__init__(layers)
        self.model = model

    def heard(self, parts: list[Tensor]) -> None:
        raise _AllRead(joined(parts))

    def __call__(self, ids: Tensor, **inputs: Any) -> Tensor:
        """States [rows, T, d] of ids [rows, T] int64. inputs: what else the model's forward takes.

        Raises RuntimeError when the forward ended without the states of these tokens, one each.
        """
        try:
            self.model(input_ids=ids, **inputs)
        except _AllRead as end:
            if end.states.shape[:2] == ids.shape:
                return end.states
            raise RuntimeError(
                f"TruncatedForward: wants the states of {list(ids.shape)} tokens, got {list(end.states.shape)}: "
                "the model adds positions of its own"
            ) from None
        raise RuntimeError("TruncatedForward: the layers were not called; pass a model compiled by hand uncompiled")


@torch.no_grad()
def pool_given(
    model: PreTrainedModel,
    layers: Sequence[nn.Module],
    prompts: Sequence[Ids],
    responses: Sequence[Sequence[Ids]],
    *,
    pooling: str = "mean",
    gate: Tensor | None = None,
    batch_tokens: int,
) -> tuple[Tensor, Tensor]:
    """Pooled states of B prompts and of the responses to each, as the model reads prompt + response.

    layers:    the decoder blocks to read, see :func:`decoder.layers_to_read`.
    prompts:   B lists of token ids, none empty. responses: B lists of lists of token ids.
    pooling, gate: as in :func:`srr_fast.pool`, over all tokens given.
    batch_tokens: positions (prompt, response and padding) in one forward, the cached ones included; a single sequence
               is never split.

    Returns inst [B, d] and resp [M, d] in float32 on the model's device; a response without tokens is a row of NaN. A
    prompt that has no others is not run: its row is NaN too. Where every layer of the model's cache is a plain dynamic
    one, a prompt with two responses or more is run once, beside the others of its length, and its cache shared, unless
    that would save less than another forward costs; elsewhere each sequence is run whole. What runs together differs
    with the lists of a call, and so may the last bits of their states, as those of any forward do.
    """
    pooled: dict[tuple[int, int | None], Tensor] = {}  # (prompt, response); (prompt, None) is the prompt itself
    alone: list[tuple[int, int]] = []
    uncached = _uncached(model)
    total = sum(len(ids) for answers in responses for ids in answers)
    with TruncatedForward(model, layers) as forward, progress_bar(total) as progress:

        def read(rows: Sequence[Ids], *ranges: list[tuple[int, int]], **inputs: Any) -> list[Tensor]:
            """Pooled [rows, d] for each list of one range of tokens per row."""
            states = forward(_right_padded(rows, model), **inputs)
            moved = None if gate is None else gate.to(states.device)
            spans = [torch.tensor(one, dtype=torch.int64, device=states.device) for one in ranges]
            rows_pooled = [functional.pool(states, one, pooling=pooling, gate=moved) for one in spans]
            return [one.to(model.device, torch.float32) for one in rows_pooled]

        shared: dict[int, list[int]] = {}  # prompts that share their cache, by their length: there is no padding
        some = [[(b, i) for i, answer in enumerate(answers) if len(answer)] for b, answers in enumerate(responses)]
        cacheable = _empty_cache(model) is not None
        argument = cache_argument.of(model.forward) or ""
        for b, pairs in enumerate(some):
            if len(pairs) > 1 and cacheable:
                shared.setdefault(len(prompts[b]), []).append(b)
            else:
                alone += pairs
        for P, of_length in shared.items():
            if P * sum(len(some[b]) - 1 for b in of_length) < FORWARD_TOKENS:
                alone += [pair for b in of_length for pair in some[b]]
                continue
            for group in _chunks(of_length, max(batch_tokens // P, 1)):
                cache = _empty_cache(model)
                (inst,) = read([prompts[b] for b in group], [(0, P)] * len(group), use_cache=True, **{argument: cache})
                pooled |= {(b, None): row for b, row in zip(group, inst, strict=True)}
                members = [(place, i) for place, b in enumerate(group) for _, i in some[b]]
                lengths = [len(responses[group[place]][i]) for place, i in members]
                for batch in _batches(members, lengths, P, batch_tokens):
                    rows = [responses[group[place]][i] for place, i in batch]
                    whole = [(0, len(ids)) for ids in rows]
                    chosen = _selected(cache, [place for place, _ in batch])
                    (resp,) = read(rows, whole, use_cache=True, **{argument: chosen})
                    pooled |= {(group[place], i): row for (place, i), row in zip(batch, resp, strict=True)}
                    progress.update(sum(map(len, rows)))

        lengths = [len(prompts[b]) + len(responses[b][i]) for b, i in alone]
        for pairs in _batches(alone, lengths, 0, batch_tokens):
            rows = [[*prompts[b], *responses[b][i]] for b, i in pairs]
            starts = [len(prompts[b]) for b, _ in pairs]
            inst, resp = read(
                rows,
                [(0, start) for start in starts],
                [(start, len(ids)) for start, ids in zip(starts, rows, strict=True)],
                **uncached,
            )
            pooled |= {(b, None): row for (b, _), row in zip(pairs, inst, strict=True)}
            pooled |= dict(zip(pairs, resp, strict=True))
            progress.update(sum(len(responses[b][i]) for b, i in pairs))

    d = model.config.get_text_config(decoder=True).hidden_size * len(layers)
    nothing = torch.full((d,), float("nan"), device=model.device)
    keys: list[list[tuple[int, int | None]]] = [
        [(b, None) for b in range(len(prompts))],
        [(b, i) for b, answers in enumerate(responses) for i in range(len(answers))],
    ]
    inst, resp = (
        torch.stack([pooled.get(key, nothing) for key in rows]) if rows else nothing.new_zeros(0, d) for rows in keys
    )
    return inst, resp


def pool_generated(
    model: PreTrainedModel,
    layers: Sequence[nn.Module],
    prompts: Sequence[Ids],
    candidates: Sequence[Ids],
    *,
    pooling: str,
    gate: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """:func:`pool_given` for the n candidates generated for each prompt, in one list; of each but its last token."""
    n = len(candidates) // max(len(prompts), 1)
    pooled = [ids[:-1] for ids in candidates]
    answers = [pooled[b * n : (b + 1) * n] for b in range(len(prompts))]
    return pool_given(model, layers, prompts, answers, pooling=pooling, gate=gate, batch_tokens=BATCH_TOKENS)


@torch.no_grad()
def pool_readings(
    forward: TruncatedForward,
    readings: Sequence[Reading],
    poolings: Sequence[str],
    *,
    gate: Tensor | None = None,
    batch_tokens: int,
    progress: Any,
) -> list[Tensor]:
    """Pooled states [n, d] of n readings for each pooling, from one forward of every sequence.

    forward:   entered; its layers are concatenated in d. poolings, gate: as in :func:`srr_fast.pool`.
    batch_tokens: positions in one forward; a longer sequence is run alone. Batches hold sequences of one length: there
               is no padding, so no model needs a mask.
    progress:  a bar to move by the positions read, see :func:`progress_bar`.

    Returns float32 on the model's device, in the order of the readings; nothing to pool gives a row of NaN. The bits
    depend on which readings come together, not on their order among different lengths.
    """
    model = forward.model
    common = _uncached(model)
    pooled: list[list[Tensor]] = [[] for _ in poolings]
    order = sorted(range(len(readings)), key=lambda at: len(readings[at].ids))
    for length, group in groupby(order, key=lambda at: len(readings[at].ids)):
        for batch in _chunks(list(group), max(batch_tokens // length, 1)):
            rows = [readings[at] for at in batch]
            ids = _tensor([row.ids for row in rows], model.device)
            types = [row.types for row in rows if row.types is not None]
            typed = {"token_type_ids": _tensor(types, model.device)} if types else {}
            states = forward(ids, **common, **typed)
            spans = torch.tensor([row[1:3] for row in rows], dtype=torch.int64, device=states.device)
            moved = None if gate is None else gate.to(states.device)
            for parts, pooling in zip(pooled, poolings, strict=True):
                part = functional.pool(states, spans, pooling=pooling, gate=moved)
                parts.append(part.to(model.device, torch.float32))
            progress.update(ids.numel())
    d = model.config.get_text_config(decoder=True).hidden_size * len(forward.layers)
    place = torch.empty(len(order), dtype=torch.int64, device=model.device)
    place[torch.tensor(order, dtype=torch.int64, device=model.device)] = torch.arange(len(order), device=model.device)
    return [torch.cat([*parts, torch.empty(0, d, device=model.device)])[place] for parts in pooled]


def progress_bar(total: int) -> Any:
    """A bar over so many tokens, on a terminal, for what takes longer than a second."""
    return tqdm(total=total, desc="srr_fast: reading", unit="tok", unit_scale=True, delay=1, leave=False, disable=None)


def _uncached(model: PreTrainedModel) -> dict[str, Any]:
    return {"use_cache": False} if "use_cache" in inspect.signature(model.forward).parameters else {}


def _chunks(items: list[int], size: int) -> Iterator[list[int]]:
    return (items[at : at + size] for at in range(0, len(items), size))


def _tensor(rows: Sequence[np.ndarray], device: torch.device) -> Tensor:
    """int64 [rows, T] of rows of one length."""
    return torch.from_numpy(np.stack(rows).astype(np.int64)).to(device)


def _empty_cache(model: PreTrainedModel) -> DynamicCache | None:
    """The cache of a text model whose every layer can be repeated over rows; None for any other model."""
    config = model.config.get_text_config(decoder=True)
    if config is not model.config or cache_argument.of(model.forward) is None:
        return None
    cache = DynamicCache(config=config)
    plain = bool(cache.layers) and all(type(layer) in SELECTABLE for layer in cache.layers)
    return cache if plain else None


def _selected(cache: DynamicCache | None, rows: list[int]) -> DynamicCache:
    """A copy with these rows; the layers above the last one read are empty."""
    copied = copy.copy(cache)
    assert copied is not None
    copied.layers = [copy.copy(layer) for layer in copied.layers]
    copied.batch_select_indices(torch.tensor(rows))
    return copied


def _batches(items: Sequence[Any], lengths: Sequence[int], prefix: int, budget: int) -> Iterator[list[Any]]:
    """Items longest first, in batches of at most ``budget`` positions, ``prefix`` of them before every item.

    A batch ends early where padding what is left to its longest item would cost more than another forward.
    """
    order = sorted(range(len(items)), key=lambda at: -lengths[at])
    while order:
        longest = lengths[order[0]]
        rows = min(max(budget // (prefix + longest), 1), len(order))
        saved = [(longest - lengths[at]) * (rows - row) for row, at in enumerate(order[:rows])]
        if max(saved) > FORWARD_TOKENS:
            rows = saved.index(max(saved))
        yield [items[at] for at in order[:rows]]
        order = order[rows:]


def _right_padded(rows: Sequence[Ids], model: PreTrainedModel) -> Tensor:
    """[rows, T] int64. Needs neither mask nor positions: a causal model never looks at what comes later."""
    T = max(map(len, rows))
    padded = [[*row, *[row[0]] * (T - len(row))] for row in rows]
    return torch.tensor(padded, dtype=torch.int64, device=model.device)
