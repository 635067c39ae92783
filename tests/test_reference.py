# SPDX-License-Identifier: Apache-2.0
"""The specification against PyTorch's own modules, and its rules."""

import pytest
import torch
import torch.nn.functional as F

from srr_fast import RankerConfig, SafetyRanker, reference

from .cases import SCORE_CASES, ScoreCase


def by_hand(ranker, inst, resp, offsets):
    """Scores from nn.TransformerEncoder itself, one list at a time."""
    scores = []
    for b in range(len(inst)):
        x_inst, x = ranker.projection(inst[b : b + 1]), ranker.projection(resp[offsets[b] : offsets[b + 1]])
        if len(x) == 0:
            continue
        encode = ranker.encoder if ranker.config.num_layers else lambda y: y
        if ranker.config.scope == "list":
            o = encode(torch.cat([x_inst, x])[None])[0]
            scores.append(F.cosine_similarity(o[:1], o[1:]))
        else:
            o = encode(torch.stack([x_inst.expand_as(x), x], 1))
            scores.append(F.cosine_similarity(o[:, 0], o[:, 1]))
    return torch.cat(scores) if scores else resp.new_zeros(0)


@pytest.mark.parametrize("case", SCORE_CASES, ids=lambda c: c.name)
def test_score_is_torchs_transformer_encoder(case):
    ranker = case.build().double()
    inst, resp, offsets = case.inputs(dtype=torch.float64)
    with torch.no_grad():
        out = ranker.score(inst, resp, offsets)
        want = by_hand(ranker, inst, resp, offsets)
    torch.testing.assert_close(out.scores, want, rtol=0, atol=1e-12)
    for b, size in enumerate(case.sizes):
        mine = slice(int(offsets[b]), int(offsets[b + 1]))
        torch.testing.assert_close(out.probs[mine], torch.softmax(want[mine] / case.config.temperature, 0))
        assert out.best[b] == (int(want[mine].argmax()) if size else -1)


def test_gradients_match_finite_differences():
    case = ScoreCase("", (3, 2), 6, {"proj_dim": 4, "num_heads": 2})
    ranker = case.build().double()
    inst, resp, offsets = case.inputs(dtype=torch.float64)
    weights = [p.detach().requires_grad_() for p in ranker.parameters()]
    names = [n for n, _ in ranker.named_parameters()]

    def scores(inst, resp, *weights):
        kept = dict(zip(names, weights, strict=True))
        out = reference.score(inst, resp, kept, heads=2, layers=1, scope="list", temperature=0.1, offsets=offsets)
        return out.scores, out.probs

    assert torch.autograd.gradcheck(scores, (inst.requires_grad_(), resp.requires_grad_(), *weights))


@pytest.mark.parametrize("scope", ["list", "pair"])
def test_gradients_stay_finite_beside_a_candidate_that_is_out(scope):
    ranker = ScoreCase("", (4,), 16, {"scope": scope}).build()
    inst, resp, _ = ScoreCase("", (4,), 16).inputs()
    resp[2] = float("nan")
    out = ranker.score(inst, resp)
    (-(out.probs[0] + 1e-9).log()).backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in ranker.parameters())
    assert ranker.projection.weight.grad.abs().sum() > 0


def test_gated_pooling_is_its_formula():
    x, gate = torch.randn(2, 5, 8, dtype=torch.float64), torch.randn(9, dtype=torch.float64)
    spans = torch.tensor([[1, 4], [0, 5]])
    got = reference.pool(x, spans, "gated", gate)
    for m, (start, stop) in enumerate(spans.tolist()):
        tokens = x[m, start:stop]
        g = torch.sigmoid(tokens @ gate[:-1] + gate[-1])
        torch.testing.assert_close(got[m], (g[:, None] * tokens).sum(0) / g.sum())


def test_calibration_is_a_sigmoid_and_zero_for_a_candidate_that_is_out():
    got = reference.calibrate(torch.tensor([0.5, float("-inf")]), -2.0, 1.0)
    torch.testing.assert_close(got, torch.tensor([0.5, 0.0]))


def test_dropout_is_active_in_training_only():
    case = ScoreCase("", (6,), 16)
    ranker, (inst, resp, _) = case.build(), case.inputs()
    assert torch.equal(ranker.score(inst, resp).scores, ranker.score(inst, resp).scores)
    ranker.train()
    assert not torch.equal(ranker.score(inst, resp).scores, ranker.score(inst, resp).scores)


def test_the_paper_configuration():
    config = RankerConfig.paper(4096)
    assert (config.layer, config.pooling, config.scope, config.proj_dim) == (0.25, "last", "list", 512)
    assert config.layer_indices(32) == (8,)
    assert sum(p.numel() for p in SafetyRanker(config).parameters()) < 5_300_000


@pytest.mark.parametrize("pooling", ["last", "mean", "gated"])
@pytest.mark.parametrize("packed", [False, True])
def test_pooling_has_gradients(pooling, packed):
    states = torch.randn(*((20, 5) if packed else (3, 8, 5)), dtype=torch.float64, requires_grad=True)
    spans = torch.tensor([[0, 8], [2, 3], [1, 7]])
    gate = torch.randn(6, dtype=torch.float64, requires_grad=True) if pooling == "gated" else None
    assert torch.autograd.gradcheck(lambda *x: reference.pool(x[0], spans, pooling, x[1]), (states, gate))


def test_autocast_changes_nothing():
    case = ScoreCase("", (5,), 16)
    ranker, (inst, resp, _) = case.build(), case.inputs()
    states, spans = torch.randn(2, 9, 16), torch.tensor([[0, 9], [1, 4]])
    want, pooled = ranker.score(inst, resp), reference.pool(states, spans)
    with torch.autocast("cpu", torch.bfloat16):
        got = ranker.score(inst, resp)
        assert torch.equal(reference.pool(states, spans), pooled)
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))
