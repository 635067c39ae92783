# SPDX-License-Identifier: Apache-2.0
"""A ranker made ready to serve: weights copied and packed once, immutable, thread-safe."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from . import _native, functional
from .reference import ScoreOutput

if TYPE_CHECKING:
    from .config import RankerConfig
    from .ranker import SafetyRanker

WEIGHT_DTYPES = (torch.float32, torch.bfloat16)
VECTORS = ("bias", "norm1.weight", "norm2.weight")


class PreparedScorer:
    """Scores pooled candidates; the same numbers as :meth:`SafetyRanker.score`. Made by ``ranker.prepare()``.

    config:  the ranker's. packed: the packed weights, uint8, or None where the native ops do not serve the device.
    weights: the tensors by checkpoint name, float32; what the reference computes with.
    shape:   what the native ops want beside ``packed``.
    """

    __slots__ = ("_call", "config", "dtype", "gate", "packed", "shape", "weights")

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
        self.config: RankerConfig = config
        self.dtype = dtype
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
        self.gate = None if gate is None else gate.to(device)
        self.packed: Tensor | None = None
        self._call: Any = None
        if _native.extension and device.type in _native.devices:
            names = layer_tensor_names(config.num_layers)
            self.packed = _native.extension.pack_ranker(
                [weights[name].cpu().contiguous() for name in names], *self.shape[1:6]
            ).to(device)
            self._call = _native.extension.PreparedScorer(self.packed, config.state_size, *self.shape)
        if dtype == torch.bfloat16:
            rounded = {n: v if n.endswith(VECTORS) else v.bfloat16().float() for n, v in weights.items()}
            weights = rounded
        self.weights = {name: value.to(device) for name, value in weights.items() if not name.startswith("gate.")}

    def __call__(
        self, inst: Tensor, resp: Tensor, offsets: Tensor | None = None, *, out: ScoreOutput | None = None
    ) -> ScoreOutput:
        """Score M candidates of B prompts.

        inst: [B, d], resp: [M, d], offsets: [B + 1] int64 or None for equal lists, as in :meth:`SafetyRanker.score`.
        out:  results of an earlier call with the same B and M, overwritten and returned.

        Raises TypeError or ValueError naming the argument.
        """
        if self._call is None or torch.compiler.is_compiling() or not _native.serves(inst, resp):
            return write_out(functional.score(inst, resp, self, offsets), out)
        return ScoreOutput(*self._call(inst, resp, offsets, out))
