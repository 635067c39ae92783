# SPDX-License-Identifier: Apache-2.0
"""Given responses rank as they would have while they were generated, and as the whole model's states say."""

from __future__ import annotations

import inspect
import io
import sys
import time
import warnings
from dataclasses import replace

import pytest
import torch
from transformers import T5Config, T5ForConditionalGeneration

from srr_fast import fingerprint, forced, minichat, prompts, reference
from srr_fast.config import RankerConfig
from srr_fast.decoder import decoder_layers
from srr_fast.extract import extract
from srr_fast.forced import TruncatedForward, pool_given
from srr_fast.generation import BestOfN
from srr_fast.lists import LabelledList, LabelledResponse
from srr_fast.ranker import Calibration, SafetyRanker
from srr_fast.text import TextRanker

from .at_once import at_once
from .best_of_n import IDS, MASK, PADDED, alone, make_ranker
from .plain_states import BACKBONES
from .tiny_models import ARCHITECTURES, CHAT_TEMPLATE, WIDTH, fresh, tiny, tokenizer

PROMPTS = [row[mask == 1].tolist() for row, mask in zip(IDS, MASK, strict=True)]
# Two candidates of one length, an empty one, one longer than a sliding window.
RESPONSES = [[40, 41, 42], [43], [], [44, 45, 46, 47, 48, 49, 50], [51, 52, 53]]


def expected(model, ranker, prompt, responses):
    """Scores from one forward of each whole sequence."""
    pooled = [alone(model, ranker, prompt, [*r, 0], eos=[]) for r in responses]
    with torch.no_grad():
        return ranker.score(pooled[0][0][None], torch.stack([p[1] for p in pooled])).scores


def scores_of(ranked):
    return torch.tensor([r.score for r in sorted(ranked, key=lambda r: r.index)])


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_equals_ranking_during_generation(name):
    model, ranker = tiny(name), make_ranker()
    torch.manual_seed(0)
    results = BestOfN(model, None, ranker).generate(
        PADDED, 5, max_new_tokens=8, top_k=0, eos_token_id=list(range(20)), pad_token_id=0
    )
    given = [[c.token_ids[:-1] for c in result.candidates] for result in results]
    assert len({len(ids) for lists in given for ids in lists}) > 2
    for ranked, result in zip(ranker.rank_many(model, None, PROMPTS, given), results, strict=True):
        torch.testing.assert_close(
            scores_of(ranked), torch.tensor([c.score for c in result.candidates]), atol=1e-5, rtol=0
        )
        assert result.index == (ranked[0].index if result.abstained is None else None)


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("batch_tokens", [1, 30, 16384])
def test_equals_a_plain_forward(name, batch_tokens):
    model, ranker = tiny(name), make_ranker()
    lists = [RESPONSES, [RESPONSES[0]], RESPONSES[1:3]]
    many = ranker.rank_many(model, None, PROMPTS, lists, batch_tokens=batch_tokens)
    for prompt, responses, ranked in zip(PROMPTS, lists, many, strict=True):
        torch.testing.assert_close(scores_of(ranked), expected(model, ranker, prompt, responses), atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["llama", "mistral", "gpt_neo", "opt", "bloom", "mamba"])
def test_prompts_of_one_length_are_read_together(name, monkeypatch):
    model, ranker = tiny(name), make_ranker()
    prompts = [[5, 6, 7], [8, 9, 10, 11, 12, 13], [14, 15, 16], [17, 18, 19]]
    lists = [RESPONSES[:2], RESPONSES[:4], RESPONSES[3:], RESPONSES[:2]]
    if name != "mamba":
        monkeypatch.setattr(forced, "FORWARD_TOKENS", 9)
    seen, forward = [], TruncatedForward.__call__
    monkeypatch.setattr(
        TruncatedForward, "__call__", lambda self, ids, **inputs: seen.append(ids.shape) or forward(self, ids, **inputs)
    )
    many = ranker.rank_many(model, None, prompts, lists)
    for prompt, responses, ranked in zip(prompts, lists, many, strict=True):
        torch.testing.assert_close(scores_of(ranked), expected(model, ranker, prompt, responses), atol=1e-5, rtol=0)
    shared = [(3, 3), (1, 7), (5, 3), (1, 6), (3, 7)]  # of each length prompts, then responses
    assert [tuple(shape) for shape in seen] == (shared if name != "mamba" else [(9, 13)])
    seen.clear()
    ranker.rank_many(model, None, prompts, lists, batch_tokens=6)
    assert name == "mamba" or [tuple(shape) for shape in seen][:1] == [(2, 3)]


