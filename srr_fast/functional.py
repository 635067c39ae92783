# SPDX-License-Identifier: Apache-2.0
"""Pool and score tensors: native where it can be, the reference where not."""

from __future__ import annotations

import torch
from torch import Tensor

from . import _native, reference
from .checks import STATE_DTYPES, check_device, check_pool_inputs, check_tensor
from .prepared import PreparedScorer
from .reference import ScoreOutput


def pool(
    states: Tensor,
    spans: Tensor | None = None,
    *,
    offsets: Tensor | None = None,
    pooling: str = "mean",
    gate: Tensor | None = None,
) -> Tensor:
    """One row per candidate from the states of its tokens.

    states:  [M, T, d] padded or [T, d] packed; any strides as long as d is contiguous.
    spans:   [M, 2] int64, the half-open range of each candidate's tokens: within its own row when padded, within the
             whole buffer when packed.
    offsets: [M + 1] int64, instead of spans: candidate m has the tokens offsets[m] .. offsets[m + 1] - 1; packed only.
    pooling: ``last``, ``mean`` or ``gated``; gate: [d + 1] float32, the gate's weight then its bias.

    Returns [M, d] float32 (float64 for float64 states); a candidate without tokens is a row of NaN, which
    :func:`score` takes out of its list. Raises TypeError or ValueError naming the argument; on CUDA a span outside
    the states is not an error but a row of NaN, because looking would wait for the device.
    """
    if (spans is None) == (offsets is None):
        raise TypeError("pool: wants either spans or offsets")
    if offsets is not None:
        check_tensor("pool", "states", states, ("T", "d"), STATE_DTYPES)
        check_tensor("pool", "offsets", offsets, ("M + 1",), (torch.int64,))
        check_device("pool", "offsets", offsets, states.device)
        if len(offsets) == 0:
            raise ValueError("pool: offsets must be int64 [M + 1], got int64 [0]")
        spans = torch.stack([offsets[:-1], offsets[1:]], 1)
    assert spans is not None
    if isinstance(pooling, str) and _native.serves(states, spans, optional=gate):
        try:
            return torch.ops.srr_fast.pool(states, spans, pooling, gate)
        except (TypeError, ValueError):
            check_pool_inputs("pool", states, spans, pooling, gate, offsets=offsets)
            raise
    check_pool_inputs("pool", states, spans, pooling, gate, offsets=offsets)
    return reference.pool(states, spans, pooling, gate)


def pool_update_(
    acc: Tensor,
    weight: Tensor,
    states: Tensor,
    spans: Tensor,
    *,
    pooling: str = "mean",
    gate: Tensor | None = None,
) -> None:
    """Add tokens to a running pool, in place; ``acc / weight[:, None]`` is the pooled state so far.

    acc: [M, d] float32 and weight: [M] float32, both zero before the first update. states, spans, pooling and gate as
    in :func:`pool`. A candidate whose span is empty is left alone.
    """
    if isinstance(pooling, str) and _native.serves(acc, weight, states, spans, optional=gate):
        # PyTorch cannot hand negated views to an op that writes to them; a tracer cannot ask about them.
        if not torch.compiler.is_dynamo_compiling() and (acc.is_neg() or weight.is_neg()):
            _check_update(acc, weight, states, spans, pooling, gate)
        try:
            torch.ops.srr_fast.pool_update_(acc, weight, states, spans, pooling, gate)
        except (TypeError, ValueError):
            _check_update(acc, weight, states, spans, pooling, gate)
            raise
        return
    _check_update(acc, weight, states, spans, pooling, gate)
    reference.pool_update_(acc, weight, states, spans, pooling, gate)


def score(inst: Tensor, resp: Tensor, scorer: PreparedScorer, offsets: Tensor | None = None) -> ScoreOutput:
    """Score candidates with a prepared ranker; the form that ``torch.compile`` traces as one graph.

    inst: [B, d], resp: [M, d], offsets: [B + 1] int64 or None for equal lists, as in :meth:`SafetyRanker.score`.
    Inputs that need gradients get them, from the reference.
    """
    if not isinstance(scorer, PreparedScorer):
        raise TypeError(f"score: scorer must be a PreparedScorer, got {type(scorer).__name__}")
    return scorer._traceable(inst, resp, offsets)


def _check_update(
    acc: Tensor, weight: Tensor, states: Tensor, spans: Tensor, pooling: str, gate: Tensor | None
) -> None:
    M = check_pool_inputs("pool_update_", states, spans, pooling, gate)
    dtype = reference.accumulation_dtype(states.dtype)
    check_tensor("pool_update_", "acc", acc, (M, states.shape[-1]), (dtype,))
    check_tensor("pool_update_", "weight", weight, (M,), (dtype,))
    check_device("pool_update_", "acc", acc, states.device)
    check_device("pool_update_", "weight", weight, states.device)
    for name, written in (("acc", acc), ("weight", weight)):
        if written.is_neg():
            raise ValueError(f"pool_update_: {name} must be written to as it is, got a negated view")
        if written.requires_grad and written.is_leaf and torch.is_grad_enabled():
            raise ValueError(f"pool_update_: {name} must be no leaf that requires a gradient, for it is written to")
        if written.is_inference() and not torch.is_inference_mode_enabled():
            raise ValueError(f"pool_update_: {name} must be no inference tensor outside torch.inference_mode()")
        rows_overlap = written.dim() == 2 and len(written) > 1 and written.stride(0) < written.shape[1]
        if (written.stride(-1) != 1 and written.shape[-1] > 1) or rows_overlap:
            raise ValueError(
                f"pool_update_: {name} must be contiguous in its last dimension and not overlap itself, "
                f"got strides {written.stride()}"
            )
