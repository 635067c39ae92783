# SPDX-License-Identifier: Apache-2.0
"""A ranker made ready to serve: weights copied and packed once, immutable, thread-safe."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from . import _native, reference
from .checks import check_device, check_disjoint, check_lists, check_pool_inputs, check_score_inputs, check_tensor
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

    A list has the same bits in any batch, at any thread count and on every run where the native ops compute; where the
    reference does, and for inputs that need gradients, the reference promises values, not bits.
    Attributes cannot be set. Their tensors must not be written to: ``packed`` and ``weights`` would disagree.
    """

    __slots__ = ("_call", "config", "dtype", "gate", "packed", "shape", "weights")
    _call: Any
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
        target = next(iter(weights.values())).device if device is None else _usable(device)
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
        shape = (
            config.proj_dim,
            config.num_heads,
            config.num_layers,
            config.ffn_dim,
            config.norm_first,
            dtype == torch.bfloat16,
            config.scope,
            config.temperature,
        )
        packed = call = None
        if _native.extension and device.type in _native.devices:
            tensors = [weights[name].cpu().contiguous() for name in layer_tensor_names(config.num_layers)]
            packed = _native.extension.pack_ranker(tensors, *shape[1:6]).to(device)
            call = _native.extension.prepared_scorer(packed, config.state_size, *shape)
        attributes = {
            "_call": call,
            "config": config,
            "dtype": dtype,
            "gate": None if gate is None else gate.to(device),
            "packed": packed,
            "shape": shape,
            "weights": {name: v.to(device) for name, v in weights.items() if not name.startswith("gate.")},
        }
        for name, value in attributes.items():
            object.__setattr__(self, name, value)

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"PreparedScorer: {name} cannot be set, a prepared scorer is immutable; prepare another")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"PreparedScorer: {name} cannot be deleted, a prepared scorer is immutable")

    def __reduce__(self) -> tuple[Any, ...]:
        return _restore, (self.config, self.weights, self.gate, self._device(), self.dtype)

    def _device(self) -> torch.device:
        return self.weights["projection.weight"].device

    def __call__(
        self, inst: Tensor, resp: Tensor, offsets: Tensor | None = None, *, out: ScoreOutput | None = None
    ) -> ScoreOutput:
        """Score M candidates of B prompts.

        inst: [B, d], resp: [M, d], offsets: [B + 1] int64 or None for equal lists, as in :meth:`SafetyRanker.score`.
        out:  the result of an earlier call with the same B and M, overwritten and returned; shares no memory with the
              inputs, and takes no gradient.

        Raises TypeError or ValueError naming the argument. On CUDA nobody looks at what offsets hold, since looking
        would wait for the device: a list that leaves the candidates or overlaps one before it has no answer (best -1),
        nor has a candidate in no list (score -inf). So a call may be captured in a CUDA graph; its workspace comes from
        PyTorch's caching allocator.
        """
        if self._call is not None and not torch.compiler.is_dynamo_compiling():
            try:
                result = self._call(inst, resp, offsets, out)
            except (TypeError, ValueError):
                check_score_inputs(inst, resp, offsets, self.config.state_size, self._device())
                raise
            if result is not None:
                return result if type(result) is ScoreOutput else ScoreOutput(*result)
        return _write_out(self._traceable(inst, resp, offsets), out, (inst, resp, offsets))

    def _traceable(self, inst: Tensor, resp: Tensor, offsets: Tensor | None = None) -> ScoreOutput:
        """:meth:`__call__` by way of PyTorch's dispatcher: what ``torch.compile`` traces, and gradients need."""
        if self.packed is not None and _native.serves(inst, resp, optional=offsets):
            try:
                return ScoreOutput(*torch.ops.srr_fast.score(inst, resp, offsets, self.packed, *self.shape))
            except (TypeError, ValueError):
                check_score_inputs(inst, resp, offsets, self.config.state_size, self._device())
                raise
        check_score_inputs(inst, resp, offsets, self.config.state_size, self._device())
        return self._reference(inst, resp, offsets)

    def _reference(self, inst: Tensor, resp: Tensor, offsets: Tensor | None) -> ScoreOutput:
        config = self.config
        return reference.score(
            inst,
            resp,
            self.weights,
            heads=config.num_heads,
            layers=config.num_layers,
            scope=config.scope,
            temperature=config.temperature,
            norm_first=config.norm_first,
            offsets=offsets,
        )

    def from_hidden(self, states: Tensor, spans: Tensor, inst: Tensor, offsets: Tensor | None = None) -> ScoreOutput:
        """Pool token states as the ranker wants them, then score: one call.

        states: [M, T, d] padded or [T, d] packed, spans: [M, 2] int64, both as in :func:`srr_fast.pool`.
        inst:   [B, d] pooled instructions. offsets as in :meth:`__call__`.
        """
        pooling = self.config.pooling
        if self.packed is not None and _native.serves(states, spans, inst, optional=offsets):
            try:
                return ScoreOutput(
                    *torch.ops.srr_fast.rank(states, spans, pooling, self.gate, inst, offsets, self.packed, *self.shape)
                )
            except (TypeError, ValueError):
                self._check_hidden(states, spans, inst, offsets)
                raise
        self._check_hidden(states, spans, inst, offsets)
        return self._reference(inst, reference.pool(states, spans, pooling, self.gate), offsets)

    def _check_hidden(self, states: Tensor, spans: Tensor, inst: Tensor, offsets: Tensor | None) -> None:
        op, d, device = "from_hidden", self.config.state_size, self._device()
        if isinstance(states, Tensor):
            check_device(op, "states", states, device)
        M = check_pool_inputs(op, states, spans, self.config.pooling, self.gate, d=d)
        check_lists(op, inst, M, offsets, d, device)


def _usable(device: torch.device | str) -> torch.device:
    try:
        found = torch.empty(0, device=device).device
    except (AssertionError, RuntimeError, TypeError) as error:
        raise ValueError(f"prepare: device must be one that this PyTorch has, got {device!r}: {error}") from error
    if found.type == "meta":
        raise ValueError("prepare: device must be one that holds data, got meta")
    return found


def _restore(*state: Any) -> PreparedScorer:
    scorer = PreparedScorer.__new__(PreparedScorer)
    scorer._set(*state)
    return scorer


def _write_out(result: ScoreOutput, out: ScoreOutput | None, inputs: tuple[Tensor | None, ...]) -> ScoreOutput:
    """Copy a reference result into the caller's tensors."""
    if out is None:
        return result
    if not isinstance(out, tuple) or len(out) != len(result):
        raise TypeError(f"score: out must be a ScoreOutput, got {type(out).__name__}")
    for name, given, value in zip(ScoreOutput._fields, out, result, strict=True):
        check_tensor("score", f"out.{name}", given, tuple(value.shape), (value.dtype,))
        check_device("score", f"out.{name}", given, value.device)
    if result.scores.requires_grad:
        raise ValueError("score: out cannot take scores that require a gradient; leave it out")
    if not torch.compiler.is_compiling():  # it cannot look at where data lies
        check_disjoint("score", "out", out, inputs)
    for given, value in zip(out, result, strict=True):
        given.copy_(value)
    return ScoreOutput(*out)
