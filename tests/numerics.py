# SPDX-License-Identifier: Apache-2.0
"""The error budget: how far a fast path may be from the exact result."""

import torch
from torch import Tensor

from srr_fast import SafetyRanker, ScoreOutput

# Scores lie in [-1, 1] and probabilities in [0, 1]: this is a few units in the last place of 1.0 in float32, what
# correctly rounded arithmetic in another order can differ by when the reference happens to be exact.
SCORE_FLOOR = 5e-7
PROB_FLOOR = 2e-6  # a score's floor, divided by a temperature of 0.1 and multiplied by p (1 - p) <= 1/4
POOL_FLOOR = 2**-22  # of the largest magnitude that was added


def assert_within_budget(got: Tensor, exact: Tensor, plain: Tensor, floor: float) -> None:
    """``got`` is at most twice as far from the float64 result as plain PyTorch in the same dtype, plus a floor.

    Non-finite values must agree exactly.
    """
    finite = exact.isfinite()
    assert torch.equal(got.isfinite(), finite), (got, exact)
    assert torch.equal(got[~finite].nan_to_num(nan=0.5), exact[~finite].to(got.dtype).nan_to_num(nan=0.5))
    error = (got.double() - exact)[finite].abs().max().item() if finite.any() else 0.0
    plain_error = (plain.double() - exact)[finite].abs().max().item() if finite.any() else 0.0
    assert error <= 2 * plain_error + floor, f"error {error:.3g}, plain PyTorch {plain_error:.3g}, floor {floor:.3g}"


def assert_same_order(got: Tensor, exact: Tensor, tolerance: float) -> None:
    """Wherever two exact scores differ by more than twice the tolerance, their order is the same."""
    gap = exact[:, None] - exact[None, :]
    clear = gap > 2 * tolerance
    assert bool((got[:, None] > got[None, :])[clear].all())


def exact_and_plain(ranker: SafetyRanker, inst: Tensor, resp: Tensor, offsets: Tensor) -> tuple[ScoreOutput, ...]:
    """The float64 scores and the same maths in float32 PyTorch."""
    with torch.no_grad():
        plain = ranker.score(inst.float(), resp.float(), offsets)
        exact = ranker.double().score(inst.double(), resp.double(), offsets)
    ranker.float()
    return exact, plain
