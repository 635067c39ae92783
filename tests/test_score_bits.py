# SPDX-License-Identifier: Apache-2.0
"""What changes no bit of a score: other lists in the batch, the number of threads, another run."""

import pytest
import torch

from .cases import ScoreCase
from .conftest import native_only


@native_only
@pytest.mark.parametrize("scope", ["list", "pair"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_list_has_the_same_bits_in_any_batch(isa, scope, dtype, two_threads):
    case = ScoreCase("", (1, 5, 33, 0, 2, 64, 7) * 3, 2100, {"scope": scope})
    inst, resp, offsets = case.inputs(dtype=dtype)
    resp[3] = float("nan")
    scorer = case.build().prepare(dtype=dtype)
    together = scorer(inst, resp, offsets)
    for threads in (1, 2):
        torch.set_num_threads(threads)
        again = scorer(inst, resp, offsets)
        assert all(torch.equal(a, b) for a, b in zip(together, again, strict=True))
        for b, size in enumerate(case.sizes):
            mine = slice(int(offsets[b]), int(offsets[b + 1]))
            alone = scorer(inst[b : b + 1], resp[mine], torch.tensor([0, size]))
            assert torch.equal(alone.scores, together.scores[mine])
            assert torch.equal(alone.probs, together.probs[mine])
            assert alone.best[0] == together.best[b]


@native_only
@pytest.mark.parametrize("sizes", [(300,), (8,), (40, 41)])
def test_a_hundred_runs_have_equal_bits(isa, sizes, two_threads):
    case = ScoreCase("", sizes, 4096)
    inst, resp, offsets = case.inputs()
    scorer = case.build().prepare()
    first = scorer(inst, resp, offsets)
    for run in range(100):
        torch.set_num_threads(1 + run % 2)
        again = scorer(inst, resp, offsets)
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


@native_only
@pytest.mark.parametrize("threads", [2, 64])
def test_rows_that_do_not_divide_among_threads(isa, threads):
    """The last threads get no rows at all."""
    case = ScoreCase("", (12160,) if threads == 2 else (66,), 64, {"scope": "pair", "num_layers": 0})
    scorer = case.build().prepare()
    inst, resp, _ = case.inputs()
    alone, before = scorer(inst, resp).scores, torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        assert torch.equal(scorer(inst, resp).scores, alone)
    finally:
        torch.set_num_threads(before)


@native_only
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("n", [5, 17, 40, 120])  # one tile of rows, whose columns threads share, or several tiles
def test_threads_share_a_wide_ranker_and_change_no_bit(isa, n, dtype):
    case = ScoreCase("", (n,), 64, {"proj_dim": 360, "num_heads": 2, "num_layers": 2})
    scorer = case.build().prepare(dtype=dtype)
    inst, resp, _ = case.inputs(dtype=dtype)
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(scorer(inst, resp).scores)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


@native_only
def test_an_uneven_neighbour_changes_no_bit(isa):
    case = ScoreCase("", (40,), 300)
    scorer = case.build().prepare()
    inst, resp, _ = case.inputs()
    resp[7:, ::50] *= 1e4
    resp[20], resp[30] = 1e-30, 1e30
    together = scorer(inst.expand(2, -1), resp, torch.tensor([0, 7, 40]))
    for mine in (slice(0, 7), slice(7, 40)):
        assert torch.equal(scorer(inst, resp[mine]).scores, together.scores[mine])
