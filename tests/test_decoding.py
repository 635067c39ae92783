# SPDX-License-Identifier: Apache-2.0
"""The decoding loop draws what plain ``generate`` draws, computing each prompt once and no row that has finished."""

from __future__ import annotations

import gc
import resource
from functools import partial

import pytest
import torch
from transformers import AutoConfig, AutoModelForImageTextToText, LogitsProcessor, LogitsProcessorList
from transformers.cache_utils import DynamicLayer

from srr_fast import RankerConfig, SafetyRanker
from srr_fast.decoding import RoomyLayer
from srr_fast.generation import BestOfN

from .at_once import at_once
from .best_of_n import EOS, IDS, MASK, PADDED, N, check, make_ranker, run
from .tiny_models import fresh, tiny, tokenizer

ROWS = len(IDS) * N


def assert_drawn_as_by_generate(model, results, **options):
    torch.manual_seed(0)
    options = {"max_new_tokens": 8, "top_k": 0, "eos_token_id": EOS, "pad_token_id": 0} | options
    plain = model.generate(IDS, attention_mask=MASK, do_sample=True, num_return_sequences=N, **options)
    for row, sequence in enumerate(plain[:, IDS.shape[1] :].tolist()):
        tokens = results[row // N].candidates[row % N].token_ids
        assert sequence[: len(tokens)] == tokens
        assert len(tokens) == len(sequence) or tokens[-1] in EOS or "stop_strings" in options


class EndAt(LogitsProcessor):
    """Row i ends at its length, by EOS, and not before."""

    def __init__(self, lengths):
        self.ends = IDS.shape[1] + torch.tensor(lengths) - 1

    def __call__(self, input_ids, scores):
        scores = scores.clone()
        scores[:, :20] = -torch.inf
        scores[self.ends == input_ids.shape[1], 3] = torch.inf
        return scores.nan_to_num()


@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt2", "bloom", "qwen3_moe"])
def test_finished_rows_are_not_computed(name):
    lengths = [3, 9, 1, 9, 5, 2, 12, 7, 7, 7, 1, 1, 1, 12, 4]
    forwards = []
    model = tiny(name)
    handle = model.get_input_embeddings().register_forward_pre_hook(lambda m, args: forwards.append(args[0].shape))
    try:
        _, _, ranker, results = run(
            name, logits_processor=LogitsProcessorList([EndAt(lengths)]), max_new_tokens=20, seed=0
        )
    finally:
        handle.remove()
    assert [c.n_tokens for r in results for c in r.candidates] == lengths
    assert forwards.count(IDS.shape) == 1
    computed = [rows for rows, positions in forwards[1:] if positions == 1]
    assert len(computed) == max(lengths) - 1
    for step, rows in enumerate(computed, start=1):
        running = sum(length > step for length in lengths)
        assert running <= rows <= running / (1 - 0.125) + 1
    check(BestOfN(model, None, ranker), model, ranker, results)
    processors = LogitsProcessorList([EndAt(lengths)])
    assert_drawn_as_by_generate(model, results, logits_processor=processors, max_new_tokens=20)


@pytest.mark.parametrize("n", [2, 3, 4, 5])  # 3 and 4: as many rows as the positions have axes
def test_positions_with_an_axis_before_the_rows(n):
    """Qwen2.5-VL carries positions [4, rows, P]: such a model is served by generate's loop."""
    torch.manual_seed(0)
    sizes = dict(vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=3, max_position_embeddings=128)
    rope = dict(rope_type="default", mrope_section=[2, 3, 3], rope_theta=10000.0)
    model = AutoModelForImageTextToText.from_config(
        AutoConfig.for_model(
            "qwen2_5_vl",
            text_config=sizes | dict(num_attention_heads=2, num_key_value_heads=2, rope_parameters=rope),
            vision_config=dict(depth=1, hidden_size=32, intermediate_size=32, num_heads=2, out_hidden_size=32),
        )
    ).eval()
    model.generation_config.pad_token_id = 0
    ranker = SafetyRanker(RankerConfig(32, proj_dim=8)).eval()
    prompt, options = torch.tensor([[25, 6, 7, 8, 9]]), dict(max_new_tokens=8, top_k=0, eos_token_id=EOS)
    torch.manual_seed(0)
    (result,) = BestOfN(model, None, ranker).generate({"input_ids": prompt}, n, **options)
    torch.manual_seed(0)
    mask = torch.ones_like(prompt)
    plain = model.generate(prompt, attention_mask=mask, do_sample=True, num_return_sequences=n, **options)
    for candidate, row in zip(result.candidates, plain[:, 5:].tolist(), strict=True):
        assert candidate.token_ids == row[: candidate.n_tokens]
    answers = [candidate.token_ids[:-1] for candidate in result.candidates]
    ranked = {one.index: one.score for one in ranker.rank(model, None, prompt[0].tolist(), answers)}
    for i, candidate in enumerate(result.candidates):
        assert candidate.score == pytest.approx(ranked[i], abs=2e-5)


def odd_tokens_only_for_odd_rows(row, sentence):
    return list(range(row % 2, 64, 2))


@pytest.mark.parametrize(
    "options",
    [
        dict(top_k=5),
        dict(top_p=0.7),
        dict(temperature=0.5, top_k=10),
        dict(min_p=0.05),
        dict(typical_p=0.8),
        dict(repetition_penalty=1.7),
        dict(encoder_repetition_penalty=1.7),
        dict(encoder_no_repeat_ngram_size=2),
        dict(no_repeat_ngram_size=2),
        dict(bad_words_ids=[[30], [31, 32]]),
        dict(min_new_tokens=3),
        dict(min_length=11),
        dict(exponential_decay_length_penalty=(2, 1.3)),
        dict(suppress_tokens=[33, 34]),
        dict(eos_token_id=[7, 9]),
        dict(prefix_allowed_tokens_fn=odd_tokens_only_for_odd_rows),
        dict(prefill_chunk_size=3),
        dict(use_cache=False),
        dict(cache_implementation="static"),
        dict(max_length=12, max_new_tokens=None),
        dict(max_time=100.0),
    ],
    ids=lambda options: next(iter(options)),
)
def test_options_of_generate(options):
    options = {"max_new_tokens": 10} | options
    bon, model, ranker, results = run(**options)
    check(bon, model, ranker, results, eos=options.get("eos_token_id", EOS))
    assert_drawn_as_by_generate(model, results, **options)


def test_stop_strings_draw_as_generate_does():
    words = tokenizer()
    bon = BestOfN(tiny("llama"), words, make_ranker())
    options = dict(max_new_tokens=8, top_k=0, stop_strings=[f"w{i}" for i in range(20, 40)])
    torch.manual_seed(0)
    results = bon.generate(PADDED, N, **options)
    assert_drawn_as_by_generate(bon.model, results, tokenizer=words, eos_token_id=None, **options)


def test_a_layer_with_room_holds_what_its_base_holds():
    def states(rows, positions):
        return torch.randn(rows, 2, positions, 4), torch.randn(rows, 2, positions, 3)

    plain = DynamicLayer()
    plain.update(*states(6, 3))
    roomy = RoomyLayer(plain)
    for positions, places in [(1, None), (80, [0, 2, 3, 5]), (1, [3]), (1, None), (9, None)]:
        rows = plain.keys.shape[0]
        new = states(rows, positions)
        for got, want in zip(roomy.update(*new), plain.update(*new), strict=True):
            assert torch.equal(got, want)
        if places is not None:
            plain.batch_select_indices(torch.tensor(places))
            roomy.batch_select_indices(torch.tensor(places))
        assert torch.equal(roomy.keys, plain.keys) and torch.equal(roomy.values, plain.values)
        assert roomy.get_seq_length() == plain.get_seq_length()
        assert roomy.get_mask_sizes(1) == plain.get_mask_sizes(1)


def test_threads_sampling_on_one_model():
    model, ranker = fresh("llama"), make_ranker()
    bon = BestOfN(model, None, ranker)

    def work(rows):
        for _ in range(5):
            inputs = {"input_ids": IDS[rows], "attention_mask": MASK[rows]}
            results = bon.generate(inputs, N, max_new_tokens=12, top_k=0, eos_token_id=EOS)
            check(bon, model, ranker, results, IDS[rows], MASK[rows])

    at_once(work, [[0, 1, 2], [2], [1, 0]])


class Explode(LogitsProcessor):
    def __call__(self, input_ids, scores):
        if input_ids.shape[1] >= 10:
            raise KeyboardInterrupt
        return scores


def hooks(model) -> int:
    """The capture's hooks; transformers keeps some of its own."""
    return sum(isinstance(hook, partial) for m in model.modules() for hook in m._forward_hooks.values())


@pytest.mark.parametrize("options", [{}, dict(use_cache=False)], ids=str)
def test_an_exception_leaves_the_model_clean(options):
    want = [r.candidates for r in run(**options)[-1]]
    with pytest.raises(KeyboardInterrupt):
        run(logits_processor=LogitsProcessorList([Explode()]), **options)
    assert hooks(tiny("llama")) == 0
    assert [r.candidates for r in run(**options)[-1]] == want


@pytest.mark.parametrize("calls", [200, pytest.param(10_000, marks=pytest.mark.slow)])
def test_many_calls_leave_nothing_behind(calls):
    bon = BestOfN(tiny("gpt2"), None, make_ranker())

    def alive() -> tuple[int, int, float]:
        gc.collect()
        things = gc.get_objects()
        peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        return sum(issubclass(type(thing), torch.Tensor) for thing in things), len(things), peak_mib

    def generate(times):
        for _ in range(times):
            bon.generate(PADDED, 2, max_new_tokens=3, top_k=0, eos_token_id=EOS, prune=[(2, 0.5)])

    generate(20)
    tensors, things, peak_mib = alive()
    generate(calls)
    tensors_after, things_after, peak_mib_after = alive()
    assert hooks(bon.model) == 0
    assert tensors_after <= tensors
    assert things_after - things < 100
    assert peak_mib_after - peak_mib < 32
