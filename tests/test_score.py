# SPDX-License-Identifier: Apache-2.0
"""Scoring on every path against the reference in float64, and what it promises."""

import pytest
import torch

import srr_fast

from .cases import SCORE_CASES, STATE_DTYPES, ScoreCase
from .numerics import PROB_FLOOR, SCORE_FLOOR, assert_same_order, assert_within_budget, exact_and_plain


@pytest.mark.parametrize("dtype", STATE_DTYPES, ids=str)
@pytest.mark.parametrize("case", SCORE_CASES, ids=lambda c: c.name)
def test_within_the_error_budget(isa, case, dtype):
    ranker = case.build()
    inst, resp, offsets = case.inputs(dtype=dtype)
    exact, plain = exact_and_plain(ranker, inst, resp, offsets)
    got = ranker.prepare()(inst, resp, offsets)
    assert [t.dtype for t in got] == [torch.float32, torch.float32, torch.int64]
    assert_within_budget(got.scores, exact.scores, plain.scores, SCORE_FLOOR)
    assert_within_budget(got.probs, exact.probs, plain.probs, PROB_FLOOR * 0.1 / case.config.temperature)
    torch.testing.assert_close(got.scores.double(), exact.scores, rtol=0, atol=1e-5)
    for b in range(len(case.sizes)):
        mine = slice(int(offsets[b]), int(offsets[b + 1]))
        assert_same_order(got.scores[mine], exact.scores[mine], 1e-5)


@pytest.mark.parametrize("case", SCORE_CASES, ids=lambda c: c.name)
def test_bfloat16_weights(isa, case):
    ranker = case.build()
    inst, resp, offsets = case.inputs(dtype=torch.bfloat16)
    exact, _ = exact_and_plain(ranker, inst, resp, offsets)
    scorer = ranker.prepare(dtype=torch.bfloat16)
    got = scorer(inst, resp, offsets)
    if case.config.proj_dim > 1:  # with one column a score is a sign, and rounding can flip it
        torch.testing.assert_close(got.scores.double(), exact.scores, rtol=0, atol=5e-3)
    rounded = case.build()
    rounded.load_state_dict(scorer.weights)
    exact, plain = exact_and_plain(rounded, inst, resp, offsets)
    if isa in ("amx", "avx512_bf16"):  # their encoder rounds activations too, as PyTorch's does
        with torch.no_grad():
            plain = rounded.bfloat16().score(inst, resp, offsets)
    assert_within_budget(got.scores, exact.scores, plain.scores, SCORE_FLOOR)


@pytest.mark.parametrize("scope", ["list", "pair"])
def test_a_candidate_that_is_out_is_as_if_absent(isa, scope):
    case = ScoreCase("", (8, 3, 17), 96, {"proj_dim": 48, "num_heads": 3, "scope": scope})
    scorer = case.build().prepare()
    inst, resp, offsets = case.inputs()
    resp[2, 5], resp[9], resp[11, 0], resp[27] = float("inf"), float("nan"), float("-inf"), float("nan")
    out = [2, 9, 11, 27]
    keep = [i for i in range(28) if i not in out]
    got = scorer(inst, resp, offsets)
    absent = scorer(inst, resp[keep], torch.tensor([0, 7, 9, 24]))
    same = torch.equal if isa != "reference" else lambda a, b: torch.allclose(a, b, rtol=0, atol=1e-6)
    assert same(got.scores[keep], absent.scores)
    assert same(got.probs[keep], absent.probs)
    assert (got.scores[out] == float("-inf")).all()
    assert (got.probs[out] == 0).all()
    for b, (begin, end) in enumerate([(0, 8), (8, 11), (11, 28)]):
        assert got.best[b] == got.scores[begin:end].argmax()


def test_a_list_with_nothing_left_has_no_best(isa):
    case = ScoreCase("", (2, 2, 2), 32)
    inst, resp, offsets = case.inputs()
    resp[:2] = float("nan")  # all candidates of the first list
    inst[2, 0] = float("inf")  # the instruction of the last
    got = case.build().prepare()(inst, resp, offsets)
    assert got.best.tolist() == [-1, got.scores[2:4].argmax().item(), -1]
    assert got.scores.isinf().tolist() == [True, True, False, False, True, True]
    assert got.probs.sum().item() == pytest.approx(1.0)


def test_equal_candidates_are_won_by_the_first(isa):
    case = ScoreCase("", (6,), 64)
    inst, resp, _ = case.inputs()
    resp[:] = resp[3].clone()
    got = case.build().prepare()(inst, resp)
    assert got.best.tolist() == [0]
    assert len(set(got.scores.tolist())) == 1


def test_permuting_candidates_permutes_scores(isa):
    case = ScoreCase("", (20,), 128)
    inst, resp, _ = case.inputs()
    scorer = case.build().prepare()
    order = torch.randperm(20)
    torch.testing.assert_close(scorer(inst, resp[order]).scores, scorer(inst, resp).scores[order], rtol=0, atol=1e-6)


@pytest.mark.parametrize("view", ["strided rows", "misaligned", "transposed", "negated", "expanded"])
def test_views(isa, view):
    case = ScoreCase("", (7,), 50)
    ranker = case.build()
    inst, resp, offsets = case.inputs()
    if view == "strided rows":
        view = torch.randn(14, 90)[::2, 3:53]
    elif view == "misaligned":
        view = torch.randn(7 * 50 + 1)[1:].view(7, 50)
    elif view == "transposed":
        view = torch.randn(50, 7).t()
    elif view == "negated":
        view = torch._neg_view(resp)
    else:
        view = resp[:1].expand(7, 50)
    got = ranker.prepare()(inst, view, offsets)
    want = ranker.prepare()(inst, view.clone().contiguous(), offsets)
    # PyTorch's matrix product may take another way through a transposed matrix.
    torch.testing.assert_close(got.scores, want.scores, rtol=0, atol=1e-6 if isa == "reference" else 0)


def test_from_hidden_is_pool_then_score(isa):
    for pooling in ("last", "mean", "gated"):
        case = ScoreCase("", (4, 5), 40, {"pooling": pooling})
        ranker = case.build()
        states = torch.randn(9, 12, 40)
        spans = torch.tensor([[0, 12], [2, 3], [5, 5], [1, 9], [0, 4], [11, 12], [3, 8], [0, 1], [6, 12]])
        inst, _, offsets = case.inputs()
        scorer = ranker.prepare()
        gate = ranker.gate_vector()
        resp = srr_fast.pool(states, spans, pooling=pooling, gate=None if gate is None else gate.detach())
        got, want = scorer.from_hidden(states, spans, inst, offsets), scorer(inst, resp, offsets)
        assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))
        assert got.scores[2] == float("-inf")


def test_no_offsets_means_equal_lists(isa):
    case = ScoreCase("", (4, 4), 24)
    inst, resp, offsets = case.inputs()
    scorer = case.build().prepare()
    got, want = scorer(inst, resp), scorer(inst, resp, offsets)
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


def test_inputs_that_need_gradients_get_right_ones():
    case = ScoreCase("", (5,), 32)
    ranker = case.build()
    inst, resp, _ = case.inputs()
    resp.requires_grad_()
    ranker.prepare()(inst, resp).scores.sum().backward()
    got, resp.grad = resp.grad, None
    ranker.score(inst, resp).scores.sum().backward()
    torch.testing.assert_close(got, resp.grad)
