# SPDX-License-Identifier: Apache-2.0
"""What a user would write or pick instead: callables that answer (scores, probs) for one list of candidates."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from srr_fast import SafetyRanker

Rival = Callable[[Tensor, Tensor], tuple[Tensor, ...]]


class PlainScorer(nn.Module):
    """The ranker in PyTorch's own modules, for one list, as one would write it."""

    def __init__(self, ranker: SafetyRanker) -> None:
        super().__init__()
        self.projection = ranker.projection
        self.encoder = ranker.encoder
        self.temperature = ranker.config.temperature

    def forward(self, inst: Tensor, resp: Tensor) -> tuple[Tensor, Tensor]:
        x = self.projection(torch.cat([inst, resp]))
        o = self.encoder(x[None])[0]
        scores = F.cosine_similarity(o[:1], o[1:])
        return scores, torch.softmax(scores / self.temperature, 0)


def rivals(ranker: SafetyRanker) -> dict[str, Rival]:
    """By name, each with weights of its own in float32."""
    plain = PlainScorer(ranker).eval()
    compiled = torch.compile(plain)

    def in_inference_mode(scorer: Rival) -> Rival:
        def call(inst: Tensor, resp: Tensor) -> tuple[Tensor, ...]:
            with torch.inference_mode():
                return scorer(inst, resp)

        return call

    return {
        "eager": plain,
        "inference_mode": in_inference_mode(plain),
        "torch.compile": in_inference_mode(compiled),
    }
