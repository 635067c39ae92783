# SPDX-License-Identifier: Apache-2.0
"""Scoring on every path against the reference in float64, and what it promises."""

import random

import pytest
import torch

import srr_fast
from srr_fast import _native

from .cases import SCORE_CASES, STATE_DTYPES, ScoreCase
from .conftest import native_only
from .numerics import PROB_FLOOR, SCORE_FLOOR, assert_same_order, assert_within_budget

USUAL = ScoreCase("", (8, 3, 17), 96, {"proj_dim": 48, "num_heads": 3})


def exact_and_plain(ranker, inst, resp, offsets):
    """The float64 result and the same maths in float32 PyTorch."""
    with torch.no_grad():
        plain = ranker.score(inst.float(), resp.float(), offsets)
        exact = ranker.double().score(inst.double(), resp.double(), offsets)
    ranker.float()
    return exact, plain


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
    if isa == "amx":  # its encoder rounds activations too, as PyTorch's does
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


def test_states_too_large_for_float32_are_out(isa):
    case = ScoreCase("", (3,), 8)
    inst, resp, offsets = case.inputs()
    resp[1] = 3e38
    ranker = case.build()
    ranker.projection.weight.data.fill_(1.0)
    got = ranker.prepare()(inst, resp, offsets)
    assert got.scores.isinf().tolist() == [False, True, False]


def test_equal_candidates_are_won_by_the_first(isa):
    case = ScoreCase("", (6,), 64)
    inst, resp, _ = case.inputs()
    resp[:] = resp[3].clone()
    got = case.build().prepare()(inst, resp)
    assert got.best.tolist() == [0]
    assert len(set(got.scores.tolist())) == 1


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


def test_out_is_written_and_returned(isa):
    case = USUAL
    inst, resp, offsets = case.inputs()
    scorer = case.build().prepare()
    want = scorer(inst, resp, offsets)
    out = srr_fast.ScoreOutput(torch.full((28,), 9.0), torch.full((28,), 9.0), torch.full((3,), 9))
    got = scorer(inst, resp, offsets, out=out)
    assert all(a is b or a.data_ptr() == b.data_ptr() for a, b in zip(got, out, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(out, want, strict=True))


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


inst_, resp_, offsets_ = USUAL.inputs()


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"inst": inst_.int()}, TypeError, ["inst", "float32", "int32"]),
        ({"inst": None}, TypeError, ["inst"]),
        ({"resp": resp_[:, :95]}, ValueError, ["resp must be", "[M, 96]", "[28, 95]"]),
        ({"inst": inst_[:, :95]}, ValueError, ["inst must be", "[B, 96]", "[3, 95]"]),
        ({"inst": inst_[:, :95], "resp": resp_[:, :95]}, ValueError, ["resp must be", "[M, 96]", "[28, 95]"]),
        (
            {"inst": inst_.to("meta"), "resp": resp_.to("meta"), "offsets": None},
            ValueError,
            ["resp must be on cpu", "meta"],
        ),
        ({"resp": resp_[0]}, ValueError, ["resp", "[96]"]),
        ({"inst": inst_[:2]}, ValueError, ["offsets", "[4]"]),
        ({"offsets": offsets_.int()}, TypeError, ["offsets", "int64", "int32"]),
        ({"offsets": [0, 8, 11, 28]}, TypeError, ["offsets", "int64", "list"]),
        ({"offsets": torch.tensor([0, 8, 11, 27])}, ValueError, ["offsets", "M=28"]),
        ({"offsets": torch.tensor([1, 8, 11, 28])}, ValueError, ["offsets", "M=28"]),
        ({"offsets": torch.tensor([0, 11, 8, 28])}, ValueError, ["offsets", "decreasing"]),
        ({"offsets": None}, ValueError, ["offsets", "M=28", "B=3"]),
        ({"resp": resp_.to("meta")}, ValueError, ["meta"]),
        ({"offsets": offsets_.to("meta")}, ValueError, ["offsets", "meta"]),
        ({"resp": resp_.to_sparse()}, ValueError, ["resp", "sparse"]),
    ],
)
@pytest.mark.parametrize("path", ["prepared", "functional", "ranker"])
def test_errors_name_the_argument(path, change, error, words):
    ranker = USUAL.build()
    call = {
        "prepared": ranker.prepare(),
        "functional": lambda inst, resp, offsets: srr_fast.score(inst, resp, ranker.prepare(), offsets),
        "ranker": ranker.score,
    }[path]
    with pytest.raises(error) as caught:
        call(**{"inst": inst_, "resp": resp_, "offsets": offsets_, **change})
    for word in ["score: ", *words]:
        assert word.lower() in str(caught.value).lower()


