# SPDX-License-Identifier: Apache-2.0
"""A kernel machine on pooled states, for a ranker to learn from.

With a few thousand labels a network of a ranker's size fits them all and its ranking of new texts suffers; kernel
ridge regression has one smooth solution. The ranker then learns the teacher's scores over the whole space of states,
where there is no end of examples.
"""

from __future__ import annotations

import torch
from torch import Tensor

RIDGE = 0.3
MOST = 8192  # examples: their kernel matrix is what takes memory, 256 MB, and time
BLOCK = 4096  # of examples against which states are held at once: what a cache holds


class KernelTeacher:
    """Kernel ridge regression of the label, +1 safe and -1 unsafe, with the kernel exp(-|x - y| / scale).

    states: [M, c] float32. safe: [M] bool, both kinds. seed: of the choice of examples where there are more than MOST.
    """

    def __init__(self, states: Tensor, safe: Tensor, seed: int = 0) -> None:
        if len(states) > MOST:
            chosen = torch.randperm(len(states), generator=torch.Generator().manual_seed(seed))[:MOST]
            states, safe = states[chosen], safe[chosen]
        self.states = states
        self.scale = float((2 * states.var(0, correction=0).sum()).sqrt())  # the distance of two states, on average
        target = 2 * safe.float() - 1
        self.mean = target.mean()
        kernel = self._kernel(states, states)
        kernel.diagonal().add_(RIDGE)
        factor = torch.linalg.cholesky(kernel)
        self.weights = torch.cholesky_solve((target - self.mean)[:, None], factor)[:, 0]

    def __call__(self, states: Tensor) -> Tensor:
        """Scores [M] of states [M, c]: about +1 for safe, -1 for unsafe, the mean label far from all examples."""
        parts = zip(self.states.split(BLOCK), self.weights.split(BLOCK), strict=True)
        return torch.stack([self._kernel(states, own) @ weights for own, weights in parts]).sum(0) + self.mean

    def _kernel(self, states: Tensor, own: Tensor) -> Tensor:
        return torch.cdist(states, own).div_(-self.scale).exp_()
