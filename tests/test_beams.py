# SPDX-License-Identifier: Apache-2.0
"""Beams: the sequences of generate's own search, scored by the states of each sequence run alone."""

from __future__ import annotations

import pytest
import torch
from transformers import LogitsProcessorList, StoppingCriteria, StoppingCriteriaList

import srr_fast
from srr_fast import reference
from srr_fast.generation import BestOfN

from .best_of_n import EOS, IDS, MASK, PADDED, N, alone, check, make_ranker, run
from .test_decoding import Explode, hooks
from .tiny_models import ARCHITECTURES, fresh, tiny, tokenizer

BEAMS = 6
P = IDS.shape[1]


def plainly(model, **options) -> list[list[int]]:
    """What generate's own beams find for the same seed."""
    torch.manual_seed(0)
    options = {"max_new_tokens": 8, "top_k": 0, "eos_token_id": EOS, "pad_token_id": 0} | options
    options = {"num_beams": BEAMS, "num_return_sequences": N} | options
    return model.generate(IDS, attention_mask=MASK, **options)[:, P:].tolist()


def assert_found_by_generate(model, results, **options):
    plain = plainly(model, **options)
    candidates = [c for result in results for c in result.candidates]
    assert len(plain) == len(candidates)
    for sequence, candidate in zip(plain, candidates, strict=True):
        assert sequence[: candidate.n_tokens] == candidate.token_ids
        assert len(set(sequence[candidate.n_tokens :])) <= 1  # padding


@pytest.mark.parametrize("do_sample", [False, True], ids=["search", "sampling"])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_scores_and_samples_of_every_architecture(name, do_sample):
    bon, model, ranker, results = run(name, num_beams=BEAMS, do_sample=do_sample)
    check(bon, model, ranker, results)
    assert_found_by_generate(model, results, do_sample=do_sample)
    if name == "llama":  # the others' beams may all end at one length
        assert len({c.n_tokens for r in results for c in r.candidates}) > 2


@pytest.mark.parametrize(
    "options",
    [
        dict(use_cache=False),
        dict(cache_implementation="static"),
        dict(prefill_chunk_size=2),
        dict(pad_token_id=EOS[3]),
        dict(pad_token_id=None),
        dict(pad_token_id=33, temperature=2.0),
        dict(eos_token_id=None, pad_token_id=None),
        dict(eos_token_id=[7]),
        dict(max_new_tokens=1),
        dict(early_stopping=True),
        dict(early_stopping="never", length_penalty=0.0),
        dict(length_penalty=3.0),
        dict(repetition_penalty=1.7, no_repeat_ngram_size=2),
        dict(top_k=5, top_p=0.9),
        dict(num_beams=N),
    ],
    ids=str,
)
@pytest.mark.parametrize("do_sample", [False, True], ids=["search", "sampling"])
def test_options_of_generate(options, do_sample):
    options = {"num_beams": BEAMS, "do_sample": do_sample} | options
    bon, model, ranker, results = run("gemma2", **options)
    check(bon, model, ranker, results, eos=options.get("eos_token_id", EOS) or [])
    assert_found_by_generate(model, results, **options)


@pytest.mark.parametrize("options", [dict(pooling=p) for p in reference.POOLINGS] + [dict(layer=(3, 0.25))], ids=str)
def test_rankers(options):
    check(*run(ranker=make_ranker(**options), num_beams=BEAMS))


def test_one_candidate():
    check(*run(n=1, num_beams=3, do_sample=False), n=1)


def test_stop_strings_and_other_criteria_end_sequences():
    class Ends(StoppingCriteria):
        def __call__(self, input_ids, scores, **kwargs):
            return input_ids[:, -1] < 40

    model, ranker, words = tiny("llama"), make_ranker(), tokenizer()
    bon = BestOfN(model, words, ranker)
    stops = dict(stop_strings=[f"w{i}" for i in range(20, 40)])
    for options in (stops, dict(stopping_criteria=StoppingCriteriaList([Ends()]))):
        torch.manual_seed(0)
        results = bon.generate(PADDED, N, num_beams=BEAMS, max_new_tokens=8, top_k=0, **options)
        ended = [c for r in results for c in r.candidates if c.n_tokens < 8]
        assert ended and all(c.token_ids[-1] < 40 for c in ended)
        check(bon, model, ranker, results, eos=[])


