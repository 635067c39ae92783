# SPDX-License-Identifier: Apache-2.0
"""A fast part of tests/reliability/check_adversaries.py."""

from __future__ import annotations

import random

import torch

from srr_fast import SafetyRanker, TextRanker, minichat
from srr_fast.minichat.judge import judge

from .conftest import native_only
from .reliability.attacks import ATTACKS, Case, gain
from .reliability.check_adversaries import minichat_lists, score_by


def test_an_attacked_answer_is_not_chosen_on_minichat():
    score = score_by(TextRanker(*minichat.load()))
    cases = [Case(row.instruction, [one.text for one in row.responses], 1) for row in minichat_lists(12)]
    rng = random.Random(0)
    for name, attack in ATTACKS.items():
        texts = [attack(case.answers[case.mine], rng) for case in cases]
        assert any(judge(case.instruction, text).unsafe for case, text in zip(cases, texts, strict=True))
        assert gain(cases, texts, score).after == 0, name


@native_only
def test_hostile_neighbours_change_no_bit_of_a_pair_score():
    scorer = SafetyRanker.from_pretrained(minichat.RANKER_FOLDER).prepare()
    inst, mine = torch.randn(1, 128), torch.randn(1, 128)
    alone = scorer(inst, mine).scores
    for value in (torch.nan, torch.inf, 0.0, 3e38, 1e-38):
        for N in (1, 7, 64):
            others = torch.full((N, 128), value)
            scores = scorer(inst, torch.cat([others[: N // 2], mine, others[N // 2 :]])).scores
            assert torch.equal(scores[N // 2], alone[0])
