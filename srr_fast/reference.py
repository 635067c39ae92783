# SPDX-License-Identifier: Apache-2.0
"""The specification: every result of srr_fast, in plain differentiable PyTorch.

Any dtype up to float64, any device. Every other path is tested against this file.

Letters: B prompts, N candidates of one prompt, M = sum of N, T tokens, d state width, p projected width.

A candidate is *out* of its list when its pooled state is not finite, or its projected state is not or is larger than
``LARGEST_PROJECTED`` anywhere; pooling no token gives NaN, so a candidate without tokens is out. The others score as if
it were absent; it gets score -inf and probability 0. When the instruction is such, the whole list is out. ``best`` is
-1 when all candidates of a list are out.

Autocast does not reach in here: the arithmetic is done in the dtypes that the docstrings say.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

POOLINGS = ("last", "mean", "gated")
SCOPES = ("list", "pair")
COSINE_EPS = 1e-8
NORM_EPS = 1e-5
LARGEST_PROJECTED = 1e15  # its square times p still fits float32
GATE_LIMIT = 60.0  # gate logits are clamped to +-this, so that no token's weight is ever zero


class ScoreOutput(NamedTuple):
    """What a scorer answers; scores and probs in float32, from :func:`score` in the dtype of its weights.

    scores: [M] cosine similarity to the instruction, in [-1, 1]; -inf for a candidate that is out.
    probs:  [M] softmax of ``scores / temperature`` over each list; 0 for a candidate that is out.
    best:   [B] int64, index of the highest score within its list, the lowest one on a tie; -1 if all are out.
    """

    scores: Tensor
    probs: Tensor
    best: Tensor


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """float64 states are pooled in float64, everything else in float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def no_autocast(device: torch.device) -> AbstractContextManager[object]:
    return torch.autocast(device.type, enabled=False) if device.type in ("cpu", "cuda") else nullcontext()


