# SPDX-License-Identifier: Apache-2.0
"""Scores of states and weights far from those of a random ranker: tiny, huge, uneven, beyond the limit."""

import random

import pytest
import torch

from .cases import ScoreCase
from .numerics import SCORE_FLOOR, assert_within_budget, exact_and_plain


def test_states_too_large_for_float32_are_out(isa):
    case = ScoreCase("", (3,), 8)
    inst, resp, offsets = case.inputs()
    resp[1] = 3e38
    ranker = case.build()
    ranker.projection.weight.data.fill_(1.0)
    got = ranker.prepare()(inst, resp, offsets)
    assert got.scores.isinf().tolist() == [False, True, False]


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


# Columns of a language model's middle layers: a few are hundreds or thousands of times the others, in all rows or some,
# and trained projections may weigh them as little as they are large.
OUTLIERS = {
    "in all rows": lambda x, w: (x[:, 3].mul_(300.0), x[:, 700].mul_(2000.0).add_(3000.0)),
    "side by side, few": lambda x, w: x[:, 256:272].mul_(1000.0),
    "side by side, many": lambda x, w: (x[1::2, 256:273].mul_(1000.0), x[:, 40:104].mul_(300.0)),
    "in some rows": lambda x, w: x[1::3, 130].mul_(3000.0),
    "that stand out a little": lambda x, w: x[:, 5::128].mul_(15.0),
    "at every sixteenth place": lambda x, w: x[:, 3::16].mul_(20.0),
    "all but every sixteenth": lambda x, w: x[:, 3::16].mul_(0.01),
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


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("p", [16, 64])
@pytest.mark.parametrize("spread", [0.5, 0.7, 1.0])
def test_weights_that_undo_the_sizes_of_the_columns(isa, spread, p, seed):
    """Columns of states vary in size, and the weights by as much the other way: all columns make the result alike."""
    case = ScoreCase("", (24,), 512, {"proj_dim": p})
    ranker = case.build(seed)
    inst, resp, offsets = case.inputs(seed + 100)
    sizes = torch.exp(spread * torch.randn(512, generator=torch.Generator().manual_seed(seed)))
    ranker.projection.weight.data /= sizes
    exact, plain = exact_and_plain(ranker, inst * sizes, resp * sizes, offsets)
    got = ranker.prepare()(inst * sizes, resp * sizes, offsets)
    assert_within_budget(got.scores, exact.scores, plain.scores, SCORE_FLOOR)


@pytest.mark.parametrize("factor", [8, 15, 20])
@pytest.mark.parametrize(("d", "p"), [(256, 4), (256, 64), (1024, 16), (1024, 64)])
def test_large_states_and_large_weights_that_meet_zeros(isa, d, p, factor):
    """In every 128 columns, sixteen of the states and sixteen others of the weights are large, and count for nothing.
    All other elements are of one size, so that none is far below the largest."""
    case = ScoreCase("", (24,), d, {"proj_dim": p})
    ranker = case.build()
    inst, resp, offsets = case.inputs()
    x, w = torch.cat([inst, resp]), ranker.projection.weight.data
    x.copy_(x.sign() * (x.abs() % 0.5 + 0.75))
    w.copy_(w.sign() * (w.abs() * d**0.5 % 0.5 + 0.75) / d**0.5)
    place = torch.arange(d) % 128
    for large, small, first in ((x, w, 0), (w, x, 16)):
        where = (place >= first) & (place < first + 16)
        large[:, where] *= factor
        small[:, where] = 0
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


def test_nan_where_all_weights_are_zero_is_out(isa):
    """NaN times zero is NaN: no path may leave out a block of weights because there is nothing in it."""
    case = ScoreCase("", (6,), 1024, {"num_layers": 0})
    ranker = case.build()
    ranker.projection.weight.data[:, 256:512] = 0
    inst, resp, offsets = case.inputs()
    resp[1, 300], resp[4, 511] = torch.nan, torch.inf
    got = ranker.prepare()(inst, resp, offsets)
    assert got.scores.isfinite().tolist() == [True, False, True, True, False, True]
