# SPDX-License-Identifier: Apache-2.0
"""Pruning drops the worse candidates by the states so far, and changes nothing about the others."""

from __future__ import annotations

import math

import pytest
import torch

from srr_fast import reference
from srr_fast.generation import BestOfN

from .best_of_n import IDS, MASK, PADDED, alone, make_ranker, run
from .tiny_models import tiny

N = 8
LENGTH_12 = dict(max_new_tokens=None, max_length=12)  # of prompts of 7


def prompt_of(row: int) -> list[int]:
    return IDS[row][MASK[row] == 1].tolist()


def pair_score(model, ranker, prompt: list[int], response: list[int]) -> float:
    inst, resp = alone(model, ranker, prompt, response, eos=[])
    with torch.no_grad():
        return float(ranker.score(inst[None], resp[None]).scores)


@pytest.mark.parametrize("options", [dict(eos_token_id=[3]), {}, dict(use_cache=False)], ids=str)
@pytest.mark.parametrize("scope", reference.SCOPES)
def test_the_better_share_goes_on(scope, options):
    ranker = make_ranker(scope=scope)
    schedule = [(3, 0.5), (6, 0.4)]
    options = {"eos_token_id": list(range(8))} | options
    all_dropped = set()
    _, model, _, free = run(ranker=ranker, n=N, max_new_tokens=10, **options)
    _, _, _, pruned = run(ranker=ranker, n=N, max_new_tokens=10, prune=schedule, **options)
    eos = options["eos_token_id"]
    for row, (before, after) in enumerate(zip(free, pruned, strict=True)):
        running, dropped = set(range(N)), {}
        for tokens, share in schedule:
            length = {i: before.candidates[i].n_tokens for i in running}
            ended = {i for i in running if length[i] <= tokens and before.candidates[i].token_ids[-1] in eos}
            running -= ended
            scores = {
                i: pair_score(model, ranker, prompt_of(row), before.candidates[i].token_ids[:tokens]) for i in running
            }
            best = sorted(running, key=lambda i: (-scores[i], i))[: math.ceil(share * len(running))]
            dropped |= dict.fromkeys(running - set(best), tokens)
            running = set(best)
        all_dropped |= set(dropped.values())
        assert {i for i in range(N) if after.candidates[i].pruned} == set(dropped)
        for i, (one, other) in enumerate(zip(before.candidates, after.candidates, strict=True)):
            assert other.token_ids == one.token_ids[: dropped.get(i, 99)]
        kept = [i for i in range(N) if i not in dropped]
        pooled = [alone(model, ranker, prompt_of(row), after.candidates[i].token_ids, eos) for i in kept]
        with torch.no_grad():
            want = ranker.score(pooled[0][:1], torch.stack([p[1] for p in pooled]))
        got = torch.tensor([after.candidates[i].score for i in kept])
        torch.testing.assert_close(got, want.scores, atol=2e-5, rtol=0)
        assert all(after.candidates[i].score == -math.inf and after.candidates[i].prob == 0 for i in dropped)
        assert after.index == kept[int(got.argmax())]
    assert all_dropped == {3, 6}


def test_pruning_of_one_candidate_and_after_the_end_does_nothing():
    for n, schedule, end in [(1, [(2, 0.1)], {}), (N, [(9, 0.5)], {}), (N, [(8, 0.5)], {}), (N, [(5, 0.5)], LENGTH_12)]:
        results = run(n=n, prune=schedule, eos_token_id=[3], **end)[-1]
        assert not any(c.pruned for r in results for c in r.candidates)
        assert any(c.n_tokens == (5 if end else 8) for r in results for c in r.candidates)


@pytest.mark.parametrize(
    ("prune", "error"),
    [
        (3, TypeError),
        ([3], TypeError),
        ([(3,)], TypeError),
        ([(3.0, 0.5)], TypeError),
        ([(3, "half")], TypeError),
        ([(True, 0.5)], TypeError),
        ([(1, 0.5)], ValueError),
        ([(4, 0.5), (4, 0.5)], ValueError),
        ([(4, 0)], ValueError),
        ([(4, 1.0)], ValueError),
        ([(4, math.nan)], ValueError),
    ],
    ids=str,
)
def test_schedules_that_make_no_sense(prune, error):
    with pytest.raises(error, match="prune"):
        BestOfN(tiny("llama"), None, make_ranker()).generate(PADDED, N, prune=prune)