def pool_sums(
    states: Tensor, spans: Tensor, pooling: str = "mean", gate: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Weighted sum [M, d] and total weight [M] of the tokens of each span; see :func:`pool`."""
    dtype = accumulation_dtype(states.dtype)
    if len(spans) == 0:
        return states.new_zeros(0, states.shape[-1], dtype=dtype), states.new_zeros(0, dtype=dtype)
    lengths = (spans[:, 1] - spans[:, 0]).clamp(min=0)
    if pooling == "last":
        start, lengths = spans[:, 1] - 1, lengths.clamp(max=1)
    else:
        start = spans[:, 0]
    # The tokens of all spans, one after another: x [tokens, d]. Tokens outside are never touched.
    row = torch.repeat_interleave(lengths)
    token = torch.arange(len(row), device=states.device) + (start - lengths.cumsum(0) + lengths)[row]
    x = (states[token] if states.dim() == 2 else states[row, token]).to(dtype)
    weights = x.new_ones(len(x))
    if pooling == "gated":
        assert gate is not None
        gate = gate.to(dtype)
        weights = torch.sigmoid((x @ gate[:-1] + gate[-1]).clamp(-GATE_LIMIT, GATE_LIMIT))
    total = torch.segment_reduce(weights[:, None] * x, "sum", lengths=lengths, axis=0, initial=0)
    return total, torch.segment_reduce(weights, "sum", lengths=lengths, axis=0, initial=0)


def pool(states: Tensor, spans: Tensor, pooling: str = "mean", gate: Tensor | None = None) -> Tensor:
    """One row per span of tokens; the paper's is the last one (arXiv 2505.15710).

    states:  [M, T, d] padded, spans within each row; or [T, d] packed, spans within the whole buffer.
    spans:   [M, 2] int64, half-open [start, stop).
    pooling: ``last``: the last token. ``mean``: their mean. ``gated``: sum g_t x_t / sum g_t with
             g_t = sigmoid(w . x_t + b), its argument clamped to +-GATE_LIMIT.
    gate:    [d + 1], w then b; for ``gated`` only.

    Returns [M, d] in float32 (float64 for float64 states). A span without tokens gives NaN.
    """
    with no_autocast(states.device):
        total, weight = pool_sums(states, spans, pooling, gate)
        return total / weight[:, None]


def pool_update_(
    acc: Tensor, weight: Tensor, states: Tensor, spans: Tensor, pooling: str = "mean", gate: Tensor | None = None
) -> None:
    """Add tokens to a running pool in place; ``acc / weight[:, None]`` is the pooled state so far.

    acc: [M, d], weight: [M], both zero before the first update; the rest as in :func:`pool`.
    """
    with no_autocast(states.device):
        total, added = pool_sums(states, spans, pooling, gate)
    if pooling == "last":
        keep = added == 0
        acc.copy_(torch.where(keep[:, None], acc, total))
        weight.copy_(torch.where(keep, weight, added))
    else:
        acc += total
        weight += added


def attention(x: Tensor, present: Tensor, w: Mapping[str, Tensor], prefix: str, heads: int) -> Tensor:
    """Multi-head self-attention of x [B, S, p] over the positions where ``present`` [B, S]."""
    B, S, p = x.shape
    qkv = F.linear(x, w[prefix + "in_proj_weight"], w[prefix + "in_proj_bias"])
    q, k, v = qkv.view(B, S, 3, heads, p // heads).permute(2, 0, 3, 1, 4)
    logits = q @ k.transpose(-1, -2) / (p // heads) ** 0.5
    logits = logits.masked_fill(~present[:, None, None, :], float("-inf"))
    mixed = (torch.softmax(logits, -1) @ v).transpose(1, 2).reshape(B, S, p)
    return F.linear(mixed, w[prefix + "out_proj.weight"], w[prefix + "out_proj.bias"])


def encoder_layer(
    x: Tensor, present: Tensor, w: Mapping[str, Tensor], prefix: str, heads: int, norm_first: bool, dropout: float
) -> Tensor:
    """``torch.nn.TransformerEncoderLayer(p, heads, ffn, dropout, "gelu", batch_first=True)`` on x [B, S, p]."""

    def drop(y: Tensor) -> Tensor:
        return F.dropout(y, dropout) if dropout else y

    def norm(y: Tensor, name: str) -> Tensor:
        return F.layer_norm(y, y.shape[-1:], w[prefix + name + ".weight"], w[prefix + name + ".bias"], NORM_EPS)

    def mix(y: Tensor) -> Tensor:
        return drop(attention(y, present, w, prefix + "self_attn.", heads))

    def feed(y: Tensor) -> Tensor:
        hidden = drop(F.gelu(F.linear(y, w[prefix + "linear1.weight"], w[prefix + "linear1.bias"])))
        return drop(F.linear(hidden, w[prefix + "linear2.weight"], w[prefix + "linear2.bias"]))

    if norm_first:
        x = x + mix(norm(x, "norm1"))
        return x + feed(norm(x, "norm2"))
    x = norm(x + mix(x), "norm1")
    return norm(x + feed(x), "norm2")


def list_offsets(M: int, B: int, device: torch.device) -> Tensor:
    """Offsets [B + 1] of B equal lists that share M candidates."""
    if (M % B if B else M) != 0:
        raise ValueError(f"score: offsets=None wants M divisible by B, got M={M}, B={B}")
    return torch.arange(B + 1, device=device) * (M // B if B else 0)


def score(
    inst: Tensor,
    resp: Tensor,
    weights: Mapping[str, Tensor],
    *,
    heads: int,
    layers: int,
    scope: str,
    temperature: float,
    norm_first: bool = False,
    dropout: float = 0.0,
    offsets: Tensor | None = None,
) -> ScoreOutput:
    """``x' = W x + b``, an encoder over ``[inst', r'_1 .. r'_N]`` without positions to ``o``,
    ``s_i = cos(o_inst, o_i)``, ``p = softmax(s / temperature)`` (arXiv 2505.15710; ``pair`` is this project's).

    inst:    [B, d] pooled instructions. resp: [M, d] pooled candidates, all lists one after another.
    weights: ``projection.weight`` [p, d], ``projection.bias`` [p] and nn.TransformerEncoder's tensors under
             ``encoder.``. The arithmetic is done in their dtype.
    scope:   ``list``: a sequence is [inst, r_1 .. r_N]. ``pair``: N sequences [inst, r_i].
    offsets: [B + 1] int64, list b is resp[offsets[b] : offsets[b + 1]]; None: equal lists.

    Raises ValueError for unequal lists without offsets; what else :func:`srr_fast.score` checks is not checked here.
    """
    with no_autocast(resp.device):
        return _score(inst, resp, weights, heads, layers, scope, temperature, norm_first, dropout, offsets)


def _score(
    inst: Tensor,
    resp: Tensor,
    weights: Mapping[str, Tensor],
    heads: int,
    layers: int,
    scope: str,
    temperature: float,
    norm_first: bool,
    dropout: float,
    offsets: Tensor | None,
) -> ScoreOutput:
    W, bias = weights["projection.weight"], weights["projection.bias"]
    B, M = len(inst), len(resp)
    if offsets is None:
        offsets = list_offsets(M, B, resp.device)
        longest = M // B if B else 0
    else:
        longest = int(offsets.diff().max()) if B else 0

    def project(rows: Tensor) -> tuple[Tensor, Tensor]:
        finite = rows.isfinite().all(-1)
        x = F.linear(torch.where(finite[:, None], rows, 0).to(W.dtype), W, bias)
        finite = finite & (x.abs() <= LARGEST_PROJECTED).all(-1)
        return torch.where(finite[:, None], x, 0), finite

    inst, inst_finite = project(inst)
    resp, resp_finite = project(resp)
    column = torch.arange(longest, device=resp.device)
    index = offsets[:-1, None] + column  # [B, N]: candidate of every (list, column)
    real = index < offsets[1:, None]
    index = torch.where(real, index, 0)
    listed = resp[index] if M else resp.new_zeros(B, longest, W.shape[0])  # [B, N, p]
    valid = (real & resp_finite[index] if M else real) & inst_finite[:, None]

    if scope == "list":
        x = torch.cat([inst[:, None], listed], 1)  # [B, 1 + N, p]
        present = torch.cat([valid.new_ones(B, 1), valid], 1)
    else:
        pairs = torch.stack([inst[:, None].expand_as(listed), listed], 2)  # [B, N, 2, p]
        x = pairs.reshape(B * longest, 2, W.shape[0])
        present = torch.ones_like(x[..., 0], dtype=torch.bool)
    for i in range(layers):
        x = encoder_layer(x, present, weights, f"encoder.layers.{i}.", heads, norm_first, dropout)
    if scope == "list":
        o_inst, o_resp = x[:, :1], x[:, 1:]
    else:
        o_inst, o_resp = x.view(B, longest, 2, W.shape[0]).unbind(2)
    s = F.cosine_similarity(o_inst, o_resp, dim=-1, eps=COSINE_EPS).clamp(-1, 1)  # [B, N]
    valid = valid & s.isfinite()
    s = s.masked_fill(~valid, float("-inf"))
    some = valid.any(1, keepdim=True)
    p = torch.softmax(torch.where(some, s / temperature, 0), 1) * valid
    top = s.amax(1, keepdim=True) if longest else s.new_full((B, 1), float("-inf"))
    ranked = torch.where(valid & (s == top), column, longest)
    best = ranked.amin(1) if longest else torch.zeros_like(offsets[:-1])
    best = torch.where(some[:, 0], best, -1)
    return ScoreOutput(s[real], p[real], best)


def calibrate(scores: Tensor, slope: float, intercept: float) -> Tensor:
    """``sigmoid(slope * score + intercept)``; 0 for a candidate that is out."""
    return torch.where(scores == float("-inf"), 0, torch.sigmoid(slope * scores + intercept))