@pytest.mark.parametrize("options", [dict(pooling=p) for p in reference.POOLINGS] + [dict(layer=(3, 0.25))], ids=str)
@pytest.mark.parametrize("scope", reference.SCOPES)
def test_rankers(options, scope):
    model, ranker = tiny("llama"), make_ranker(scope=scope, **options)
    ranked = ranker.rank(model, None, PROMPTS[0], RESPONSES)
    torch.testing.assert_close(scores_of(ranked), expected(model, ranker, PROMPTS[0], RESPONSES), atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["llama", "gemma3_text", "gpt2"])
def test_bfloat16_models(name):
    model, ranker = tiny(name, torch.bfloat16), make_ranker()
    ranked = ranker.rank(model, None, PROMPTS[0], RESPONSES)
    torch.testing.assert_close(scores_of(ranked), expected(model, ranker, PROMPTS[0], RESPONSES), atol=0.05, rtol=0)


def test_the_answer():
    model, ranker, words = tiny("llama"), make_ranker(calibration=Calibration(3.0, 0.5)), tokenizer(CHAT_TEMPLATE)
    texts = ["w40 w41 w42", "w43", "", "w44 w45 w46", "w40 w41 w42"]
    ranked = ranker.rank(model, words, "w30 w31", texts)
    assert sorted(r.index for r in ranked) == list(range(5)) and all(r.text == texts[r.index] for r in ranked)
    keys = [(-r.score, r.index) for r in ranked]
    assert keys == sorted(keys)
    assert (ranked[-1].index, ranked[-1].score, ranked[-1].prob, ranked[-1].safety) == (2, float("-inf"), 0.0, 0.0)
    assert sum(r.prob for r in ranked) == pytest.approx(1)
    assert ranked[0].safety == pytest.approx(torch.sigmoid(torch.tensor(3 * ranked[0].score + 0.5)).item())
    assert ranker.rank(model, words, "w30 w31", texts, top_k=2) == ranked[:2]
    # A message, the ids of its template and a conversation are the same prompt; ids decode to the text.
    ids = [words(text)["input_ids"] for text in texts]
    assert ranker.rank(model, words, [{"role": "user", "content": "w30 w31"}], texts) == ranked
    assert ranker.rank(model, words, [3, 30, 31, 4], ids) == ranked
    assert [replace(r, text=None) for r in ranked] == ranker.rank(model, None, [3, 30, 31, 4], ids)
    assert make_ranker().rank(model, words, "w30", ["w40"])[0].safety is None


@pytest.mark.parametrize("scope", reference.SCOPES)
def test_nothing_to_rank(scope):
    model, ranker = tiny("llama"), make_ranker(scope=scope)
    assert ranker.rank(model, None, [30], []) == []
    assert ranker.rank_many(model, None, [], []) == []
    assert [r.score for r in ranker.rank(model, None, [30], [[], []])] == [float("-inf")] * 2
    many = ranker.rank_many(model, None, [[30], [31], [32]], [[], [[40], [41]], [[]]])
    assert [len(ranked) for ranked in many] == [0, 2, 1]
    torch.testing.assert_close(scores_of(many[1]), expected(model, ranker, [31], [[40], [41]]), atol=1e-5, rtol=0)


def test_a_response_ends_before_eos():
    model, ranker = fresh("llama"), make_ranker()
    plain = ranker.rank(model, None, PROMPTS[0], [[40, 41], [42]])
    model.generation_config.eos_token_id = [50, 51]
    assert ranker.rank(model, None, PROMPTS[0], [[40, 41, 51, 43], [42, 50]]) == plain
    assert ranker.rank(model, None, PROMPTS[0], [[51]])[0].score == float("-inf")


def test_a_text_that_spells_a_special_token_is_read_to_its_end():
    own = minichat.load_model()[1]
    spelled, plain = prompts.encode_responses("test", own, [f"the {own.eos_token} bomb", "the bomb"])
    assert own.eos_token_id not in spelled and spelled[0] == plain[0] and spelled[-1] == plain[-1]
    assert own.eos_token_id in own(f"the {own.eos_token}")["input_ids"]  # the tokenizer is as it was
    model, ranker = fresh("llama"), make_ranker()
    model.generation_config.eos_token_id = 1
    scores = scores_of(ranker.rank(model, tokenizer(), "w8", ["w5", "w5 [EOS] w9"]))
    assert scores[0] != scores[1]


