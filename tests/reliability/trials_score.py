# SPDX-License-Identifier: Apache-2.0
"""Trials of scoring: the op, the prepared scorer, its ``out=`` and its way from hidden states."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from hypothesis import strategies as st
from torch import Tensor

import srr_fast
from srr_fast import RankerConfig, ScoreOutput, reference

from ..cases import ScoreCase
from .trials import DTYPES, FAULTS, WIDTH_FAULT, Trial, near, random_tensor, spoil
from .trials_pool import exact_pool, span_faults, tokens

D = 12
RANKERS = [
    ScoreCase("", (), D, options).build()
    for options in (
        {"proj_dim": 8, "num_heads": 2},
        {"proj_dim": 8, "scope": "pair", "pooling": "gated", "norm_first": True},
        {"proj_dim": 5, "num_layers": 0, "pooling": "last"},
    )
]
SCORERS = [ranker.prepare(dtype=dtype) for ranker in RANKERS for dtype in (torch.float32, torch.bfloat16)]


class Lists(NamedTuple):
    inst: Tensor
    resp: Tensor
    offsets: Tensor | None


@st.composite
def lists(draw: Any) -> Lists:
    equal = draw(st.booleans())
    B, n = draw(st.integers(0, 4)), draw(st.integers(0, 5))
    sizes = [n if equal else draw(st.integers(0, 5)) for _ in range(B)]
    dtype = draw(st.sampled_from(DTYPES))
    inst, resp = (random_tensor(draw, rows, D, dtype=dtype) for rows in (B, sum(sizes)))
    offsets = None if equal and draw(st.booleans()) else torch.tensor([0, *sizes]).cumsum(0)
    return Lists(inst, resp, offsets)


def list_faults(x: Lists, M: int) -> dict[str, dict[str, Callable[[Any], Any]]]:
    B = len(x.inst)
    offsets = {name: fault for name, fault in FAULTS.items() if name != "None"}
    offsets |= {
        "float32": lambda o: o.float(),
        "not from 0": lambda o: torch.cat([o[:1] - 1, o[1:]]),
        "not to M": lambda o: torch.cat([o[:-1], o[-1:] + 1]),
        "one too many": lambda o: torch.cat([o, o[-1:]]),
    }
    if B > 1 and M:
        offsets["decreasing"] = lambda o: torch.cat([o[:1], o[1:-1] * 0 + M, o[-1:] * 0])
    faults = {"inst": FAULTS | WIDTH_FAULT}
    if x.offsets is not None:
        faults["offsets"] = offsets
    elif (M + 1) % B if B else True:
        faults["inst"]["lists that are not equal"] = lambda inst: torch.cat([inst, inst.new_zeros(M + 1, D)])[: M + 1]
        if M == 0:
            del faults["inst"]["lists that are not equal"]
    return faults


def score_right(
    x: Lists, weights: dict[str, Tensor], config: RankerConfig, dtype: torch.dtype = torch.float32
) -> Callable[[ScoreOutput], bool]:
    # bfloat16 rankers may round between their steps; a probability is a score over the temperature, in an exponent.
    close, odds = (2e-5, 1e-3) if dtype == torch.float32 else (2e-2, 2e-2 / min(config.temperature, 1))
    # A number at the edge of what float32 can project is out by one rounding and not by another: 1e30 is far beyond.
    with torch.no_grad():
        exact = reference.score(
            x.inst.double(),
            x.resp.double(),
            {name: value.double() for name, value in weights.items()},
            heads=config.num_heads,
            layers=config.num_layers,
            scope=config.scope,
            temperature=config.temperature,
            norm_first=config.norm_first,
            offsets=x.offsets,
        )
    ends = reference.list_offsets(len(x.resp), len(x.inst), x.resp.device) if x.offsets is None else x.offsets

    def right(got: ScoreOutput) -> bool:
        best = []
        for begin, end in zip(ends[:-1].tolist(), ends[1:].tolist(), strict=True):
            mine = got.scores[begin:end].tolist()
            best.append(mine.index(max(mine)) if mine and max(mine) > -math.inf else -1)
        values = near(got.scores, exact.scores, close) and near(got.probs, exact.probs, odds)
        return values and got.best.tolist() == best

    return right


def score_trial(way: str) -> st.SearchStrategy[Trial]:
    @st.composite
    def make(draw: Any) -> Trial:
        x = draw(lists())
        arguments = x._asdict()
        if way == "SafetyRanker.score":
            ranker = draw(st.sampled_from(RANKERS))
            weights, config, dtype = dict(ranker.named_parameters()), ranker.config, torch.float32
            call: Callable[..., ScoreOutput] = ranker.score
        else:
            scorer = draw(st.sampled_from(SCORERS))
            weights, config, dtype = scorer.weights, scorer.config, scorer.dtype
            call = scorer if way == "PreparedScorer" else lambda **a: srr_fast.score(scorer=scorer, **a)
        name, fault = spoil(draw, arguments, list_faults(x, len(x.resp)) | {"resp": FAULTS | WIDTH_FAULT})
        names = tuple(arguments) if fault in ("meta", "lists that are not equal") else (name,)
        if name == "inst" and fault == "no dimensions":
            names = ("inst", "offsets")
        wanted = None if name else score_right(x, weights, config, dtype)
        return Trial(lambda: call(**arguments), wanted, "score: ", names, f"{way} {name} {fault}")

    return make()


@st.composite
def out_trial(draw: Any) -> Trial:
    """The tensors to write to."""
    x, scorer = draw(lists()), draw(st.sampled_from(SCORERS))
    x = Lists(*(t.float() if t is not None and t.is_floating_point() else t for t in x))
    out = dict(
        scores=torch.full((len(x.resp),), 9.0),
        probs=torch.full((len(x.resp),), 9.0),
        best=torch.full((len(x.inst),), 9),
    )
    own: dict[str, Callable[[Any], Any]] = FAULTS | {
        "one too many": lambda o: torch.cat([o, o.new_zeros(1)]),
        "float64": lambda o: o.double(),
        "a negated view": torch._neg_view,
    }
    if not (len(x.inst) and len(x.resp)):
        del own["a negated view"]
    name = draw(st.sampled_from(("", *out)))
    fault = draw(st.sampled_from(sorted(own))) if name else "right"
    if name:
        out[name] = own[fault](out[name])
    given = ScoreOutput(**out)
    wanted = None if name else score_right(x, scorer.weights, scorer.config, scorer.dtype)
    return Trial(lambda: scorer(*x, out=given), wanted, "score: ", ("out",), f"out {name} {fault}")


@st.composite
def hidden_trial(draw: Any) -> Trial:
    scorer = draw(st.sampled_from(SCORERS))
    B, n = draw(st.integers(0, 3)), draw(st.integers(0, 3))
    t = draw(tokens(d=D, M=B * n, pooling=scorer.config.pooling))
    t = t._replace(states=t.states.nan_to_num(0, 0, 0).clamp(-9, 9), gate=scorer.gate)
    inst = random_tensor(draw, B, D)
    offsets = draw(st.sampled_from((None, torch.arange(B + 1) * n)))
    x = Lists(inst, exact_pool(t), offsets)
    arguments = {"states": t.states, "spans": t.spans, "inst": inst, "offsets": offsets}
    faults = list_faults(x, B * n) | {"states": FAULTS | WIDTH_FAULT, "spans": span_faults(t)}
    name, fault = spoil(draw, arguments, faults)
    names = (name,)
    if fault in ("meta", "lists that are not equal") or (name == "inst" and fault == "no dimensions"):
        names = tuple(arguments)
    wanted = None if name else score_right(x, scorer.weights, scorer.config, scorer.dtype)
    note = f"from_hidden {name} {fault}"
    return Trial(lambda: scorer.from_hidden(**arguments), wanted, "from_hidden: ", names, note)
