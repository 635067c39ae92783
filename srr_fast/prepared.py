# SPDX-License-Identifier: Apache-2.0
"""A ranker made ready to serve: weights copied and packed once, immutable, thread-safe."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from . import _native, functional
from .checks import check_tensor
from .reference import ScoreOutput

if TYPE_CHECKING:
    from .config import RankerConfig
    from .ranker import SafetyRanker

WEIGHT_DTYPES = (torch.float32, torch.bfloat16)
VECTORS = ("bias", "norm1.weight", "norm2.weight")  # endings of the tensors that bfloat16 packing does not round
LAYER_TENSORS = (
    "self_attn.in_proj_weight",
    "self_attn.in_proj_bias",
    "self_attn.out_proj.weight",
    "self_attn.out_proj.bias",
    "linear1.weight",
    "linear1.bias",
    "linear2.weight",
    "linear2.bias",
    "norm1.weight",
    "norm1.bias",
    "norm2.weight",
    "norm2.bias",
)


def layer_tensor_names(layers: int) -> list[str]:
    """The checkpoint names of a ranker's tensors in the order the native packing wants them."""
    encoder = [f"encoder.layers.{i}.{name}" for i in range(layers) for name in LAYER_TENSORS]
    return ["projection.weight", "projection.bias", *encoder]


class PreparedScorer:
    """Scores pooled candidates; the same numbers as :meth:`SafetyRanker.score`. Made by ``ranker.prepare()``.

    config:  the ranker's. packed: the packed weights, uint8, or None where the native ops do not serve the device.
    weights: the tensors by checkpoint name, float32; what the reference computes with.
    shape:   what the native ops want beside ``packed``.
    """

    __slots__ = ("_call", "config", "dtype", "gate", "packed", "shape", "weights")
    config: RankerConfig
    dtype: torch.dtype
    gate: Tensor | None
    packed: Tensor | None
    shape: tuple[int | bool | str | float | None, ...]
    weights: dict[str, Tensor]

    def __init__(
        self,
        ranker: SafetyRanker,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        if dtype not in WEIGHT_DTYPES:
            raise TypeError(f"prepare: dtype must be float32 or bfloat16, got {dtype}")
        weights = {name: value.detach().float().clone() for name, value in ranker.named_parameters()}
        gate = ranker.gate_vector()
        target = torch.device(device) if device is not None else next(iter(weights.values())).device
        self._set(ranker.config, weights, None if gate is None else gate.detach().float(), target, dtype)

    def _set(
        self,
        config: RankerConfig,
        weights: dict[str, Tensor],
        gate: Tensor | None,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        if dtype == torch.bfloat16:
            weights = {name: v if name.endswith(VECTORS) else v.bfloat16().float() for name, v in weights.items()}
        self.config = config
        self.dtype = dtype
        self.gate = None if gate is None else gate.to(device)
        self.weights = {name: v.to(device) for name, v in weights.items() if not name.startswith("gate.")}
        self.shape = (
            config.proj_dim,
            config.num_heads,
            config.num_layers,
            config.ffn_dim,
            config.norm_first,
            dtype == torch.bfloat16,
            config.scope,
            config.temperature,
        )
        self.packed = None
        self._call: Any = None
        if _native.extension and device.type in _native.devices:
            tensors = [weights[name].cpu().contiguous() for name in layer_tensor_names(config.num_layers)]
            self.packed = _native.extension.pack_ranker(tensors, *self.shape[1:6]).to(device)
            self._call = _native.extension.PreparedScorer(self.packed, config.state_size, *self.shape)

    def __reduce__(self) -> tuple[Any, ...]:
        device = next(iter(self.weights.values())).device
        return _restore, (self.config, self.weights, self.gate, device, self.dtype)

    def __call__(
        self, inst: Tensor, resp: Tensor, offsets: Tensor | None = None, *, out: ScoreOutput | None = None
    ) -> ScoreOutput:
        """Score M candidates of B prompts.

        inst: [B, d], resp: [M, d], offsets: [B + 1] int64 or None for equal lists, as in :meth:`SafetyRanker.score`.
        out:  the result of an earlier call with the same B and M, overwritten and returned.

        Raises TypeError or ValueError naming the argument.
        """
        if self._call is not None and not torch.compiler.is_compiling():
            result = self._call(inst, resp, offsets, out)
            if result is not None:
                return ScoreOutput(*result)
        return _write_out(functional.score(inst, resp, self, offsets), out)

    def from_hidden(self, states: Tensor, spans: Tensor, inst: Tensor, offsets: Tensor | None = None) -> ScoreOutput:
        """Pool token states as the ranker wants them, then score: one call.

        states: [M, T, d] padded or [T, d] packed, spans: [M, 2] int64, both as in :func:`srr_fast.pool`.
        inst:   [B, d] pooled instructions. offsets as in :meth:`__call__`.
        """
        config = self.config
        if self.packed is not None and _native.serves(states, spans, inst, optional=offsets):
            return ScoreOutput(
                *torch.ops.srr_fast.rank(
                    states, spans, config.pooling, self.gate, inst, offsets, self.packed, *self.shape
                )
            )
        resp = functional.pool(states, spans, pooling=config.pooling, gate=self.gate)
        return functional.score(inst, resp, self, offsets)


def _restore(*state: Any) -> PreparedScorer:
    scorer = PreparedScorer.__new__(PreparedScorer)
    scorer._set(*state)
    return scorer


def _write_out(result: ScoreOutput, out: ScoreOutput | None) -> ScoreOutput:
    """Copy a reference result into the caller's tensors."""
    if out is None:
        return result
    if not isinstance(out, tuple) or len(out) != len(result):
        raise TypeError(f"score: out must be a ScoreOutput, got {type(out).__name__}")
    for name, given, value in zip(ScoreOutput._fields, out, result, strict=True):
        check_tensor("score", f"out.{name}", given, tuple(value.shape), (value.dtype,))
        given.copy_(value)
    return ScoreOutput(*out)
