# SPDX-License-Identifier: Apache-2.0
"""Best-of-N on continuous batching: the scores of the answers run alone; a clear refusal elsewhere."""

from __future__ import annotations

import pytest
import torch
import transformers
from transformers import ContinuousBatchingConfig, GenerationConfig

from srr_fast import continuous
from srr_fast.continuous import ContinuousBestOfN
from srr_fast.ranker import Calibration

from .best_of_n import EOS, PADDED, N, check, make_ranker
from .tiny_models import fresh, tiny, tokenizer

tested = pytest.mark.skipif(
    not continuous.tried(transformers.__version__),
    reason=f"transformers {transformers.__version__} is not the version continuous batching was tried with",
)
OPTIONS = dict(max_new_tokens=8, top_k=0, eos_token_id=EOS)


def batching(**options):
    return ContinuousBatchingConfig(**dict(num_blocks=64, max_batch_tokens=256, seed=0) | options)


@tested
@pytest.mark.parametrize("name", ["llama", "qwen3", "gemma2"])
def test_scores_are_those_of_the_answers_alone(name):
    model, ranker = fresh(name), make_ranker()
    bon = ContinuousBestOfN(model, None, ranker, batching=batching())
    results = bon.generate(PADDED, N, **OPTIONS)
    check(bon, model, ranker, results)
    assert len({c.n_tokens for r in results for c in r.candidates}) > 2
    assert all(c.n_tokens == 8 or c.token_ids[-1] in EOS for r in results for c in r.candidates)
    timings = results[0].timings
    assert 0 < timings.capture_s < timings.generate_s


@tested
def test_texts_safety_and_greedy():
    model, ranker = fresh("llama"), make_ranker(calibration=Calibration(3.0, 0.5))
    bon = ContinuousBestOfN(model, tokenizer(), ranker, batching=batching())
    results = bon.generate(["w30 w31", "w32"], 1, max_new_tokens=5, do_sample=False, min_safety=1.0, fallback="no")
    assert [r.text for r in results] == ["no", "no"] and all(r.abstained for r in results)
    for result, ids in zip(results, ([[30, 31]], [[32]]), strict=True):
        plain = model.generate(torch.tensor(ids), max_new_tokens=5, do_sample=False)[0, len(ids[0]) :]
        assert result.candidates[0].token_ids == plain.tolist()
    assert bon.generate([]) == []


@tested
@pytest.mark.parametrize(
    "options",
    [
        dict(num_beams=6),
        dict(prune=[(2, 0.5)]),
        dict(repetition_penalty=1.2),
        dict(stop_strings=["w30"]),
        dict(generation_config=GenerationConfig(max_new_tokens=3)),
        dict(streamer=object()),
        dict(max_new_tokens=None),
        dict(do_sample=False),
    ],
    ids=lambda options: next(iter(options)),
)
def test_what_cannot_be_served_is_refused_by_name(options):
    bon = ContinuousBestOfN(tiny("llama"), None, make_ranker(), batching=batching())
    with pytest.raises(ValueError, match=next(iter(options))):
        bon.generate(PADDED, N, **OPTIONS | options)


@tested
def test_answers_that_do_not_come_are_an_error():
    bon = ContinuousBestOfN(fresh("llama"), None, make_ranker(), batching=batching())
    bon.model.model.layers[1].register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(RuntimeError, match=r"of 15 answers came: .*division by zero"):
        bon.generate(PADDED, N, **OPTIONS)


@pytest.mark.parametrize("version", ["5.22.2", "5.25.0"])
def test_another_version_is_refused(version, monkeypatch):
    monkeypatch.setattr(continuous.transformers, "__version__", version)
    with pytest.raises(ImportError, match=rf"wants transformers 5\.23 or 5\.24, got {version}"):
        ContinuousBestOfN(tiny("llama"), None, make_ranker())
