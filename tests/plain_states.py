# SPDX-License-Identifier: Apache-2.0
"""Labelled lists in the words of the tiny models, and the states that plain forwards give of their texts."""

from __future__ import annotations

import random

import torch

from srr_fast.lists import LabelledList, LabelledResponse

from .tiny_encoders import MOST, encoder, pair_tokenizer
from .tiny_models import CHAT_TEMPLATE, LAYERS, tiny, tokenizer

POOLINGS = ("mean", "last")


def listed(instruction, *texts, at=0):
    return LabelledList(instruction, tuple(LabelledResponse(text) for text in texts), f"lists-{at}", "lists")


def some_words(rng, count):
    return " ".join(f"w{rng.randrange(5, 63)}" for _ in range(count))


def many(count, seed=0):
    """Lists of a few responses of 1 to 12 words."""
    rng = random.Random(seed)
    return [
        listed(
            some_words(rng, rng.randrange(1, 9)),
            *(some_words(rng, rng.randrange(1, 13)) for _ in range(rng.randrange(4))),
        )
        for _ in range(count)
    ]


# One response, several, the same twice, one of several lengths, and a list without any.
ROWS = [
    listed("w30 w31", "w40"),
    listed("w32", "w41 w42 w43", "w40", "w44 w45", "w40"),
    listed("w33 w34 w35"),
    listed("w30 w31", "w46 w47 w48 w49 w50 w51 w52", "w41 w42 w43"),
]


def pooled(states, pooling):
    return states.mean(0) if pooling == "mean" else states[-1]


def causal_states(model, words, row):
    """hidden_states of the instruction's tokens, then of each response's, from plain forwards."""
    if words.chat_template:
        text = words.apply_chat_template(
            [{"role": "user", "content": row.instruction}], tokenize=False, add_generation_prompt=True
        )
    else:
        text = row.instruction
    prompt = words(text, add_special_tokens=not words.chat_template)["input_ids"]

    def states(ids, start):
        with torch.no_grad():
            hidden = model(torch.tensor([ids]), output_hidden_states=True, use_cache=False).hidden_states
        return [state[0, start:] for state in hidden[len(hidden) - LAYERS - 1 :]]

    answers = [words(response.text, add_special_tokens=False)["input_ids"] for response in row.responses]
    return [states(prompt, 0), *(states(prompt + answer, len(prompt)) for answer in answers)]


def encoder_states(model, words, row, most=MOST):
    """The same from the encodings that the tokenizer itself makes and truncates, the pooled text before the other."""
    found = []
    for texts in [(row.instruction,), *((response.text, row.instruction) for response in row.responses)]:
        inputs = words(*texts, truncation="longest_first", max_length=most, return_tensors="pt")
        with torch.no_grad():
            hidden = model(**inputs, output_hidden_states=True).hidden_states
        own = torch.tensor([whose == 0 for whose in inputs.sequence_ids(0)])
        found.append([state[0, own] for state in hidden])
    return found


BACKBONES = {
    "llama": lambda: (tiny("llama"), tokenizer(CHAT_TEMPLATE)),
    "gpt2": lambda: (tiny("gpt2"), tokenizer()),
    "bert": lambda: (encoder("bert"), pair_tokenizer("bert")),
    "roberta": lambda: (encoder("roberta"), pair_tokenizer("roberta")),
}


def assert_same(got, want):
    assert set(got) == set(want)
    for key, features in want.items():
        for a, b in zip(vars(got[key]).values(), vars(features).values(), strict=True):
            torch.testing.assert_close(a, b, atol=0, rtol=0, equal_nan=True)