def test_bfloat16_models():
    model, ranker = tiny("llama", torch.bfloat16), make_ranker()
    torch.manual_seed(0)
    result = BestOfN(model, None, ranker).generate({"input_ids": IDS[:1]}, N, num_beams=BEAMS, max_new_tokens=8)[0]
    pooled = [alone(model, ranker, IDS[0].tolist(), c.token_ids, []) for c in result.candidates]
    with torch.no_grad():
        want = ranker.score(pooled[0][:1].float(), torch.stack([p[1] for p in pooled]).float()).scores
    torch.testing.assert_close(torch.tensor([c.score for c in result.candidates]), want, atol=0.05, rtol=0)


@pytest.mark.parametrize("options", [{}, dict(do_sample=False), dict(eos_token_id=None, pad_token_id=None)], ids=str)
def test_inside_generate(options):
    model, ranker = tiny("llama"), make_ranker()
    options = dict(num_beams=BEAMS, max_new_tokens=8, top_k=0, eos_token_id=EOS, pad_token_id=0) | options
    options = dict(do_sample=True) | options
    results = run(ranker=ranker, **options)[-1]
    given = dict(PADDED, num_return_sequences=N, custom_generate=srr_fast.best_of_n(ranker), **options)
    torch.manual_seed(0)
    out = model.generate(**given, return_dict_in_generate=True)
    torch.manual_seed(0)
    assert torch.equal(model.generate(**given), out.sequences)
    assert out.candidate_sequences.min() >= 0
    for b, result in enumerate(results):
        assert out.candidate_scores[b].tolist() == [c.score for c in result.candidates]
        lengths = out.candidate_lengths[b].tolist()
        for row, length, candidate in zip(out.candidate_sequences[b].tolist(), lengths, result.candidates, strict=True):
            assert row[P : P + length] == candidate.token_ids
        assert out.best[b] == result.index
        assert out.sequences[b, P : P + len(result.token_ids)].tolist() == result.token_ids


def test_what_it_cost_is_told():
    timings = run(num_beams=BEAMS)[-1][0].timings
    assert 0 < timings.capture_s < timings.generate_s and timings.rank_s > 0


def test_an_exception_leaves_the_model_clean():
    with pytest.raises(KeyboardInterrupt):
        run(num_beams=BEAMS, logits_processor=LogitsProcessorList([Explode()]))
    assert hooks(tiny("llama")) == 0
    check(*run(num_beams=BEAMS))


def test_what_cannot_be_served():
    bon = BestOfN(tiny("llama"), None, make_ranker())
    with pytest.raises(ValueError, match="BestOfN: n=5 candidates want num_beams of at least 5, got 4"):
        bon.generate(PADDED, 5, num_beams=4)
    with pytest.raises(ValueError, match="BestOfN: prune cannot be served with num_beams=6"):
        bon.generate(PADDED, 5, num_beams=6, prune=[(3, 0.5)])
    shifted = torch.arange(P).repeat(3, 1) + 5
    with pytest.raises(ValueError, match="BestOfN: position_ids cannot be served with beams"):
        bon.generate({"input_ids": IDS}, 2, num_beams=2, max_new_tokens=3, position_ids=shifted)
    loop = srr_fast.best_of_n(make_ranker())
    with pytest.raises(ValueError, match="best_of_n: token_type_ids cannot be served with beams"):
        fresh("gpt2").generate(
            **PADDED, token_type_ids=IDS, num_beams=3, num_return_sequences=2, custom_generate=loop, max_new_tokens=3
        )