HIDDEN = {
    "states": torch.randn(28, 4, 96),
    "spans": torch.tensor([[0, 3]] * 28),
    "inst": inst_,
    "offsets": offsets_,
}


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"states": None}, TypeError, ["states", "NoneType"]),
        ({"states": HIDDEN["states"][..., :95]}, ValueError, ["states", "96", "95"]),
        ({"states": HIDDEN["states"].to("meta")}, ValueError, ["states", "cpu", "meta"]),
        ({"spans": [[0, 3]] * 28}, TypeError, ["spans", "int64", "list"]),
        ({"spans": HIDDEN["spans"].numpy()}, TypeError, ["spans", "int64", "ndarray"]),
        ({"spans": HIDDEN["spans"] + 4}, ValueError, ["spans", "T=4", "row 0"]),
        ({"spans": HIDDEN["spans"][:5]}, ValueError, ["spans", "28", "[5, 2]"]),
        ({"inst": None}, TypeError, ["inst", "NoneType"]),
        ({"inst": inst_[:, :95]}, ValueError, ["inst", "[B, 96]", "[3, 95]"]),
        ({"inst": inst_.int()}, TypeError, ["inst", "int32"]),
        ({"offsets": [0, 8, 11, 28]}, TypeError, ["offsets", "int64", "list"]),
        ({"offsets": offsets_ - 1}, ValueError, ["offsets", "M=28"]),
        ({"offsets": None}, ValueError, ["offsets", "M=28", "B=3"]),
    ],
)
def test_errors_of_from_hidden_name_the_argument(change, error, words):
    with pytest.raises(error) as caught:
        USUAL.build().prepare().from_hidden(**{**HIDDEN, **change})
    assert str(caught.value).startswith("from_hidden: ")
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize("scorer", [None, USUAL.build()], ids=lambda s: type(s).__name__)
def test_scoring_wants_a_prepared_scorer(scorer):
    with pytest.raises(TypeError, match=f"score: scorer must be a PreparedScorer, got {type(scorer).__name__}"):
        srr_fast.score(inst_, resp_, scorer)


@pytest.mark.parametrize("device", ["nowhere", 1.5, *([] if torch.cuda.is_available() else ["cuda"])])
def test_a_device_that_is_not_there_is_named(device):
    with pytest.raises(ValueError, match=f"prepare: device must be .* got '?{device}"):
        USUAL.build().prepare(device)


def test_a_prepared_scorer_cannot_be_changed():
    scorer = USUAL.build().prepare()
    want = scorer(inst_, resp_, offsets_)
    for name in ("config", "dtype", "gate", "packed", "shape", "weights", "_call", "other"):
        with pytest.raises(AttributeError, match=f"PreparedScorer: {name} cannot be set"):
            setattr(scorer, name, None)
        with pytest.raises(AttributeError, match=f"PreparedScorer: {name} cannot be deleted"):
            delattr(scorer, name)
    assert torch.equal(scorer(inst_, resp_, offsets_).scores, want.scores)


def test_out_of_the_wrong_shape_is_refused():
    inst, resp, offsets = USUAL.inputs()
    scorer = USUAL.build().prepare()
    good = scorer(inst, resp, offsets)
    for bad in [
        [good.scores],
        good[:2],
        good._replace(best=None),
        good._replace(scores=torch.zeros(27)),
        good._replace(best=torch.zeros(3)),
        good._replace(probs=torch.zeros(56)[::2]) if _native.extension else good._replace(probs=torch.zeros(1)),
    ]:
        with pytest.raises((TypeError, ValueError), match="out"):
            scorer(inst, resp, offsets, out=bad)


def test_out_is_returned_itself_and_a_plain_tuple_as_a_result():
    inst, resp, offsets = USUAL.inputs()
    scorer = USUAL.build().prepare()
    want = scorer(inst, resp, offsets)
    out = srr_fast.ScoreOutput(*map(torch.zeros_like, want))
    assert scorer(inst, resp, offsets, out=out) is out or _native.extension is None
    plain = tuple(map(torch.zeros_like, want))
    got = scorer(inst, resp, offsets, out=plain)
    assert type(got) is srr_fast.ScoreOutput
    for result, given, tensor in zip((*out, *got), (*out, *plain), (*want, *want), strict=True):
        assert result is given and torch.equal(result, tensor)


def test_inputs_that_need_gradients_get_right_ones():
    case = ScoreCase("", (5,), 32)
    ranker = case.build()
    inst, resp, _ = case.inputs()
    resp.requires_grad_()
    ranker.prepare()(inst, resp).scores.sum().backward()
    got, resp.grad = resp.grad, None
    ranker.score(inst, resp).scores.sum().backward()
    torch.testing.assert_close(got, resp.grad)


