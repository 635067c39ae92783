# SPDX-License-Identifier: Apache-2.0
"""Best-of-N through model.generate: the callable, the folder in both ways of loading it, and the pipeline."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
import transformers
from transformers import (
    AutoModelForCausalLM,
    GenerationConfig,
    T5Config,
    T5ForConditionalGeneration,
    dynamic_module_utils,
)

import srr_fast
from srr_fast import cache_argument, fingerprint
from srr_fast.custom_generate import BestOfNOutput
from srr_fast.ranker import Calibration

from .best_of_n import EOS, IDS, MASK, PADDED, N, alone, make_ranker
from .tiny_models import fresh, tiny, tokenizer

ROOT = Path(__file__).parent.parent
OPTIONS = dict(max_new_tokens=8, top_k=0, eos_token_id=EOS, pad_token_id=0, do_sample=True, num_return_sequences=N)


def run(model, ranker, /, **options):
    torch.manual_seed(0)
    return model.generate(**{**PADDED, **OPTIONS, "custom_generate": srr_fast.best_of_n(ranker), **options})


def check(out, plain, model, ranker, prompts=IDS, mask=MASK, eos=EOS):
    """out: BestOfNOutput; plain: [B * N, P + T] what generate answers for the same seed."""
    B, P = prompts.shape
    assert torch.equal(out.candidate_sequences.view(B * N, -1), plain)
    for b in range(B):
        prompt = prompts[b][mask[b] == 1].tolist()
        candidates = [
            row[P : P + length].tolist()
            for row, length in zip(out.candidate_sequences[b], out.candidate_lengths[b], strict=True)
        ]
        pooled = [alone(model, ranker, prompt, tokens, eos) for tokens in candidates]
        with torch.no_grad():
            want = ranker.score(pooled[0][:1], torch.stack([p[1] for p in pooled]))
        torch.testing.assert_close(out.candidate_scores[b], want.scores, atol=2e-5, rtol=0)
        torch.testing.assert_close(out.candidate_probs[b], want.probs, atol=2e-4, rtol=0)
        best = int(out.best[b])
        assert out.best_score[b] == out.candidate_scores[b].max() and best == int(out.candidate_scores[b].argmax())
        generated = out.sequences[b, P:].tolist()
        assert out.sequences[b, :P].equal(prompts[b])
        assert generated == candidates[best] + [0] * (len(generated) - len(candidates[best]))
    assert out.sequences.shape == (B, P + int(out.candidate_lengths.gather(1, out.best[:, None]).max()))


EVERY_OPTION = [
    {},
    dict(use_cache=False),
    dict(cache_implementation="static"),
    dict(prefill_chunk_size=2),
    dict(temperature=2.0, repetition_penalty=1.2, top_p=0.9),
]


@pytest.mark.parametrize(
    ("name", "options"),
    [(name, options) for name in ("llama", "gemma2") for options in EVERY_OPTION]
    + [(name, {}) for name in ("bloom", "gpt2", "mixtral")],
    ids=str,
)
def test_the_safest_of_what_generate_samples(name, options):
    model, ranker = tiny(name), make_ranker()
    out = run(model, ranker, return_dict_in_generate=True, **options)
    assert isinstance(out, BestOfNOutput)
    check(out, run(model, ranker, custom_generate=None, **options), model, ranker)
    assert torch.equal(run(model, ranker, **options), out.sequences)


def test_prompts_without_padding_and_without_eos():
    model, ranker = tiny("llama"), make_ranker(calibration=Calibration(3.0, 0.5))
    options = dict(input_ids=IDS[:1], attention_mask=None, eos_token_id=None, pad_token_id=None)
    out = run(model, ranker, return_dict_in_generate=True, **options)
    check(out, run(model, ranker, custom_generate=None, **options), model, ranker, IDS[:1], MASK[:1], [])
    assert torch.equal(out.candidate_safety, torch.sigmoid(3 * out.candidate_scores + 0.5))


def test_other_stopping_criteria_end_rows():
    class Stops(transformers.StoppingCriteria):
        def __call__(self, input_ids, scores, **kwargs):
            return input_ids[:, -1] < 30

    model, ranker = tiny("llama"), make_ranker()
    criteria = transformers.StoppingCriteriaList([Stops()])
    out = run(model, ranker, return_dict_in_generate=True, stopping_criteria=criteria, eos_token_id=None)
    last = out.candidate_sequences.gather(2, IDS.shape[1] + out.candidate_lengths[..., None] - 1)[..., 0]
    assert ((last < 30) | (out.candidate_lengths == 8)).all() and (out.candidate_lengths < 8).any()


def test_all_candidates_out_leave_the_prompt_and_padding():
    out = run(tiny("llama"), make_ranker(), return_dict_in_generate=True, eos_token_id=list(range(64)))
    assert out.best.tolist() == [-1] * 3 and out.best_score.tolist() == [float("-inf")] * 3
    assert torch.equal(out.sequences, IDS)


def test_a_generation_config_is_left_alone():
    config = GenerationConfig(**OPTIONS, return_dict_in_generate=True)
    before = config.to_dict()
    model, ranker = tiny("llama"), make_ranker()
    torch.manual_seed(0)
    out = model.generate(**PADDED, generation_config=config, custom_generate=srr_fast.best_of_n(ranker))
    assert config.to_dict() == before and torch.equal(out.sequences, run(model, ranker))


@pytest.mark.parametrize(
    "options",
    [
        dict(num_beam_groups=2, num_beams=4),
        dict(num_return_sequences=1),
        dict(guidance_scale=2.0),
        dict(output_scores=True, return_dict_in_generate=True),
    ],
    ids=lambda options: next(iter(options)),
)
def test_options_it_cannot_serve(options):
    name = next(iter(options))
    with pytest.raises(ValueError, match=f"best_of_n: {name}"):
        run(tiny("llama"), make_ranker(), **({"num_return_sequences": 2} | options))


@pytest.mark.parametrize(
    "mask", [MASK.flip(1), MASK.index_fill(1, torch.tensor([6]), 0), MASK * torch.tensor([[0], [1], [1]])]
)
@pytest.mark.parametrize("beams", [{}, dict(num_beams=N)])
def test_prompts_are_padded_on_the_left(mask, beams):
    with pytest.raises(ValueError, match="best_of_n: attention_mask must be zeros, then at least one one"):
        run(tiny("llama"), make_ranker(), attention_mask=mask, **beams)


@pytest.mark.parametrize("as_type", [torch.Tensor.float, torch.Tensor.double, torch.Tensor.int, torch.Tensor.bool])
def test_a_mask_of_another_type(as_type):
    out, same = (
        run(tiny("llama"), make_ranker(), attention_mask=mask, return_dict_in_generate=True)
        for mask in (MASK, as_type(MASK))
    )
    assert torch.equal(out.candidate_scores, same.candidate_scores)


@pytest.mark.parametrize("odd", [0.5, 1e-3, 2.0, -1.0, float("nan"), 2])
@pytest.mark.parametrize("beams", [{}, dict(num_beams=N)])
def test_a_mask_between_its_values_is_refused(odd, beams):
    mask = MASK.float() if isinstance(odd, float) else MASK.clone()
    mask[1, -1] = odd
    with pytest.raises(ValueError, match=f"best_of_n: attention_mask must hold 0 and 1 alone, got {odd}"):
        run(tiny("llama"), make_ranker(), attention_mask=mask, **beams)


def test_prompts_are_whole():
    model = tiny("llama")
    with torch.no_grad():
        cache = model(IDS[:, :4], use_cache=True)[cache_argument.GENERATE]
    with pytest.raises(ValueError, match=f"best_of_n: {cache_argument.GENERATE} cannot be served"):
        run(model, make_ranker(), **{cache_argument.GENERATE: cache})
    embeds = model.get_input_embeddings()(IDS)
    with pytest.raises(ValueError, match="best_of_n: input_ids must be given"):
        run(model, make_ranker(), input_ids=None, inputs_embeds=embeds)


def test_models_that_do_not_fit():
    t5 = T5ForConditionalGeneration(T5Config(vocab_size=8, d_model=16, d_kv=8, d_ff=8, num_layers=2, num_heads=2))
    with pytest.raises(ValueError, match="encoder-decoder"):
        t5.generate(
            torch.tensor([[3]]),
            custom_generate=srr_fast.best_of_n(make_ranker()),
            decoder_start_token_id=0,
            max_new_tokens=2,
        )
    for ranker in (None, make_ranker().prepare()):
        with pytest.raises(TypeError, match=f"best_of_n: ranker must be a SafetyRanker, got {type(ranker).__name__}"):
            srr_fast.best_of_n(ranker)
    ranker = make_ranker()
    ranker.model_fingerprint = fingerprint.of_model(tiny("llama"))
    with pytest.warns(UserWarning, match="best_of_n: .*fingerprint"):
        run(tiny("llama", seed=1), ranker)


@pytest.fixture
def folders(tmp_path, monkeypatch):
    """A saved ranker and a saved model with custom_generate/ in its folder, as both would lie on the hub."""
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    make_ranker().save_pretrained(tmp_path / "ranker")
    tiny("llama").save_pretrained(tmp_path / "model")
    shutil.copytree(ROOT / "custom_generate", tmp_path / "model" / "custom_generate")
    return tmp_path


@pytest.mark.parametrize("as_object", [True, False])
def test_the_folder_by_path(folders, as_object):
    ranker = make_ranker() if as_object else str(folders / "ranker")
    model = tiny("llama")
    options = dict(custom_generate=str(ROOT), trust_remote_code=True, ranker=ranker)
    assert torch.equal(run(model, make_ranker(), **options), run(model, make_ranker()))
    out = run(model, make_ranker(), return_dict_in_generate=True, **options)
    assert torch.equal(out.candidate_scores, run(model, make_ranker(), return_dict_in_generate=True).candidate_scores)
    with pytest.raises(TypeError, match="ranker="):
        run(model, make_ranker(), custom_generate=str(ROOT), trust_remote_code=True)


def test_the_folder_in_a_model_repository(folders):
    model = AutoModelForCausalLM.from_pretrained(folders / "model", trust_remote_code=True)
    torch.manual_seed(0)
    chosen = model.generate(**PADDED, **OPTIONS, ranker=str(folders / "ranker"))
    assert torch.equal(chosen, run(tiny("llama"), make_ranker()))


def test_the_pipeline_keeps_the_scores():
    pipe = transformers.pipeline("text-generation", model=fresh("llama"), tokenizer=tokenizer())
    options = dict(OPTIONS, custom_generate=srr_fast.best_of_n(make_ranker()), return_dict_in_generate=True)
    for answer in pipe(["w30 w31", "w32 w33"], **options):
        # transformers 5.16 leaves one dimension more
        found = {key: torch.as_tensor(value).reshape(-1) for key, value in answer[0].items() if key != "generated_text"}
        assert len(found["candidate_scores"]) == N
        assert found["candidate_scores"].max() == found["best_score"]
        assert found["candidate_scores"].argmax() == found["best"]
