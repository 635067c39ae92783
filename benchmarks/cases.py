# SPDX-License-Identifier: Apache-2.0
"""What is timed: the rows of the table, the sweeps, and what each of them must move and compute."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from srr_fast import RankerConfig, SafetyRanker

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Case:
    """B equal lists of N candidates, their states d wide, for a ranker of one layer and width p.

    T:      0 for pooled states; else T tokens a candidate, whose mean is taken first.
    dtype:  of states and of weights.
    outliers: six columns are 30 to 300 times the others, as in middle layers of large language models.
    target: how many times faster than the best rival the case is meant to be.
    """

    N: int
    B: int = 1
    p: int = 64
    d: int = 4096
    T: int = 0
    dtype: str = "float32"
    target: float | None = None
    outliers: bool = False

    @property
    def name(self) -> str:
        pooled = f"mean over T = {self.T}" if self.T else "last token"
        lists = f"{self.B} x {self.N}" if self.B > 1 else f"N = {self.N}"
        width = f", d = {self.d}" if self.d != 4096 else ""
        return f"{pooled}, p = {self.p}, {lists}{width}{', outlier columns' * self.outliers}"

    @property
    def M(self) -> int:
        return self.B * self.N

    @property
    def state_bytes(self) -> int:
        return self.M * max(self.T, 1) * self.d * DTYPES[self.dtype].itemsize

    @property
    def bytes(self) -> int:
        """What has to be read at least, once: states, instructions and matrices."""
        rest = self.B * self.d + self.d * self.p + 12 * self.p**2
        return self.state_bytes + rest * DTYPES[self.dtype].itemsize

    @property
    def flop(self) -> int:
        rows = self.M + self.B
        pooling = self.M * self.T * self.d
        return pooling + 2 * rows * self.d * self.p + 24 * rows * self.p**2 + 4 * self.B * (self.N + 1) ** 2 * self.p

    @cached_property
    def ranker(self) -> SafetyRanker:
        torch.manual_seed(0)
        config = RankerConfig(self.d, proj_dim=self.p, pooling="mean" if self.T else "last")
        return SafetyRanker(config).eval()

    def inputs(self) -> tuple[Tensor, Tensor]:
        """inst [B, d], and resp [M, d] or states [M, T, d]."""
        generator = torch.Generator().manual_seed(1)
        inst = torch.randn(self.B, self.d, generator=generator)
        if not self.T:
            resp = torch.randn(self.M, self.d, generator=generator)
            if self.outliers:
                columns = torch.randperm(self.d, generator=generator)[:6]
                for rows in (inst, resp):
                    rows[:, columns] *= torch.tensor([30.0, 50.0, 80.0, 120.0, 200.0, 300.0])
            return inst.to(DTYPES[self.dtype]), resp.to(DTYPES[self.dtype])
        states = torch.empty(self.M, self.T, self.d, dtype=DTYPES[self.dtype])
        for rows in states:
            rows.copy_(torch.randn(self.T, self.d, generator=generator))
        return inst.to(DTYPES[self.dtype]), states

    @property
    def spans(self) -> Tensor:
        return torch.tensor([[0, self.T]]).repeat(self.M, 1)


# N, B, p, T; targets in float32 and bfloat16
ROWS = [
    (8, 1, 64, 0, 4.5, 7.0),
    (16, 1, 64, 0, 4.5, 7.0),
    (64, 1, 64, 0, 3.0, 5.0),
    (256, 1, 64, 0, 2.0, 3.5),
    (16, 1, 512, 0, 1.5, 3.0),
    (16, 64, 64, 0, 2.0, 4.0),
    (16, 1, 64, 256, 1.3, 1.3),
    (64, 1, 64, 1024, 1.3, 1.3),
]
TABLE = [
    Case(N, B, p, T=T, dtype=dtype, target=target)
    for i, dtype in enumerate(DTYPES)
    for N, B, p, T, *targets in ROWS
    for target in targets[i : i + 1]
] + [Case(N, outliers=True) for N in (16, 64)]
COLD = [Case(N, dtype=dtype) for dtype in DTYPES for N in (8, 16, 64)]  # right after a step of a language model
QUICK = [Case(8, p=16, d=256), Case(3, B=2, p=16, d=256, T=5), Case(8, p=16, d=256, dtype="bfloat16")]

# The letter that varies, its values, and the case whose field it is.
SWEEPS: dict[str, tuple[list[int], Case]] = {
    "N": ([1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096], Case(1)),
    "B": ([1, 2, 4, 8, 16, 32, 64, 128], Case(16)),
    "d": ([256, 512, 1024, 2048, 4096, 8192, 16384], Case(16)),
    "p": ([32, 64, 128, 256, 512], Case(16)),
    "T": ([1, 4, 16, 64, 256, 1024], Case(16, T=1)),
}
