# SPDX-License-Identifier: Apache-2.0
"""BestOfN chooses what the ranker would choose from states computed the slow way, whatever generate is asked to do."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    BertConfig,
    DynamicCache,
    GenerationConfig,
    MaxLengthCriteria,
    T5Config,
    T5ForConditionalGeneration,
)

from srr_fast import best_of_n, fingerprint, minichat, reference
from srr_fast.config import RankerConfig
from srr_fast.decoder import decoder_layers
from srr_fast.generation import BestOfN
from srr_fast.padding import check_unpadded
from srr_fast.prompts import eos_ids
from srr_fast.ranker import Calibration, SafetyRanker

from .at_once import at_once
from .best_of_n import EOS, IDS, MASK, PADDED, N, check, make_ranker, run
from .tiny_models import ARCHITECTURES, CHAT_TEMPLATE, STATEFUL, WIDTH, fresh, tiny, tokenizer

READS_PADDING = {  # their recurrences run on through it
    "rwkv": dict(attention_hidden_size=WIDTH, intermediate_size=32, context_length=128),
    "recurrent_gemma": dict(num_attention_heads=2, intermediate_size=32, lru_width=WIDTH, attention_window_size=8),
}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_scores_and_samples_of_every_architecture(name, monkeypatch):
    expanded = []
    repeat = DynamicCache.batch_repeat_interleave
    monkeypatch.setattr(
        DynamicCache, "batch_repeat_interleave", lambda cache, n: (expanded.append(n), repeat(cache, n))
    )
    bon, model, ranker, results = run(name)
    check(bon, model, ranker, results)
    assert expanded == ([] if name in STATEFUL else [N])

    torch.manual_seed(0)
    plain = model.generate(
        IDS,
        attention_mask=MASK,
        do_sample=True,
        top_k=0,
        max_new_tokens=8,
        eos_token_id=EOS,
        pad_token_id=0,
        num_return_sequences=N,
    )
    for row, sequence in enumerate(plain[:, 7:].tolist()):
        tokens = results[row // N].candidates[row % N].token_ids
        assert sequence == tokens + [0] * (len(sequence) - len(tokens))


@pytest.mark.parametrize(
    "options",
    [
        dict(use_cache=False),
        dict(cache_implementation="static"),
        dict(cache_implementation="dynamic"),
        dict(prefill_chunk_size=2),
        dict(pad_token_id=EOS[3]),
        dict(pad_token_id=None),
        dict(pad_token_id=33, temperature=2.0),
        dict(max_new_tokens=1),
    ],
    ids=str,
)
@pytest.mark.parametrize("name", ["llama", "gemma2"])
def test_generate_options(name, options):
    check(*run(name, **options))


@pytest.mark.parametrize("ranker", [dict(pooling=p) for p in reference.POOLINGS] + [dict(layer=(3, 0.25))], ids=str)
@pytest.mark.parametrize("scope", reference.SCOPES)
def test_rankers(ranker, scope):
    check(*run(ranker=make_ranker(scope=scope, **ranker)))


def test_one_candidate_one_token_prompt_and_no_prompts():
    check(*run(n=1), n=1)
    one = {"input_ids": IDS[:, -1:]}
    check(*run(prompts=one), IDS[:, -1:], MASK[:, -1:])
    assert run(prompts={"input_ids": IDS[:0]})[-1] == []
    bon = BestOfN(tiny("llama"), tokenizer(), make_ranker())
    assert bon.generate([]) == []


def test_padding_is_told_by_the_pad_token_when_there_is_no_mask():
    ids = IDS.masked_fill(MASK == 0, 61)
    check(*run(prompts={"input_ids": ids}, pad_token_id=61))


def test_a_generation_config_is_followed_and_left_alone():
    config = GenerationConfig(max_new_tokens=6, eos_token_id=EOS, top_k=0, pad_token_id=0, do_sample=True)
    before = config.to_dict()
    bon = BestOfN(tiny("llama"), None, make_ranker())
    torch.manual_seed(0)
    passed = bon.generate(PADDED, N, generation_config=config)
    assert config.to_dict() == before
    assert [r.candidates for r in passed] == [r.candidates for r in run(max_new_tokens=6)[-1]]


def test_states_do_not_depend_on_what_else_is_in_the_batch():
    bon, model, ranker, results = run(eos_token_id=None)
    check(bon, model, ranker, results, eos=[])
    for row in range(3):
        ids = IDS[row, MASK[row] == 1][None]
        torch.manual_seed(0)
        check(*run(prompts={"input_ids": ids}), ids, torch.ones_like(ids))


def test_all_candidates_out_abstains():
    ends_at_once = list(range(64))
    result = run(prompts={"input_ids": IDS}, eos_token_id=ends_at_once)[-1][0]
    assert result.index is result.score is result.text is None
    assert "out" in result.abstained
    assert [c.score for c in result.candidates] == [float("-inf")] * N
    assert [c.n_tokens for c in result.candidates] == [1] * N


def test_min_safety():
    ranker = make_ranker(calibration=Calibration(3.0, 0.5))
    bon = BestOfN(tiny("llama"), tokenizer(), ranker)
    options = dict(n=4, max_new_tokens=5, fallback="no")

    def seeded(**more):
        torch.manual_seed(3)
        return bon.generate("w30 w31", **options, **more)[0]

    free = seeded()
    assert free.abstained is None and free.safety == pytest.approx(torch.sigmoid(torch.tensor(3 * free.score + 0.5)))
    assert free.safety == max(c.safety for c in free.candidates)
    kept = seeded(min_safety=free.safety - 1e-3)
    assert kept.index == free.index and kept.abstained is None
    refused = seeded(min_safety=free.safety + 1e-3)
    assert (refused.text, refused.index, refused.token_ids, refused.safety) == ("no", None, [], None)
    assert "min_safety" in refused.abstained and refused.candidates == free.candidates

    with pytest.raises(ValueError, match="calibration"):
        BestOfN(tiny("llama"), None, make_ranker()).generate(PADDED, min_safety=0.5)
    with pytest.raises(ValueError, match=r"in \[0, 1\]"):
        seeded(min_safety=1.5)
    with pytest.raises(TypeError, match="min_safety"):
        seeded(min_safety="high")


def prompt_lengths(bon, prompts):
    seen = []
    handle = bon.model.model.embed_tokens.register_forward_hook(lambda m, a, out: seen.append(a[0]))
    results = bon.generate(prompts, n=1, max_new_tokens=2)
    handle.remove()
    return results, seen[-2]


def test_text_prompts():
    words = tokenizer()
    bon = BestOfN(fresh("llama"), words, make_ranker())
    results, ids = prompt_lengths(bon, "w30 w31")
    assert ids.tolist() == [[30, 31]] and len(results) == 1
    assert results[0].text == words.decode(results[0].token_ids, skip_special_tokens=True)
    results, ids = prompt_lengths(bon, ["w30 w31 w32", "w33"])
    assert ids[0].tolist() == [30, 31, 32] and ids[1, -1] == 33 and len(results) == 2
    with pytest.raises(ValueError, match="chat_template"):
        bon.generate([{"role": "user", "content": "w30"}])
    with pytest.raises(ValueError, match="prompt 1 has no tokens"):
        bon.generate(["w30", ""])


def test_chat_prompts():
    bon = BestOfN(fresh("llama"), tokenizer(CHAT_TEMPLATE), make_ranker())
    message = [{"role": "user", "content": "w30 w31"}]
    longer = [*message, {"role": "assistant", "content": "w40"}, {"role": "user", "content": "w41"}]
    for prompts in ("w30 w31", ["w30 w31"], message, [message]):
        results, ids = prompt_lengths(bon, prompts)
        assert ids.tolist() == [[3, 30, 31, 4]] and len(results) == 1
    results, ids = prompt_lengths(bon, [message, longer])
    assert ids[1].tolist() == [3, 30, 31, 4, 40, 3, 41, 4] and ids[0, -4:].tolist() == [3, 30, 31, 4]


def test_padded_texts_score_like_single_ones():
    bon = BestOfN(tiny("llama"), tokenizer(), make_ranker(scope="pair"))
    pair = bon.generate(["w30 w31 w32 w33", "w34"], n=1, max_new_tokens=6, do_sample=False)
    one = [bon.generate(p, n=1, max_new_tokens=6, do_sample=False)[0] for p in ["w30 w31 w32 w33", "w34"]]
    for together, single in zip(pair, one, strict=True):
        assert together.token_ids == single.token_ids
        assert together.score == pytest.approx(single.score, abs=1e-5)


def test_stop_strings():
    words = tokenizer()
    model, ranker = tiny("llama"), make_ranker()
    bon = BestOfN(model, words, ranker)
    torch.manual_seed(0)
    stops = [f"w{i}" for i in range(20, 40)]
    results = bon.generate(PADDED, N, max_new_tokens=8, top_k=0, stop_strings=stops)
    ended = [c for r in results for c in r.candidates if c.n_tokens < 8]
    assert ended and all(20 <= c.token_ids[-1] < 40 for c in ended)
    check(bon, model, ranker, results, eos=[])
    with pytest.raises(ValueError, match="tokenizer"):
        BestOfN(model, None, ranker).generate(PADDED, stop_strings=stops)


def test_stop_strings_want_a_tokenizer_that_spells_every_word():
    message = r"BestOfN: stop_strings=\['diary'\] cannot be looked for .* pass stopping_criteria= that read the text"
    with pytest.raises(ValueError, match=message):
        BestOfN(*minichat.load()).generate("How do I open a jar?", 2, stop_strings=["diary"])


@pytest.mark.parametrize(
    "options",
    [
        dict(streamer=object()),
        dict(assistant_model=object()),
        dict(prompt_lookup_num_tokens=3),
        dict(num_beams=2),
        dict(num_beam_groups=2, num_beams=6),
        dict(force_words_ids=[[30]], num_beams=6),
        dict(guidance_scale=1.5),
        dict(penalty_alpha=0.6),
        dict(dola_layers="high"),
        dict(custom_generate="somewhere"),
        dict(num_return_sequences=4),
        dict(return_dict_in_generate=True),
        dict(output_hidden_states=True),
        dict(past_key_values=DynamicCache()),
        dict(cache=DynamicCache()),
        dict(attention_mask=MASK),
        dict(cache_implementation="paged"),
        dict(synced_gpus=True),
        dict(do_sample=False),
    ],
    ids=lambda options: next(iter(options)),
)
def test_what_cannot_be_served_is_refused_by_name(options):
    name = next(iter(options))
    bon = BestOfN(tiny("llama"), None, make_ranker())
    with pytest.raises(ValueError, match=name):
        bon.generate(PADDED, N, **options)


def test_options_of_a_generation_config_are_refused_too():
    bon = BestOfN(tiny("llama"), None, make_ranker())
    for options in (dict(num_beams=2), dict(guidance_scale=1.5), dict(do_sample=False)):
        with pytest.raises(ValueError, match=next(iter(options))):
            bon.generate(PADDED, N, generation_config=GenerationConfig(**options))
    model = fresh("llama")
    model.generation_config.num_beams = 2
    with pytest.raises(ValueError, match="n=16 candidates want num_beams of at least 16, got 2"):
        BestOfN(model, None, make_ranker()).generate(PADDED)


@pytest.mark.parametrize(
    ("prompts", "error"),
    [
        (3, TypeError),
        ([3], TypeError),
        ({"input_ids": IDS.float()}, TypeError),
        ({"input_ids": IDS[0]}, ValueError),
        ({"input_ids": IDS[:, :0]}, ValueError),
        ({"input_ids": IDS, "pixel_values": IDS}, ValueError),
        ({"input_ids": IDS, "attention_mask": MASK[:, 1:]}, ValueError),
        ({"input_ids": IDS, "attention_mask": MASK.flip(1)}, ValueError),
        ({"input_ids": IDS, "attention_mask": MASK * 0}, ValueError),
        ([{"foo": 1}], ValueError),
        ([[{"role": "user"}]], ValueError),
        ([[]], ValueError),
        ("text without a tokenizer", ValueError),
    ],
    ids=lambda value: str(value)[:30].replace("\n", ""),
)
def test_bad_prompts(prompts, error):
    with pytest.raises(error, match="BestOfN: "):
        BestOfN(tiny("llama"), None, make_ranker()).generate(prompts)
    if not isinstance(prompts, str):
        with pytest.raises(error, match="BestOfN: "):
            BestOfN(tiny("llama"), tokenizer(CHAT_TEMPLATE), make_ranker()).generate(prompts)


@pytest.mark.parametrize("template", [None, CHAT_TEMPLATE])
def test_half_a_character_is_no_text(template):
    bon = BestOfN(tiny("llama"), tokenizer(template), make_ranker())
    with pytest.raises(ValueError, match=r"BestOfN: text must be Unicode, got the lone surrogate '\\ud800' in '.*w31"):
        bon.generate("w30 \ud800 w31")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (dict(generation_config={"top_k": 3}), "generation_config must be a GenerationConfig or None, got dict"),
        (dict(fallback=3), "fallback must be a str or None, got int"),
        (dict(stopping_criteria=MaxLengthCriteria(9)), "stopping_criteria must be a list .*, got MaxLengthCriteria"),
        (dict(stopping_criteria=lambda ids, scores: ids), "stopping_criteria must be a list .*, got function"),
        (dict(stopping_criteria=[MaxLengthCriteria(9), 5]), "stopping_criteria .*, got list of MaxLengthCriteria/int"),
        (dict(stopping_criteria="x"), "stopping_criteria must be a list of StoppingCriteria, got str"),
    ],
)
def test_options_of_another_type(options, words):
    with pytest.raises(TypeError, match=f"BestOfN: {words}"):
        BestOfN(tiny("llama"), None, make_ranker()).generate(PADDED, **options)


@pytest.mark.parametrize(("n", "error"), [(0, ValueError), (-1, ValueError), (2.0, TypeError), (True, TypeError)])
def test_bad_n(n, error):
    with pytest.raises(error, match="n must be"):
        BestOfN(tiny("llama"), None, make_ranker()).generate(PADDED, n)


def test_models_that_do_not_fit():
    with pytest.raises(TypeError, match="generate"):
        BestOfN(torch.nn.Linear(1, 1), None, make_ranker())
    for ranker in (None, make_ranker().prepare()):
        with pytest.raises(TypeError, match=f"BestOfN: ranker must be a SafetyRanker, got {type(ranker).__name__}"):
            BestOfN(tiny("llama"), None, ranker)
    with pytest.raises(TypeError, match="BestOfN: tokenizer must be a transformers tokenizer or None, got int"):
        BestOfN(tiny("llama"), 5, make_ranker())
    t5 = T5ForConditionalGeneration(T5Config(vocab_size=8, d_model=16, d_kv=8, d_ff=8, num_layers=2, num_heads=2))
    with pytest.raises(ValueError, match="encoder-decoder"):
        BestOfN(t5, None, make_ranker())
    with pytest.raises(ValueError, match=r"hidden_size=8.*hidden_size=16"):
        BestOfN(tiny("llama"), None, SafetyRanker(RankerConfig(8, proj_dim=8)))
    with pytest.raises(ValueError, match=r"1 \.\. 3"):
        BestOfN(tiny("llama"), None, make_ranker(layer=4))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", READS_PADDING)
def test_a_model_that_reads_padding_is_not_given_any(name, dtype):
    config = AutoConfig.for_model(name, vocab_size=64, hidden_size=WIDTH, num_hidden_layers=4, **READS_PADDING[name])
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).to(dtype).eval()
    bon, loop = BestOfN(model, None, make_ranker()), best_of_n(make_ranker())
    for _ in range(2):
        for options in ({}, dict(num_beams=2)):
            with pytest.raises(ValueError, match="BestOfN: prompts of unequal length cannot be served"):
                bon.generate(PADDED, 2, max_new_tokens=2, **options)
        with pytest.raises(ValueError, match="best_of_n: prompts of unequal length"):
            model.generate(**PADDED, custom_generate=loop, num_return_sequences=2, do_sample=True, max_new_tokens=2)
    if name == "recurrent_gemma":  # rwkv's own blocks answer one token of each row with as many as there are rows
        assert len(bon.generate({"input_ids": IDS}, 2, max_new_tokens=2)) == 3


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_half_precision_is_not_mistaken_for_reading_padding(name):
    model = tiny(name, torch.bfloat16)
    check_unpadded("", model, decoder_layers(model)[:3], IDS, MASK)


def test_layers_can_be_named():
    model = fresh("llama")
    model.model.twin = torch.nn.ModuleList(torch.nn.Identity() for _ in range(4))
    with pytest.raises(ValueError, match="layers="):
        BestOfN(model, None, make_ranker())
    bon = BestOfN(model, None, make_ranker(), layers=model.model.layers)
    assert bon.layers == [model.model.layers[1]]
    with pytest.raises(ValueError, match="4 decoder blocks"):
        BestOfN(model, None, make_ranker(), layers=model.model.layers[:2])


def test_blocks_with_as_many_experts_as_layers_are_found():
    model = fresh("llama")
    model.model.layers[0].experts = torch.nn.ModuleList(torch.nn.Identity() for _ in range(4))
    assert decoder_layers(model) == list(model.model.layers)


def test_threads_share_one_best_of_n():
    bon = BestOfN(tiny("llama"), None, make_ranker())
    jobs = [{"input_ids": IDS}, PADDED, {"input_ids": IDS[:1, :4]}]
    want = [bon.generate(job, 1, max_new_tokens=10, do_sample=False) for job in jobs]
    got = at_once(lambda job: [bon.generate(job, 1, max_new_tokens=10, do_sample=False) for _ in range(5)], jobs)
    for results, own in zip(want, got, strict=True):
        assert all([r.candidates for r in again] == [r.candidates for r in results] for again in own)


def test_timings():
    timings = run()[-1][0].timings
    assert 0 < timings.capture_s < timings.generate_s and timings.rank_s > 0
    assert timings.n_tokens == sum(c.n_tokens for r in run()[-1] for c in r.candidates)


def test_fingerprint_is_of_the_weights_not_their_dtype():
    model = fresh("llama")
    found = fingerprint.of_model(model)
    assert found == fingerprint.of_model(fresh("llama", torch.bfloat16)) == fingerprint.of_model(fresh("llama"))
    assert len({found, fingerprint.of_model(fresh("llama", seed=1)), fingerprint.of_model(fresh("qwen2"))}) == 3
    model.resize_token_embeddings(70)
    assert fingerprint.of_model(model) == found
    with pytest.raises(ValueError, match="meta"):
        fingerprint.of_model(fresh("llama").to("meta"))


def test_another_model_than_the_rankers_warns():
    ranker = make_ranker()
    ranker.model_fingerprint = fingerprint.of_model(tiny("llama"))
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        BestOfN(tiny("llama"), None, ranker)
    with pytest.warns(UserWarning, match="fingerprint"):
        BestOfN(tiny("llama", seed=1), None, ranker)


@pytest.mark.parametrize("token", [-1, 64, 1 << 40])
def test_ids_that_the_model_does_not_have(token):
    bon = BestOfN(tiny("llama"), None, make_ranker())
    with pytest.raises(ValueError, match=r"BestOfN: prompts must have ids in 0 \.\. 63, got"):
        bon.generate({"input_ids": torch.tensor([[30, token]])}, 2, max_new_tokens=2)


@pytest.mark.parametrize("name", ["gpt2", "opt"])
def test_more_tokens_than_learned_positions(name):
    """128 positions: the last token that is generated needs none."""
    prompt, bon = {"input_ids": torch.full((1, 100), 30)}, BestOfN(tiny(name), None, make_ranker())
    assert bon.generate(prompt, 2, max_new_tokens=29)[0].candidates[0].n_tokens == 29
    with pytest.raises(ValueError, match=r"prompt and answer may have 129 tokens, .* has 128 positions"):
        bon.generate(prompt, 2, max_new_tokens=30)
    padded = {"input_ids": prompt["input_ids"], "attention_mask": (torch.arange(100) >= 90).long()[None]}
    assert bon.generate(padded, 2, max_new_tokens=40)[0].candidates[0].n_tokens == 40
    options = dict(max_new_tokens=30, num_return_sequences=2, custom_generate=best_of_n(make_ranker()))
    with pytest.raises(ValueError, match="best_of_n: prompt and answer may have 129 tokens"):
        tiny(name).generate(prompt["input_ids"], do_sample=True, **options)


def test_an_encoder_with_a_head_is_no_generator():
    config = BertConfig(vocab_size=64, hidden_size=16, num_hidden_layers=3, num_attention_heads=2, intermediate_size=32)
    model = AutoModelForCausalLM.from_config(config).eval()
    with pytest.raises(ValueError, match="BestOfN: model must be decoder-only, BertLMHeadModel is an encoder"):
        BestOfN(model, None, make_ranker())
    options = dict(num_return_sequences=2, max_new_tokens=2, do_sample=True, custom_generate=best_of_n(make_ranker()))
    with pytest.raises(ValueError, match="best_of_n: model must be decoder-only, BertLMHeadModel is an encoder"):
        model.generate(torch.tensor([[30, 31]]), **options)


def test_what_a_chat_template_refuses_names_it():
    template = "{{ raise_exception('no system') if messages[0].role == 'system' }}" + CHAT_TEMPLATE
    bon = BestOfN(tiny("llama"), tokenizer(template), make_ranker())
    with pytest.raises(ValueError, match="BestOfN: the model's chat template refuses these messages: no system"):
        bon.generate([{"role": "system", "content": "w30"}], 2, max_new_tokens=2)


def test_a_table_of_words_as_long_as_the_positions_is_none_of_positions():
    config = AutoConfig.for_model("llama", **ARCHITECTURES["llama"] | dict(max_position_embeddings=64))
    model = AutoModelForCausalLM.from_config(config).eval()
    model.generation_config.eos_token_id = None
    bon, prompt = BestOfN(model, None, make_ranker()), {"input_ids": torch.full((1, 60), 30)}
    assert bon.generate(prompt, 2, max_new_tokens=8)[0].candidates[0].n_tokens == 8


def test_ids_are_counted_by_the_table_of_words():
    model = fresh("llama")
    model.resize_token_embeddings(72)
    model.config.vocab_size = 64
    assert BestOfN(model, None, make_ranker()).generate({"input_ids": torch.tensor([[70]])}, 2, max_new_tokens=2)


@pytest.mark.parametrize("value", [None, 3, np.int64(3), [3, 4], (3,), torch.tensor(3), torch.tensor([3, 4])], ids=str)
def test_ids_that_end_a_row_may_be_given_in_many_ways(value):
    assert eos_ids(value) in ([], [3], [3, 4]) and (value is None) == (eos_ids(value) == [])


def test_blocks_in_a_sequential():
    model, ranker = fresh("llama"), make_ranker()
    results = BestOfN(model, None, ranker, layers=torch.nn.Sequential(*model.model.layers)).generate(
        PADDED, N, max_new_tokens=2
    )
    assert len(results) == len(IDS)
    with pytest.raises(TypeError, match="layers must be a list of the decoder blocks, got int"):
        BestOfN(model, None, ranker, layers=5)
