# SPDX-License-Identifier: Apache-2.0
"""Pooled states from a generation must be those of each row run alone, unpadded, with its tokens given."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor, nn
from transformers import LogitsProcessor, LogitsProcessorList, PreTrainedModel, StoppingCriteria, StoppingCriteriaList

from srr_fast import decoding, reference
from srr_fast.capture import Capture
from srr_fast.decoder import decoder_layers

from .at_once import at_once
from .tiny_models import ARCHITECTURES, LAYERS, WIDTH, block_outputs, fresh, tiny

EOS = list(range(20))  # about every third token ends a row: lengths from 1 up
N = 5


def prompts(*pads: int, P: int = 7) -> tuple[Tensor, Tensor]:
    """Ids and mask with so many padded positions per row; what stands there is arbitrary."""
    ids = torch.randint(20, 60, (len(pads), P), generator=torch.Generator().manual_seed(sum(pads) + P))
    return ids, (torch.arange(P) >= torch.tensor(pads)[:, None]).long()


def alone(model: PreTrainedModel, tokens: Tensor, ks: tuple[int, ...], start: int, stop: int, pooling, gate) -> Tensor:
    """The pooled state [d] of tokens[start:stop], from one forward of this row."""
    return reference.pool(block_outputs(model, tokens, ks), torch.tensor([[start, stop]]), pooling, gate)[0]


def capture_generation(
    model, ids, mask, ks, n=N, eos=EOS, pooling="mean", gate=None, others=(), seed=0, own_loop=False, **options
):
    layers = decoder_layers(model)
    torch.manual_seed(seed)
    with Capture([layers[k - 1] for k in ks], mask, n, pooling, gate) as capture:
        if own_loop:
            options["custom_generate"] = partial(decoding.sample, n=n, capture=capture)
        sequences = model.generate(
            ids,
            attention_mask=mask,
            do_sample=True,
            eos_token_id=eos,
            pad_token_id=options.pop("pad_token_id", 0),
            num_return_sequences=n,
            stopping_criteria=capture.stopping_criteria(eos or [], StoppingCriteriaList(others)),
            **({"max_new_tokens": 8, "top_k": 0} | options),
        )
    return capture, sequences


def check(model, ids, mask, ks=(2,), n=N, pooling="mean", gate=None, eos=EOS, tolerance=1e-5, **options) -> list[int]:
    """Generate, compare every row with itself alone; returns how many tokens each row was pooled over."""
    capture, sequences = capture_generation(model, ids, mask, ks, n, eos, pooling, gate, **options)
    inst, resp = capture.pooled()
    P = ids.shape[1]
    assert inst.dtype == resp.dtype == torch.float32
    pooled = []
    for row, sequence in enumerate(sequences):
        tokens = sequence[P - int(mask[row // n].sum()) :]
        real = int(mask[row // n].sum())
        response = tokens[real:].tolist()
        end = next((i for i, token in enumerate(response) if token in (eos or [])), len(response) - 1)
        assert int(capture.lengths[row]) == end + 1
        want = alone(model, tokens, ks, real, real + end, pooling, gate)
        torch.testing.assert_close(resp[row], want, atol=tolerance, rtol=tolerance, equal_nan=True)
        want = alone(model, tokens, ks, 0, real, pooling, gate)
        torch.testing.assert_close(inst[row // n], want, atol=tolerance, rtol=tolerance)
        pooled.append(end)
    return pooled


@pytest.mark.parametrize("own_loop", [False, True], ids=["generate", "own"])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_architecture(name, own_loop):
    lengths = check(tiny(name), *prompts(0, 3, 6), own_loop=own_loop)
    assert 0 in lengths and len(set(lengths)) > 2


EVERYWHERE = {
    "chunked prefill, sampling options": dict(
        prefill_chunk_size=3, top_k=20, top_p=0.9, temperature=1.5, repetition_penalty=1.2
    ),
    "pad is an EOS id, no cache": dict(pad_token_id=EOS[0], use_cache=False),
    "static cache, one EOS id": dict(cache_implementation="static", eos=[7], pad_token_id=40),
    "one token": dict(max_new_tokens=1),
    "two layers": dict(ks=(3, 1)),
}


# Where plain generate itself computes another model's logits, or refuses.
TRANSFORMERS_CANNOT = {
    ("gpt_neo", "static cache"),
    *((name, "chunked prefill") for name in ("jamba", "mamba", "mamba2")),
}


@pytest.mark.parametrize(
    ("name", "case"),
    [(n, case) for n in ARCHITECTURES for case in EVERYWHERE if (n, case.split(",")[0]) not in TRANSFORMERS_CANNOT],
)
def test_every_architecture_in_every_case(name, case):
    check(tiny(name), *prompts(0, 3), own_loop=True, **EVERYWHERE[case])


@pytest.mark.parametrize("pooling", reference.POOLINGS)
@pytest.mark.parametrize("ks", [(1,), (LAYERS - 1,), (3, 1)])
def test_poolings_and_layers(pooling, ks):
    gate = torch.randn(len(ks) * WIDTH + 1) if pooling == "gated" else None
    check(tiny("llama"), *prompts(0, 2), ks, pooling=pooling, gate=gate)


@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt2"])
@pytest.mark.parametrize(
    "options",
    [
        dict(use_cache=False),
        dict(cache_implementation="static"),
        dict(prefill_chunk_size=3),
        dict(pad_token_id=EOS[0]),  # pad is an EOS id
        dict(pad_token_id=40),  # pad is an ordinary word
        dict(max_new_tokens=1),  # no response token has a state
        dict(eos=None),
        dict(eos=[7]),
    ],
    ids=str,
)
def test_generate_options(name, options):
    check(tiny(name), *prompts(0, 3), **options)


def test_one_prompt_without_padding():
    check(tiny("llama"), *prompts(0, P=1))
    check(tiny("llama"), *prompts(0), n=1)


def test_bfloat16_model():
    model = tiny("llama", torch.bfloat16)
    ids, mask = prompts(0, 3)
    capture, sequences = capture_generation(model, ids, mask, (2,), eos=None)
    inst, resp = capture.pooled()
    assert inst.dtype == torch.float32
    want = alone(model, sequences[0], (2,), 7, 14, "mean", None)
    torch.testing.assert_close(resp[0], want, atol=0.05, rtol=0.05)


class EndRowsWith(StoppingCriteria):
    def __init__(self, token):
        self.token = token
        self.calls = 0

    def __call__(self, input_ids, scores, **kwargs):
        self.calls += 1
        return input_ids[:, -1] == self.token


def test_a_row_ended_by_another_criterion_is_pooled_like_one_ended_by_eos():
    model, (ids, mask) = tiny("llama"), prompts(0, 3)
    by_eos, _ = capture_generation(model, ids, mask, (2,), max_new_tokens=10)
    criteria = [EndRowsWith(token) for token in EOS]
    other, again = capture_generation(model, ids, mask, (2,), eos=None, others=criteria, max_new_tokens=10)
    assert torch.equal(by_eos.lengths, other.lengths)
    torch.testing.assert_close(by_eos.pooled(), other.pooled(), equal_nan=True)
    assert criteria[0].calls == again.shape[1] - ids.shape[1]


def test_two_threads_on_one_model_do_not_see_each_other():
    model = fresh("llama")
    jobs = [prompts(0, 3), prompts(2, 0, 1), prompts(0, P=4)]

    def plain():
        model.generate(jobs[0][0], attention_mask=jobs[0][1], max_new_tokens=12, pad_token_id=0)

    def work(job):
        for _ in range(4):
            job()

    at_once(work, [plain, *(partial(check, model, *job, max_new_tokens=12) for job in jobs)])
    assert not hooks(model)


def hooks(model: nn.Module) -> list:
    """The capture's hooks; transformers keeps some of its own."""
    return [hook for module in model.modules() for hook in module._forward_hooks.values() if isinstance(hook, partial)]