@pytest.mark.parametrize("name", ["llama", "gemma2", "mixtral", "bloom"])
def test_upper_layers_and_head_are_not_called_and_the_prompt_is_read_once(name, monkeypatch):
    monkeypatch.setattr(forced, "FORWARD_TOKENS", 7 * 3)  # what a prompt of 7 read once saves over 4 responses
    model, ranker = fresh(name), make_ranker(layer=(1, 2))
    blocks, seen = decoder_layers(model), []
    blocks[0].register_forward_hook(
        lambda m, a, k, out: seen.append(out if isinstance(out, torch.Tensor) else out[0]), with_kwargs=True
    )
    for module in (*blocks[2:], model.get_output_embeddings()):
        module.register_forward_pre_hook(lambda *_: pytest.fail("called"))
    hooks = [len(block._forward_hooks) for block in blocks]
    ranker.rank(model, None, PROMPTS[0], RESPONSES)
    shapes = [tuple(states.shape[:2]) for states in seen]
    assert shapes == [(1, 7), (4, 7)]
    assert [len(block._forward_hooks) for block in blocks] == hooks
    seen.clear()
    monkeypatch.setattr(forced, "FORWARD_TOKENS", 7 * 3 + 1)  # another forward is worth more
    ranker.rank(model, None, PROMPTS[0], RESPONSES)
    assert [tuple(states.shape[:2]) for states in seen] == [(4, 14)]


def test_many_short_responses_are_not_padded_to_a_long_one():
    model, seen = fresh("llama"), []
    model.model.layers[0].register_forward_hook(lambda m, a, out: seen.append(tuple(out.shape[:2])))
    responses = [*([[40]] * 50), [41] * 20, *([[42, 43]] * 50), [44] * 18]
    ranked = make_ranker().rank(model, None, PROMPTS[0], responses)
    assert seen == [(1, 7), (2, 20), (100, 2)]
    torch.testing.assert_close(
        scores_of(ranked), expected(model, make_ranker(), PROMPTS[0], responses), atol=1e-5, rtol=0
    )


def test_batches_hold_no_more_than_the_bound(monkeypatch):
    monkeypatch.setattr(forced, "FORWARD_TOKENS", 20)
    model, seen = fresh("llama"), []
    model.model.layers[0].register_forward_hook(lambda m, a, out: seen.append(tuple(out.shape[:2])))
    responses = [[40] * length for length in (2, 9, 1, 8, 3)]
    make_ranker().rank(model, None, PROMPTS[0], responses, batch_tokens=40)
    assert seen == [(1, 7), (2, 9), (3, 3)]  # (7 + 9) * 2 <= 40, (7 + 3) * 3 <= 40
    seen.clear()
    make_ranker().rank_many(model, None, [[30], [31] * 3], [[[40] * 9], [[41]]], batch_tokens=12)
    assert seen == [(1, 10), (1, 4)]


def test_threads_and_other_forwards_of_the_same_model():
    model = tiny("llama")
    reader = TextRanker(model, None, make_ranker())
    want = [reader.rank(prompt, RESPONSES) for prompt in PROMPTS]
    whole = model(IDS).logits

    def work(i):
        return [reader.rank(PROMPTS[i], RESPONSES) if i < 3 else model(IDS).logits for _ in range(8)]

    *ranked, logits = at_once(work, range(4))
    assert ranked == [[one] * 8 for one in want]
    assert all(torch.equal(again, whole) for again in logits)


def test_an_error_in_the_model_leaves_no_hooks():
    model, ranker = fresh("llama"), make_ranker()
    handle = model.model.layers[0].register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        ranker.rank(model, None, [30], RESPONSES)
    handle.remove()
    assert not any(block._forward_hooks for block in model.model.layers)
    ranker.rank(model, None, [30], RESPONSES)


def test_layers_that_are_not_called():
    other = tiny("llama", seed=1)
    with TruncatedForward(tiny("llama"), other.model.layers[:1]) as forward, pytest.raises(RuntimeError, match="call"):
        forward(IDS)


def test_pooled_states_without_a_ranker():
    model = tiny("llama")
    inst, resp = pool_given(model, model.model.layers[1:2], PROMPTS, [RESPONSES, [], [[]]], batch_tokens=100)
    assert (inst.shape, resp.shape, inst.dtype) == ((3, WIDTH), (6, WIDTH), torch.float32)
    assert inst.isnan().all(1).tolist() == [False, True, True]
    assert resp.isnan().all(1).tolist() == [False, False, True, False, False, True]


@pytest.mark.parametrize(("seconds", "shown"), [(0.0, False), (0.6, True)])
def test_progress_is_shown_on_a_terminal_past_a_second(monkeypatch, seconds, shown):
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setattr(sys, "stderr", terminal)
    model = fresh("llama")
    model.model.layers[0].register_forward_pre_hook(lambda *_: time.sleep(seconds))
    make_ranker().rank(model, None, [30], RESPONSES, batch_tokens=8)
    assert ("srr_fast: reading" in terminal.getvalue()) == shown


