# SPDX-License-Identifier: Apache-2.0
"""Trials of pooling: padded, packed by spans, packed by offsets, token by token."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from hypothesis import strategies as st
from torch import Tensor

import srr_fast
from srr_fast import reference

from .trials import DTYPES, FAULTS, WIDTH_FAULT, Trial, near, random_tensor, spoil


class Tokens(NamedTuple):
    states: Tensor
    spans: Tensor
    pooling: str
    gate: Tensor | None


@st.composite
def tokens(draw: Any, d: int | None = None, M: int | None = None, pooling: str | None = None) -> Tokens:
    """Valid arguments for pooling: padded, or packed with spans within the buffer."""
    M = draw(st.integers(0, 4)) if M is None else M
    d = d or draw(st.sampled_from((1, 2, 7, 16, 17, 40)))
    T, packed = draw(st.integers(0, 6)), draw(st.booleans())
    shape = (T, d) if packed else (M, T, d)
    states = random_tensor(draw, *shape, dtype=draw(st.sampled_from(DTYPES)))
    ends = [sorted(draw(st.tuples(st.integers(0, T), st.integers(0, T)))) for _ in range(M)]
    pooling = pooling or draw(st.sampled_from(reference.POOLINGS))
    gate = random_tensor(draw, d + 1).nan_to_num(0, 0, 0).clamp(-9, 9) if pooling == "gated" else None
    return Tokens(states, torch.tensor(ends, dtype=torch.int64).reshape(M, 2), pooling, gate)


def exact_pool(t: Tokens) -> Tensor:
    return reference.pool(t.states.double(), t.spans, t.pooling, None if t.gate is None else t.gate.double())


def span_faults(t: Tokens) -> dict[str, Callable[[Any], Any]]:
    T = t.states.shape[-2]
    faults = {**FAULTS, "float32": lambda x: x.float(), "three columns": lambda x: torch.cat([x, x[:, :1]], 1)}
    if len(t.spans):
        faults["before the first"] = lambda x: x - (x[0, 0] + 1)
        faults["past the last"] = lambda x: x + torch.tensor([0, T + 1])
        faults["backwards"] = lambda x: torch.cat([x, torch.tensor([[1, 0]])])[-len(x) :]
    if t.states.dim() == 3:
        faults["a row too many"] = lambda x: torch.cat([x, x.new_zeros(1, 2)])
    return faults


def pool_faults(t: Tokens) -> dict[str, dict[str, Callable[[Any], Any]]]:
    pooling = {repr(value): lambda _, v=value: v for value in ("max", "", None, 3, ["mean"], "mean\0", np.zeros(2))}
    faults = {"states": FAULTS, "spans": span_faults(t), "pooling": pooling}
    if t.gate is not None:
        faults["gate"] = FAULTS | WIDTH_FAULT
    else:
        faults["gate"] = {"not wanted": lambda _: torch.zeros(t.states.shape[-1] + 1)}
    return faults


def grown(bound: float) -> float:
    """Relative tolerance for a mean in float32 of numbers up to a bound that is part of the tensors."""
    return 1e-5 * max(1.0, bound)


def pool_right(t: Tokens) -> Callable[[Tensor], bool]:
    exact, finite = exact_pool(t), t.states.double().nan_to_num(0, 0, 0).abs()
    bound = float(finite.amax()) if finite.numel() else 1.0
    if bound > 1e20 and t.pooling == "gated":  # a gate's logit of such a number depends on the order of its sum
        return lambda got: got.shape == exact.shape
    return lambda got: got.shape == exact.shape and near(got, exact, grown(bound if bound > 1e20 else 1.0))


@st.composite
def pool_trial(draw: Any) -> Trial:
    t = draw(tokens())
    arguments = t._asdict()
    name, fault = spoil(draw, arguments, pool_faults(t))
    names = ("states", "spans", "gate", "on") if fault == "meta" else (name,)
    wanted = None if name else pool_right(t)
    return Trial(lambda: srr_fast.pool(**arguments), wanted, "pool: ", names, f"pool {name} {fault}")


@st.composite
def pool_offsets_trial(draw: Any) -> Trial:
    """Packed states by offsets."""
    d, T = draw(st.sampled_from((1, 17))), draw(st.integers(0, 9))
    states = random_tensor(draw, T, d, dtype=draw(st.sampled_from(DTYPES))).nan_to_num(0, 0, 0).clamp(-9, 9)
    steps = torch.tensor(sorted(draw(st.lists(st.integers(0, T), min_size=1, max_size=5))))
    t = Tokens(states, torch.stack([steps[:-1], steps[1:]], 1), "mean", None)
    faults = {name: fault for name, fault in FAULTS.items() if name != "None"}
    faults["none at all"] = lambda x: x[:0]
    if len(steps) > 1:  # otherwise there is no candidate to whom they would matter
        faults |= {"past the last": lambda x: x + T + 1, "below 0": lambda x: x - T - 1}
    if len(steps) > 1 and steps[0] != steps[-1]:
        faults["decreasing"] = lambda x: x.flip(0)
    arguments: dict[str, Any] = {"states": states, "offsets": steps}
    name, fault = spoil(draw, arguments, {"offsets": faults, "states": FAULTS})
    names = ("states", "offsets") if fault == "meta" else (name,)
    wanted = None if name else pool_right(t)
    return Trial(lambda: srr_fast.pool(**arguments), wanted, "pool: ", names, f"pool {name} {fault}")


@st.composite
def update_trial(draw: Any) -> Trial:
    t = draw(tokens())
    t = t._replace(states=t.states.nan_to_num(0, 0, 0).clamp(-9, 9))
    M, d = len(t.spans), t.states.shape[-1]
    dtype = reference.accumulation_dtype(t.states.dtype)
    own: dict[str, Callable[[Any], Any]] = {
        "a negated view": torch._neg_view,
        "a leaf with gradient": lambda x: x.requires_grad_(),
        "float16": lambda x: x.half(),
        "one row too many": lambda x: x.new_zeros(M + 1, *x.shape[1:]),
    }
    faults = pool_faults(t) | {"acc": FAULTS | own | WIDTH_FAULT, "weight": FAULTS | own}
    written = {"acc": torch.zeros(M, d, dtype=dtype), "weight": torch.zeros(M, dtype=dtype)}
    arguments = t._asdict()
    if draw(st.booleans()):
        name, fault = spoil(draw, arguments, pool_faults(t))
    else:
        name = draw(st.sampled_from(("acc", "weight")))
        fault = draw(st.sampled_from(sorted(faults[name])))
        written[name] = faults[name][fault](written[name])
    wants_grad = any(isinstance(v, Tensor) and v.requires_grad for v in arguments.values())
    names = ("acc", "weight", "states", "spans", "gate") if fault == "meta" or name == "states" else (name,)

    def call() -> tuple[Tensor, Tensor]:
        srr_fast.pool_update_(**written, **arguments)
        return written["acc"], written["weight"]

    exact = reference.pool_sums(t.states.double(), t.spans, t.pooling, None if t.gate is None else t.gate.double())

    def right(got: tuple[Tensor, Tensor]) -> bool:
        return near(got[0], exact[0], 1e-4) and near(got[1], exact[1], 1e-4) and got[0].requires_grad <= wants_grad

    return Trial(call, None if name else right, "pool_update_: ", names, f"pool_update_ {name} {fault}")