class Explode(LogitsProcessor):
    def __init__(self, after):
        self.after = after

    def __call__(self, input_ids, scores):
        if input_ids.shape[1] >= self.after:
            raise KeyboardInterrupt
        return scores


def test_an_exception_leaves_no_hook():
    model, (ids, mask) = tiny("llama"), prompts(0, 3)
    with pytest.raises(KeyboardInterrupt):
        capture_generation(model, ids, mask, (1, 2), logits_processor=LogitsProcessorList([Explode(10)]))
    assert not hooks(model)
    check(model, ids, mask)


def test_memory_does_not_grow_with_the_tokens():
    def held(capture: Capture) -> int:
        tensors = [capture.lengths, capture.spans, capture.prompt_start, *capture._prompt, *capture._response]
        assert not capture._parts
        known = {id(tensor) for tensor in tensors} | {id(capture.gate)}
        others = [v for v in vars(capture).values() if isinstance(v, Tensor) and id(v) not in known]
        assert not others
        return sum(tensor.untyped_storage().nbytes() for tensor in tensors)

    def generated(T: int, own_loop: bool) -> Capture:
        return capture_generation(tiny("llama"), *prompts(0, 3), (2,), eos=None, max_new_tokens=T, own_loop=own_loop)[0]

    assert len({held(generated(T, own_loop)) for T in (2, 30) for own_loop in (False, True)}) == 1


class TwiceTheSameLayer(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, *args, **kwargs):
        self.layer(*args, **kwargs)
        return self.layer(*args, **kwargs)


def test_states_that_are_not_the_tokens_are_refused():
    model, (ids, mask) = fresh("llama"), prompts(0)
    layer = model.model.layers[1]
    model.model.layers[1] = TwiceTheSameLayer(layer)
    with pytest.raises(RuntimeError, match="several times"), Capture([layer], mask, 2) as capture:
        model.generate(
            ids,
            use_cache=False,
            do_sample=True,
            num_return_sequences=2,
            max_new_tokens=3,
            stopping_criteria=capture.stopping_criteria([], StoppingCriteriaList()),
        )
    assert not hooks(model)


def test_states_that_do_not_come_are_refused():
    model, (ids, mask) = tiny("llama"), prompts(0)
    with pytest.raises(RuntimeError, match="0 of 7 states"), Capture([nn.Identity()], mask, 1) as capture:
        model.generate(ids, max_new_tokens=3, stopping_criteria=capture.stopping_criteria([], StoppingCriteriaList()))
    with pytest.raises(RuntimeError, match="no states came"):
        capture.pooled()
