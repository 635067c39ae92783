# SPDX-License-Identifier: Apache-2.0
"""Rankers on encoders: the states of a plain forward, the scores of ranking, what texts are refused."""

from __future__ import annotations

import warnings

import pytest
import torch

from srr_fast.cli.command import main
from srr_fast.extract import extract
from srr_fast.generation import BestOfN
from srr_fast.ranker import Calibration
from srr_fast.text import TextRanker

from .at_once import at_once
from .best_of_n import make_ranker
from .plain_states import BACKBONES, POOLINGS, ROWS, encoder_states, many
from .tiny_encoders import MOST, encoder, pair_tokenizer
from .tiny_models import LAYERS


def scores_of(ranked):
    return torch.tensor([r.score for r in sorted(ranked, key=lambda r: r.index)])


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("name", BACKBONES)
def test_scores_are_those_of_ranking(name, pooling):
    model, words = BACKBONES[name]()
    ranker = make_ranker(layer=2, pooling=pooling)
    got = extract(model, words, ROWS, layers=[1, 2], poolings=[pooling])[2, pooling]
    with torch.no_grad():
        scores = ranker.score(got.inst, got.resp, got.offsets).scores
    ranked = ranker.rank_many(
        model, words, [r.instruction for r in ROWS], [[x.text for x in r.responses] for r in ROWS], batch_tokens=30
    )
    torch.testing.assert_close(torch.cat([scores_of(one) for one in ranked]), scores, atol=1e-5, rtol=0)


@pytest.mark.parametrize("options", [dict(layer=(3, 1)), dict(pooling="gated"), dict(layer=LAYERS)], ids=str)
def test_rankers_on_encoders(options):
    model, words, ranker = encoder("bert"), pair_tokenizer("bert"), make_ranker(**options)
    layers = ranker.config.layer_indices(LAYERS, last=LAYERS)
    row = ROWS[1]
    inst, *resp = (torch.cat([states[k] for k in layers], -1) for states in encoder_states(model, words, row))

    def pool(x):
        weights = torch.ones(len(x), 1)
        if (gate := ranker.gate_vector()) is not None:
            weights = torch.sigmoid(x @ gate[:-1] + gate[-1])[:, None]
        return (weights * x).sum(0) / weights.sum()

    with torch.no_grad():
        want = ranker.score(pool(inst)[None], torch.stack([pool(x) for x in resp])).scores
    ranked = ranker.rank(model, words, row.instruction, [r.text for r in row.responses])
    torch.testing.assert_close(scores_of(ranked), want, atol=1e-5, rtol=0)


def test_an_encoder_ranks_texts_alone():
    model, words, rank = encoder("bert"), pair_tokenizer("bert"), make_ranker(calibration=Calibration(3.0, 0.5)).rank
    ranked = rank(model, words, "w30", ["w40", "", "w41 w42"])
    assert (ranked[-1].index, ranked[-1].score, ranked[-1].safety) == (1, float("-inf"), 0.0)
    assert rank(model, words, "w30", []) == []
    with pytest.raises(TypeError, match="rank: instruction 0 must be a string for an encoder, got list"):
        rank(model, words, [{"role": "user", "content": "w30"}], ["w40"])
    with pytest.raises(TypeError, match="rank: response 1 to instruction 0 must be a string for an encoder, got list"):
        rank(model, words, "w30", ["w40", [40]])
    with pytest.raises(ValueError, match="rank: text wants a tokenizer"):
        rank(model, None, "w30", ["w40"])
    with pytest.raises(ValueError, match="rank: instruction '' has no tokens"):
        rank(model, words, "", ["w40"])
    with pytest.warns(UserWarning, match=rf"rank: 2 of 3 sequences were longer than the {MOST} tokens BertModel"):
        rank(model, words, "w30", ["w40 " * 40, "w41 " * 40])
    with pytest.raises(ValueError, match=r"layer must be in 1 \.\. 4"):
        make_ranker(layer=5).rank(model, words, "w30", ["w40"])
    with pytest.raises(TypeError, match="BestOfN: model must be a transformers model with generate, got BertModel"):
        BestOfN(model, words, make_ranker())


def test_threads_share_an_encoder():
    reader = TextRanker(encoder("bert"), pair_tokenizer("bert"), make_ranker())
    rows = [row for row in many(8) if row.responses]
    ask = [(row.instruction, [r.text for r in row.responses] + ["w40 " * 50]) for row in rows]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        want = [reader.rank(*one) for one in ask]
        found = at_once(lambda _: [reader.rank(*one) for one in ask * 4], range(4))
    assert found == [want * 4] * 4


def test_the_rank_command_takes_encoders(tmp_path, capsys):
    model, words = BACKBONES["bert"]()
    model.save_pretrained(tmp_path / "bert")
    words.save_pretrained(tmp_path / "bert")
    make_ranker().save_pretrained(tmp_path / "ranker")
    (tmp_path / "answers.txt").write_text("w40\nw41 w42\n")
    options = ["--model", tmp_path / "bert", "--ranker", tmp_path / "ranker", "--instruction", "w30"]
    assert main(["rank", *map(str, options), "--candidates", str(tmp_path / "answers.txt"), "--format", "jsonl"]) == 0
    want = [r.index for r in make_ranker().rank(model, words, "w30", ["w40", "w41 w42"])]
    assert [int(line.split('"index": ')[1][0]) for line in capsys.readouterr().out.splitlines()] == want