@pytest.mark.parametrize("scale", [1e-12, 1e-9, 1e-4, 1e6, 1e14])
def test_very_small_and_very_large_states(isa, scale):
    """Small ones meet the floor of the cosine's norms; large ones stay below the limit of a projected state."""
    case = ScoreCase("", (6,), 32, {"num_layers": 0})
    ranker = case.build()
    ranker.projection.bias.data.zero_()
    inst, resp, offsets = case.inputs()
    inst, resp = inst * scale, resp * scale
    exact, plain = exact_and_plain(ranker, inst, resp, offsets)
    got = ranker.prepare()(inst, resp, offsets)
    assert_within_budget(got.scores, exact.scores, plain.scores, SCORE_FLOOR)
    assert got.scores.abs().max() <= 1


@pytest.mark.parametrize("scale", [10.0, 100.0, 1000.0])
@pytest.mark.parametrize("count", [1, 8, 64])
@pytest.mark.parametrize("hidden", [False, True], ids=["in the result", "hidden by small weights"])
def test_a_few_columns_far_above_the_others(isa, scale, count, hidden):
    case = ScoreCase("", (12,), 1000)
    ranker = case.build()
    inst, resp, offsets = case.inputs()
    columns = torch.randperm(case.d, generator=torch.Generator().manual_seed(2))[:count]
    inst[:, columns] *= scale
    resp[:, columns] *= scale
    if hidden:
        ranker.projection.weight.data[:, columns] /= scale
    exact, plain = exact_and_plain(ranker, inst, resp, offsets)
    assert_within_budget(ranker.prepare()(inst, resp, offsets).scores, exact.scores, plain.scores, SCORE_FLOOR)


@pytest.mark.parametrize("seed", range(3))
def test_weights_of_very_different_sizes(isa, seed):
    case = ScoreCase("", (12,), 1000)
    ranker = case.build(seed)
    for matrix in (w for w in ranker.parameters() if w.dim() == 2):
        matrix.data *= torch.exp(1.5 * torch.randn_like(matrix))
        matrix.data[::3, 0] = 0
    ranker.projection.weight.data[1, 5] = 1e4
    inst, resp, offsets = case.inputs(seed)
    exact, plain = exact_and_plain(ranker, inst, resp, offsets)
    assert_within_budget(ranker.prepare()(inst, resp, offsets).scores, exact.scores, plain.scores, SCORE_FLOOR)


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


# Columns of a language model's middle layers: a few are hundreds or thousands of times the others, in all rows or some,
# and trained projections may weigh them as little as they are large.
OUTLIERS = {
    "in all rows": lambda x, w: (x[:, 3].mul_(300.0), x[:, 700].mul_(2000.0).add_(3000.0)),
    "in some rows": lambda x, w: x[1::3, 130].mul_(3000.0),
    "just under a factor of 32": lambda x, w: x[:, 5::128].mul_(15.0),
    "weighed little": lambda x, w: (x[:, 700].mul_(2000.0), w[:, 700].div_(2000.0)),
    "in the weights": lambda x, w: w[:, 7::893].mul_(1000.0),
    "rows of many sizes": lambda x, w: x.mul_(10.0 ** torch.arange(-6, len(x) - 6)[:, None].clamp(max=9)),
    "columns of many sizes": lambda x, w: x.mul_(10.0 ** torch.linspace(-4, 3, x.shape[1])),
    "sparse": lambda x, w: x.mul_(torch.rand(x.shape, generator=torch.Generator().manual_seed(5)) < 0.02),
}


@pytest.mark.parametrize("d", [128, 1024])
@pytest.mark.parametrize("scale", [5.0, 20.0, 1e4, 1e6])
@pytest.mark.parametrize("columns", ["side by side", "at random", "half of them"])
@pytest.mark.parametrize("side", ["states", "weights", "states, not weighed at all"])
def test_large_columns_that_hide_behind_small_ones(isa, d, scale, columns, side):
    """What is large in one factor of the projection is small in the other: the other columns make the result."""
    case = ScoreCase("", (12,), d)
    ranker = case.build()
    inst, resp, offsets = case.inputs()
    x, w = torch.cat([inst, resp]), ranker.projection.weight.data
    drawn = torch.randperm(128, generator=torch.Generator().manual_seed(2))
    where = {"side by side": torch.arange(16), "at random": drawn[:8], "half of them": drawn[:64]}[columns]
    large, small = (w, x) if side == "weights" else (x, w)
    large[:, where] *= scale
    small[:, where] *= 0 if "at all" in side else 1 / scale
    exact, plain = exact_and_plain(ranker, x[:1], x[1:], offsets)
    assert_within_budget(ranker.prepare()(x[:1], x[1:], offsets).scores, exact.scores, plain.scores, SCORE_FLOOR)