def test_float64_models():
    model, ranker = fresh("llama", torch.float64), make_ranker()
    ranked = ranker.rank(model, None, PROMPTS[0], RESPONSES)
    torch.testing.assert_close(scores_of(ranked), expected(model, ranker, PROMPTS[0], RESPONSES), atol=1e-5, rtol=0)


def test_one_default():
    defaults = {
        inspect.signature(method).parameters["batch_tokens"].default
        for method in (SafetyRanker.rank, SafetyRanker.rank_many, TextRanker.rank, TextRanker.rank_many)
    }
    assert len(defaults) == 1


@pytest.mark.parametrize(
    ("instruction", "responses", "options", "error", "message"),
    [
        ([30], "text", {}, TypeError, "responses must be a list"),
        ([30], ["text"], {}, ValueError, "wants a tokenizer"),
        ("text", [[40]], {}, ValueError, "wants a tokenizer"),
        ([], [[40]], {}, ValueError, "instruction 0 has no tokens"),
        (3, [[40]], {}, TypeError, "instruction 0 must be a string, messages or token ids, got int"),
        ([30.0], [[40]], {}, TypeError, "got list of float"),
        ([30], [[40], [4.0]], {}, TypeError, "response 1 to instruction 0"),
        ([30], [[40], None], {}, TypeError, "response 1 to instruction 0"),
        ([30], [[64]], {}, ValueError, r"ids in 0 \.\. 63, got 64"),
        ([30], [[-1]], {}, ValueError, r"ids in 0 \.\. 63, got -1"),
        ([30], [[40] * 128], {}, ValueError, r"1 \+ 128 tokens, LlamaForCausalLM takes 128"),
        ([30], [[40]], dict(top_k=0), ValueError, "top_k"),
        ([30], [[40]], dict(top_k=1.0), TypeError, "top_k"),
        ([30], [[40]], dict(batch_tokens=0), ValueError, "batch_tokens"),
    ],
)
def test_bad_arguments(instruction, responses, options, error, message):
    with pytest.raises(error, match=f"rank: .*{message}"):
        make_ranker().rank(tiny("llama"), None, instruction, responses, **options)


@pytest.mark.parametrize("name", BACKBONES)
def test_half_a_character_is_no_text(name):
    model, words = BACKBONES[name]()
    for instruction, responses in (("w30 \udfff", ["w40"]), ("w30", ["w40", "w41 \udfff"])):
        with pytest.raises(ValueError, match=r"rank: text must be Unicode, got the lone surrogate '\\udfff' in '.*w"):
            make_ranker().rank(model, words, instruction, responses)
        row = LabelledList(instruction, tuple(map(LabelledResponse, responses)), "1", "a")
        with pytest.raises(ValueError, match="extract: text must be Unicode"):
            extract(model, words, [row], layers=[1], poolings=["mean"])


def test_lists_of_other_lengths():
    with pytest.raises(ValueError, match="one length, got 1 and 2"):
        make_ranker().rank_many(tiny("llama"), None, [[30]], [[[40]], [[41]]])
    for instructions in ("text", None, 3):
        with pytest.raises(TypeError, match="rank: instructions must be a list, got one"):
            make_ranker().rank_many(tiny("llama"), None, instructions, [[[40]], [[41]]])


def test_models_that_do_not_fit():
    rank = make_ranker().rank
    with pytest.raises(TypeError, match="generate"):
        rank(torch.nn.Linear(1, 1), None, [30], [[40]])
    with pytest.raises(TypeError, match="rank: tokenizer must be a transformers tokenizer or None, got int"):
        rank(tiny("llama"), 5, [30], [[40]])
    for ranker in (None, make_ranker().prepare()):
        with pytest.raises(TypeError, match=f"rank: ranker must be a SafetyRanker, got {type(ranker).__name__}"):
            TextRanker(tiny("llama"), None, ranker)
    t5 = T5ForConditionalGeneration(T5Config(vocab_size=8, d_model=16, d_kv=8, d_ff=8, num_layers=2, num_heads=2))
    with pytest.raises(ValueError, match="encoder-decoder"):
        rank(t5, None, [30], [[40]])
    with pytest.raises(ValueError, match="training mode"):
        rank(fresh("llama").train(), None, [30], [[40]])
    with pytest.raises(ValueError, match=r"hidden_size=8.*hidden_size=16"):
        SafetyRanker(RankerConfig(8, proj_dim=8)).rank(tiny("llama"), None, [30], [[40]])


def test_another_model_than_the_rankers_warns():
    ranker = make_ranker()
    ranker.model_fingerprint = fingerprint.of_model(tiny("llama"))
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        ranker.rank(tiny("llama"), None, [30], [[40]])
    with pytest.warns(UserWarning, match="rank: .*fingerprint"):
        ranker.rank(tiny("llama", seed=1), None, [30], [[40]])
