# SPDX-License-Identifier: Apache-2.0
"""Trials of what reads text or generates it, against one forward pass per response."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st
from torch import Tensor

import srr_fast
from srr_fast import BestOfN, SafetyRanker, TextRanker
from srr_fast.generate_options import REFUSED

from ..cases import ScoreCase
from ..tiny_models import CHAT_TEMPLATE, VOCAB, WIDTH, block_outputs, tiny, tokenizer
from .trials import Trial, near, random_tensor


def text_ranker(calibrated: bool = True) -> SafetyRanker:
    ranker = ScoreCase("", (), WIDTH, {"layer": 2, "proj_dim": 8}).build()
    ranker.calibration = srr_fast.Calibration(2.0, 0.5) if calibrated else None
    return ranker


def plain_scores(ranker: SafetyRanker, prompt: list[int], answers: list[list[int]]) -> Tensor:
    """From one forward per response."""
    model = tiny("llama")
    inst = block_outputs(model, torch.tensor(prompt), (2,)).mean(0)
    rows = [block_outputs(model, torch.tensor(prompt + a), (2,))[len(prompt) :].mean(0) for a in answers]
    with torch.no_grad():
        return ranker.score(inst[None], torch.stack(rows)).scores if rows else torch.empty(0)


@st.composite
def text_trial(draw: Any, with_tokenizer: bool) -> Trial:
    ranker = text_ranker()
    words = st.lists(st.integers(5, VOCAB - 2), min_size=1, max_size=5)
    prompt, answers = draw(words), draw(st.lists(words, max_size=4))
    arguments: dict[str, Any] = {"instruction": prompt, "responses": answers, "top_k": None, "batch_tokens": 64}
    as_text = with_tokenizer and draw(st.booleans())
    if as_text:
        arguments["instruction"] = " ".join(f"w{i}" for i in prompt)
        arguments["responses"] = [" ".join(f"w{i}" for i in answer) for answer in answers]
    bad_ids: tuple[Any, ...] = (None, 3, 1.5, [1.5], [True], [VOCAB], [-1], [None], ["a", 1], {1: 2}, object(), b"\x05")
    bad_ids += ([[5]], np.array([5, 6]), torch.tensor([5, 6]), [5] * 200)
    faults: dict[str, tuple[Any, ...]] = {
        "instruction": (*bad_ids, [], (), [{}], [{"role": "user"}], *(() if with_tokenizer else ("text",))),
        "responses": (*([bad] for bad in bad_ids), "text", None, 3, b"\x05"),
        "top_k": (0, -1, 1.5, True, "1"),
        "batch_tokens": (0, -1, 1.5, True, None, "1"),
    }
    name = draw(st.sampled_from(("", *faults)))
    if name:
        arguments[name] = draw(st.sampled_from(faults[name]))
    elif draw(st.booleans()):
        arguments["top_k"] = draw(st.integers(1, 5))

    def right(ranked: list[Any]) -> bool:
        want = plain_scores(ranker, prompt, answers)
        order = [r.index for r in ranked]
        return (
            len(ranked) == min(len(answers), arguments["top_k"] or len(answers))
            and len(set(order)) == len(order)
            and near(torch.tensor([r.score for r in ranked]), want[order], 1e-4)
            and [r.score for r in ranked] == sorted((r.score for r in ranked), reverse=True)
        )

    reader = TextRanker(tiny("llama"), tokenizer() if with_tokenizer else None, ranker)
    names = {"instruction": ("instruction", "message", "conversation", "text")}.get(
        name, (name.removesuffix("s"), "text")
    )
    note = f"rank {name}={arguments.get(name)!r}"
    return Trial(lambda: reader.rank(**arguments), None if name else right, "rank: ", names, note)


@st.composite
def method_trial(draw: Any, folder: Path) -> Trial:
    """The rest of SafetyRanker: rank_many, safety, save_pretrained."""
    ranker = text_ranker()
    words = st.lists(st.integers(5, VOCAB - 2), min_size=1, max_size=3)
    way = draw(st.sampled_from(("rank_many", "safety", "save_pretrained")))
    faulty = draw(st.booleans())
    if way == "save_pretrained":
        where = (
            draw(st.sampled_from((None, 3, b"a", ["a"], object()))) if faulty else folder / draw(st.sampled_from("ab"))
        )
        wanted = None if faulty else lambda _: faithful_scores(SafetyRanker.from_pretrained(where), ranker)
        return Trial(
            lambda: ranker.save_pretrained(where), wanted, "save_pretrained: ", ("folder",), f"save to {where!r}"
        )
    if way == "safety":
        scores = random_tensor(draw, draw(st.integers(0, 5)))
        odd = draw(st.sampled_from((None, 0.5, [0.5], "x", scores.int(), scores.to(torch.complex64), np.zeros(2))))
        right = lambda got: near(got, torch.sigmoid(2 * scores.double() + 0.5), 1e-5)  # noqa: E731
        return Trial(
            lambda: ranker.safety(odd if faulty else scores), None if faulty else right, "safety: ", ("scores",), way
        )
    prompts, answers = draw(st.lists(words, min_size=1, max_size=3)), draw(st.lists(words, max_size=2))
    arguments: dict[str, Any] = {"instructions": prompts, "responses": [answers] * len(prompts)}
    name = draw(st.sampled_from(sorted(arguments)))
    if faulty:
        odd = (
            None,
            3,
            "text",
            b"a",
            {1: 2},
            object(),
            [*arguments[name], [5]],
            arguments[name][1:],
            [None] * len(prompts),
        )
        arguments[name] = draw(st.sampled_from(odd))

    def same(got: list[list[Any]]) -> bool:
        scores = [torch.tensor([r.score for r in sorted(ranked, key=lambda r: r.index)]) for ranked in got]
        want = [plain_scores(ranker, prompt, answers) for prompt in prompts]
        return all(near(a, b, 1e-4) for a, b in zip(scores, want, strict=True))

    call = lambda: ranker.rank_many(tiny("llama"), None, **arguments)  # noqa: E731
    return Trial(
        call, None if faulty else same, "rank: ", ("instruction", "response"), f"rank_many {arguments[name]!r}"
    )


def faithful_scores(loaded: SafetyRanker, ranker: SafetyRanker) -> bool:
    inst, resp = torch.ones(1, WIDTH), torch.arange(3 * WIDTH).view(3, WIDTH) / 9
    return torch.equal(loaded.score(inst, resp).scores, ranker.score(inst, resp).scores)


@st.composite
def generate_trial(draw: Any) -> Trial:
    ranker = text_ranker()
    bon = BestOfN(tiny("llama"), tokenizer(CHAT_TEMPLATE), ranker)
    rows = draw(st.lists(st.lists(st.integers(5, VOCAB - 2), min_size=3, max_size=3), min_size=1, max_size=2))
    ids = torch.tensor(rows)
    arguments: dict[str, Any] = dict(
        prompts={"input_ids": ids},
        n=draw(st.integers(1, 3)),
        min_safety=draw(st.sampled_from((None, 0, 0.5, 1.0))),
        fallback=draw(st.sampled_from((None, "", "no"))),
        prune=draw(st.sampled_from(((), [(2, 0.5)], ((2, 0.1), (3, 0.9))))),
    )
    faults: dict[str, tuple[Any, ...]] = {
        "n": (0, -1, True, 1.5, "4", None, math.nan),
        "min_safety": (-0.1, 1.1, math.nan, True, "0.5", [0.5]),
        "fallback": (3, b"no", ["no"]),
        "prune": ("x", 3, None, {2: 0.5}, [2], [(1, 0.5)], [(2, 0)], [(2, 1.0)], [(2, math.nan)], [(3, 0.5), (2, 0.5)]),
        "prompt": (3, None, [3], b"a", [b"a"], [[]], [{}], [[{"role": "user"}]], object()),
        "input_ids": tuple(
            {"input_ids": bad} for bad in (ids.float(), ids[0], ids[:, :0], ids.tolist(), "a", ids.int(), None)
        ),
        "attention_mask": tuple(
            {"input_ids": ids, "attention_mask": bad} for bad in (ids * 0, ids[:, 1:], ids.float(), "a", [[1, 1, 1]])
        ),
        "pixels": ({"input_ids": ids, "pixels": ids},),
    }
    name = draw(st.sampled_from(("", *faults, *REFUSED)))
    if name in REFUSED:
        arguments[name] = 1
    elif name:
        where = name if name in arguments else "prompts"
        arguments[where] = draw(st.sampled_from(faults[name]))

    def right(results: list[Any]) -> bool:
        ok = len(results) == len(rows)
        for row, result in zip(rows, results, strict=True):
            ok = ok and len(result.candidates) == arguments["n"]
            stayed = [c for c in result.candidates if not c.pruned]
            want = plain_scores(ranker, row, [c.token_ids[:-1] for c in stayed])
            ok = ok and near(torch.tensor([c.score for c in stayed]), want, 1e-4)
            top = max(stayed, key=lambda c: c.score)
            below = arguments["min_safety"] is not None and top.safety < arguments["min_safety"]
            ok = ok and (result.abstained is not None) == below
            ok = ok and (result.text == arguments["fallback"] if below else result.token_ids == top.token_ids)
        return ok

    names = (name, "message", "conversation", "no tokens") if name == "prompt" else (name,)
    note = f"BestOfN {name}={arguments.get(name, arguments['prompts'])!r}"
    call = lambda: bon.generate(**arguments, max_new_tokens=4)  # noqa: E731
    return Trial(call, None if name else right, "BestOfN: ", names, note)