@pytest.mark.parametrize("layers", [0, 1])
@pytest.mark.parametrize("kind", OUTLIERS)
def test_uneven_states_stay_within_the_error_budget(isa, kind, layers):
    case = ScoreCase("", (3, 16), 1024, {"num_layers": layers, "num_heads": 2})
    ranker = case.build()
    inst, resp, offsets = case.inputs()
    x = torch.cat([inst, resp])
    OUTLIERS[kind](x, ranker.projection.weight.data)
    inst, resp = x[:2], x[2:]
    exact, plain = exact_and_plain(ranker, inst, resp, offsets)
    got = ranker.prepare()(inst, resp, offsets)
    assert_within_budget(got.scores, exact.scores, plain.scores, SCORE_FLOOR)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_attention_that_turns_away_from_every_key(isa, dtype):
    """All logits of every query are far below zero, where a key that is only padding would have its zero."""
    case = ScoreCase("", (4, 30), 32, {"proj_dim": 32})
    ranker = case.build()
    with torch.no_grad():
        weight, bias = (
            ranker.encoder.layers[0].self_attn.in_proj_weight,
            ranker.encoder.layers[0].self_attn.in_proj_bias,
        )
        bias[:32] = 40.0
        bias[32:64] = -40.0
        weight[:64] *= 0.1
    inst, resp, offsets = case.inputs(dtype=dtype)
    exact, plain = exact_and_plain(ranker, inst, resp, offsets)
    got = ranker.prepare(dtype=dtype)(inst, resp, offsets)
    assert got.scores.isfinite().all()
    if dtype == torch.float32:
        assert_within_budget(got.scores, exact.scores, plain.scores, SCORE_FLOOR)


@pytest.mark.parametrize("seed", range(12))
def test_rankers_and_states_of_any_size(isa, seed):
    """Random rankers whose matrices are up to 1000 times as large or small, states from 1e-30 to 1e13."""
    rng = random.Random(seed)
    options = {
        "proj_dim": rng.choice([8, 30, 32, 64]),
        "num_layers": rng.choice([1, 2]),
        "norm_first": rng.random() < 0.5,
        "scope": rng.choice(["list", "pair"]),
    }
    sizes = tuple(rng.choice([1, 3, 8, 17, 40]) for _ in range(3))
    case = ScoreCase("", sizes, rng.choice([17, 64, 300]), options)
    ranker = case.build(seed)
    inst, resp, offsets = case.inputs(seed)
    scale = 10 ** rng.uniform(-30, 13)
    x = torch.cat([inst, resp]) * scale + rng.choice([0, 10]) * scale
    x[:, rng.randrange(case.d)] *= rng.choice([1, 1000])
    x[rng.randrange(len(x))] *= rng.choice([0, 1])
    for parameter in ranker.parameters():
        parameter.data *= 10 ** rng.choice([0, 0, 0, 0, rng.uniform(-3, 3)])
    inst, resp = x[: len(inst)], x[len(inst) :]
    exact, plain = exact_and_plain(ranker, inst, resp, offsets)
    got = ranker.prepare()(inst, resp, offsets)
    assert torch.equal(got.scores.isfinite(), exact.scores.isfinite())
    assert torch.equal(
        ranker.prepare(dtype=torch.bfloat16)(inst, resp, offsets).scores.isfinite(), exact.scores.isfinite()
    )
    if scale < 1e6:  # the logits of larger ones differ by more than a softmax has room for
        assert_within_budget(got.scores, exact.scores, plain.scores, 2 * SCORE_FLOOR)


def test_states_beyond_the_limit_are_out_on_every_path(isa):
    case = ScoreCase("", (5,), 32)
    ranker = case.build()
    inst, resp, offsets = case.inputs()
    resp[1:3] *= 1e19
    exact, plain = exact_and_plain(ranker, inst, resp, offsets)
    got = ranker.prepare()(inst, resp, offsets)
    for out in (got, exact, plain):
        assert out.scores.isinf().tolist() == [False, True, True, False, False]


@pytest.mark.parametrize("share", ["scores is probs", "scores in resp", "negated"])
def test_out_that_shares_memory_is_refused(share):
    if _native.extension is None:
        pytest.skip("the reference computes before it writes")
    inst, resp, _ = ScoreCase("", (4,), 32).inputs()
    scorer = ScoreCase("", (4,), 32).build().prepare()
    good = scorer(inst, resp)
    bad = {
        "scores is probs": good._replace(probs=good.scores),
        "scores in resp": good._replace(scores=resp[0, :4]),
        "negated": good._replace(scores=torch._neg_view(good.scores)),
    }[share]
    with pytest.raises(ValueError, match=r"score: .*out"):
        scorer(inst, resp, out=bad)
