# SPDX-License-Identifier: Apache-2.0
"""Labelled lists as tensors: what training reads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from .lists import LabelledList

if TYPE_CHECKING:
    from .extract import Features


class Examples(NamedTuple):
    """B lists of M responses with their pooled states, all layers concatenated.

    inst: [B, d] float32. resp: [M, d] float32, every row finite. offsets: [B + 1] int64. safe: [M] bool.
    """

    inst: Tensor
    resp: Tensor
    offsets: Tensor
    safe: Tensor

    @classmethod
    def of(cls, lists: Sequence[LabelledList], features: Sequence[Features]) -> Examples:
        """Of lists whose responses are all labelled. features: of these lists, one for every layer that is read.

        Responses without a finite state (no token) are left out.
        """
        inst = torch.cat([part.inst for part in features], 1)
        resp = torch.cat([part.resp for part in features], 1)
        safe = torch.tensor([bool(response.safe) for row in lists for response in row.responses])
        kept = resp.isfinite().all(1)
        offsets = torch.nn.functional.pad(kept.long().cumsum(0), (1, 0))[features[0].offsets]
        return cls(inst, resp[kept], offsets, safe[kept])

    @property
    def mixed(self) -> Tensor:
        """[B] whether a list holds both kinds."""
        total = torch.nn.functional.pad(self.safe.long().cumsum(0), (1, 0))[self.offsets].diff()
        return (total > 0) & (total < self.offsets.diff())

    def take(self, rows: Tensor, size: int | None = None, generator: torch.Generator | None = None) -> Examples:
        """Some of the lists, each cut to ``size`` of its responses drawn at random, both kinds in it if both were."""
        chosen = [self._drawn(int(b), size, generator) for b in rows]
        at = torch.cat(chosen) if chosen else torch.empty(0, dtype=torch.int64)
        offsets = torch.tensor([0, *map(len, chosen)]).cumsum(0)
        return Examples(self.inst[rows], self.resp[at], offsets, self.safe[at])

    def _drawn(self, b: int, size: int | None, generator: torch.Generator | None) -> Tensor:
        own = torch.arange(int(self.offsets[b]), int(self.offsets[b + 1]))
        if size is None or len(own) <= size:
            return own
        own = own[torch.randperm(len(own), generator=generator)]
        safe = self.safe[own]
        one_of_each = [own[kind][:1] for kind in (safe, ~safe)]
        first = torch.cat(one_of_each)
        rest = own[~torch.isin(own, first)]
        return torch.cat([first, rest])[:size]


class Standardisation(NamedTuple):
    """``(x - mean) / std``, then the coordinates along ``basis`` [d, c] if there is one."""

    mean: Tensor
    std: Tensor
    basis: Tensor | None

    @classmethod
    def of(cls, states: Tensor, components: int | None = None) -> Standardisation:
        """Of states [M, d]. components: keep so many principal ones, scaled to a mean variance of 1."""
        std, mean = torch.std_mean(states, 0, correction=0)
        std = std.clamp(min=1e-3)
        if components is None:
            return cls(mean, std, None)
        scaled = (states - mean) / std
        covariance = scaled.T @ scaled / len(scaled)
        values, vectors = torch.linalg.eigh(covariance.double())
        values, vectors = values[-components:], vectors[:, -components:]
        return cls(mean, std, (vectors / values.mean().clamp(min=1e-6).sqrt()).float())

    def __call__(self, states: Tensor) -> Tensor:
        """[M, c] of states [M, d]."""
        scaled = (states - self.mean) / self.std
        return scaled if self.basis is None else scaled @ self.basis

    def folded(self, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """Weight [p, d] and bias [p] of the same projection on states as they are, from one [p, c] on standardised."""
        wide = weight.double() if self.basis is None else weight.double() @ self.basis.double().T
        wide = wide / self.std.double()
        return wide.float(), (bias.double() - wide @ self.mean.double()).float()
