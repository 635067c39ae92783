# SPDX-License-Identifier: Apache-2.0
"""Whatever is passed in: the right answer, or TypeError / ValueError with op and argument; never silent, never a crash.

Each trial is a call that is right, often through a view, or one with a single fault, which has to be refused.
"""

from __future__ import annotations

import json
import math
import os
import random
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

import srr_fast
from srr_fast import BestOfN, RankerConfig, SafetyRanker, ScoreOutput, TextRanker, reference
from srr_fast.generation import REFUSED
from srr_fast.lists import read_lists, write_lists

from ..cases import STATE_DTYPES, ScoreCase
from ..tiny_models import CHAT_TEMPLATE, VOCAB, WIDTH, block_outputs, tiny, tokenizer
from .check_checkpoints import of_bytes, of_json
from .row import Row

LIMIT_S = 1200.0
EXAMPLES = 500


class Trial(NamedTuple):
    """call: what is tried. wanted: judges its answer; None: it must be refused by ``op``, naming one of ``names``."""

    call: Callable[[], Any]
    wanted: Callable[[Any], bool] | None
    op: str
    names: tuple[str, ...]
    note: str


def judge(trial: Trial) -> str:
    try:
        got = trial.call()
    except (TypeError, ValueError, FileNotFoundError) as error:
        said = str(error)
        assert trial.wanted is None, f"{trial.note}: refused what is right: {said}"
        assert trial.op in said and any(name in said for name in trial.names), f"{trial.note}: says only: {said}"
        return "refused"
    assert trial.wanted is not None, f"{trial.note}: accepted, answered {got!r}"
    assert trial.wanted(got), f"{trial.note}: wrong answer {got!r}"
    return "right"


def trials(strategy: st.SearchStrategy[Trial], examples: int) -> Counter[str]:
    """How many were answered rightly, how many refused; raises for the first that was neither."""
    found = Counter[str]()

    @settings(
        max_examples=examples,
        database=None,
        deadline=None,
        derandomize=True,
        report_multiple_bugs=False,
        suppress_health_check=list(HealthCheck),
    )
    @given(strategy)
    def every(trial: Trial) -> None:
        found[judge(trial)] += 1

    every()
    return found


# ---- tensors ------------------------------------------------------------------------------------------------------


class Subclass(torch.Tensor):
    pass


def view(kind: str, x: Tensor) -> Tensor:
    """The same values in another guise."""
    if kind == "strided":
        wide = x.new_zeros(*x.shape[:-1], 2 * x.shape[-1] + 1)[..., 1::2]
        return wide.copy_(x)
    if kind == "misaligned":
        return x.new_zeros(x.numel() + 1)[1:].view(x.shape).copy_(x)
    if kind == "transposed":
        return x.t().contiguous().t() if x.dim() == 2 else x
    if kind == "negated":
        return torch._neg_view(-x)
    if kind == "part of a conjugate" and x.dtype in (torch.float32, torch.float64):
        return torch.complex(x, -x).conj().imag
    if kind == "subclass":
        return x.as_subclass(Subclass)
    if kind == "inference":
        with torch.inference_mode():
            return x.clone()
    if kind == "requires_grad" and x.is_floating_point():
        return x.clone().requires_grad_()
    if kind == "parameter" and x.is_floating_point():
        return torch.nn.Parameter(x.clone())
    return x


VIEWS = (
    *("plain", "strided", "misaligned", "transposed", "negated", "part of a conjugate"),
    *("subclass", "inference", "requires_grad", "parameter"),
)
FAULTS: dict[str, Callable[[Tensor], Any]] = {
    "None": lambda x: None,
    "a list": lambda x: x.tolist(),
    "a string": lambda x: "tensor",
    "an array": lambda x: x.double().numpy(),
    "int32": lambda x: x.int(),
    "bool": lambda x: x.bool(),
    "complex": lambda x: x.to(torch.complex64).conj(),
    "float8": lambda x: x.to(torch.float8_e4m3fn),
    "sparse": lambda x: x.to_sparse(),
    "compressed": lambda x: torch.eye(3, dtype=x.dtype).to_sparse_csr(),
    "nested": lambda x: torch.nested.nested_tensor([x.new_zeros(2), x.new_zeros(3)]),
    "quantized": lambda x: torch.quantize_per_tensor(x.float(), 0.1, 0, torch.qint8),
    "meta": lambda x: x.to("meta"),
    "no dimensions": lambda x: x.new_zeros(()),
    "five dimensions": lambda x: x.new_zeros(1, 1, 1, 1, 1),
}
WIDTH_FAULT = {"another width": lambda x: torch.cat([x, x[..., :1]], -1)}


def random_tensor(draw: Any, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(draw(st.integers(0, 1 << 40)))
    x = torch.randn(*shape, generator=generator)
    if x.numel() and draw(st.integers(0, 5)) == 0:
        x.view(-1)[draw(st.integers(0, x.numel() - 1))] = draw(st.sampled_from((math.nan, math.inf, -math.inf, 1e30)))
    return x.to(dtype)


def spoil(draw: Any, tensors: dict[str, Any], faults: dict[str, dict[str, Callable[[Any], Any]]]) -> tuple[str, str]:
    """Puts one fault into one of the arguments, or views into all of them. Returns the argument and the fault."""
    if draw(st.booleans()):
        for name, value in tensors.items():
            if isinstance(value, Tensor):
                tensors[name] = view(draw(st.sampled_from(VIEWS)), value)
        return "", "right"
    name = draw(st.sampled_from(sorted(faults)))
    fault = draw(st.sampled_from(sorted(faults[name])))
    tensors[name] = faults[name][fault](tensors[name])
    return name, fault


def near(got: Tensor, want: Tensor, tolerance: float) -> bool:
    got, want = got.detach().double(), want.detach().double()
    return torch.allclose(got, want, rtol=tolerance, atol=tolerance, equal_nan=True)


DTYPES = (*STATE_DTYPES, torch.float64)


class Tokens(NamedTuple):
    states: Tensor
    spans: Tensor
    pooling: str
    gate: Tensor | None


@st.composite
def tokens(draw: Any, d: int | None = None, M: int | None = None, pooling: str | None = None) -> Tokens:
    """Valid arguments for pooling: padded, or packed with spans within the buffer."""
    M = draw(st.integers(0, 4)) if M is None else M
    d = d or draw(st.sampled_from((1, 2, 7, 16, 17, 40)))
    T, packed = draw(st.integers(0, 6)), draw(st.booleans())
    shape = (T, d) if packed else (M, T, d)
    states = random_tensor(draw, *shape, dtype=draw(st.sampled_from(DTYPES)))
    ends = [sorted(draw(st.tuples(st.integers(0, T), st.integers(0, T)))) for _ in range(M)]
    pooling = pooling or draw(st.sampled_from(reference.POOLINGS))
    gate = random_tensor(draw, d + 1).nan_to_num(0, 0, 0).clamp(-9, 9) if pooling == "gated" else None
    return Tokens(states, torch.tensor(ends, dtype=torch.int64).reshape(M, 2), pooling, gate)


def exact_pool(t: Tokens) -> Tensor:
    return reference.pool(t.states.double(), t.spans, t.pooling, None if t.gate is None else t.gate.double())


def span_faults(t: Tokens) -> dict[str, Callable[[Any], Any]]:
    T = t.states.shape[-2]
    faults = {**FAULTS, "float32": lambda x: x.float(), "three columns": lambda x: torch.cat([x, x[:, :1]], 1)}
    if len(t.spans):
        faults["before the first"] = lambda x: x - (x[0, 0] + 1)
        faults["past the last"] = lambda x: x + torch.tensor([0, T + 1])
        faults["backwards"] = lambda x: torch.cat([x, torch.tensor([[1, 0]])])[-len(x) :]
    if t.states.dim() == 3:
        faults["a row too many"] = lambda x: torch.cat([x, x.new_zeros(1, 2)])
    return faults


def pool_faults(t: Tokens) -> dict[str, dict[str, Callable[[Any], Any]]]:
    pooling = {repr(value): lambda _, v=value: v for value in ("max", "", None, 3, ["mean"], "mean\0", np.zeros(2))}
    faults = {"states": FAULTS, "spans": span_faults(t), "pooling": pooling}
    if t.gate is not None:
        faults["gate"] = FAULTS | WIDTH_FAULT
    else:
        faults["gate"] = {"not wanted": lambda _: torch.zeros(t.states.shape[-1] + 1)}
    return faults


def grown(bound: float) -> float:
    """Relative tolerance for a mean in float32 of numbers up to a bound that is part of the tensors."""
    return 1e-5 * max(1.0, bound)


def pool_right(t: Tokens) -> Callable[[Tensor], bool]:
    exact, finite = exact_pool(t), t.states.double().nan_to_num(0, 0, 0).abs()
    bound = float(finite.amax()) if finite.numel() else 1.0
    if bound > 1e20 and t.pooling == "gated":  # a gate's logit of such a number depends on the order of its sum
        return lambda got: got.shape == exact.shape
    return lambda got: got.shape == exact.shape and near(got, exact, grown(bound if bound > 1e20 else 1.0))


@st.composite
def pool_trial(draw: Any) -> Trial:
    t = draw(tokens())
    arguments = t._asdict()
    name, fault = spoil(draw, arguments, pool_faults(t))
    names = ("states", "spans", "gate", "on") if fault == "meta" else (name,)
    wanted = None if name else pool_right(t)
    return Trial(lambda: srr_fast.pool(**arguments), wanted, "pool: ", names, f"pool {name} {fault}")


@st.composite
def pool_offsets_trial(draw: Any) -> Trial:
    """Packed states by offsets."""
    d, T = draw(st.sampled_from((1, 17))), draw(st.integers(0, 9))
    states = random_tensor(draw, T, d, dtype=draw(st.sampled_from(DTYPES))).nan_to_num(0, 0, 0).clamp(-9, 9)
    steps = torch.tensor(sorted(draw(st.lists(st.integers(0, T), min_size=1, max_size=5))))
    t = Tokens(states, torch.stack([steps[:-1], steps[1:]], 1), "mean", None)
    faults = {name: fault for name, fault in FAULTS.items() if name != "None"}
    faults["none at all"] = lambda x: x[:0]
    if len(steps) > 1:  # otherwise there is no candidate to whom they would matter
        faults |= {"past the last": lambda x: x + T + 1, "below 0": lambda x: x - T - 1}
    if len(steps) > 1 and steps[0] != steps[-1]:
        faults["decreasing"] = lambda x: x.flip(0)
    arguments: dict[str, Any] = {"states": states, "offsets": steps}
    name, fault = spoil(draw, arguments, {"offsets": faults, "states": FAULTS})
    names = ("states", "offsets") if fault == "meta" else (name,)
    wanted = None if name else pool_right(t)
    return Trial(lambda: srr_fast.pool(**arguments), wanted, "pool: ", names, f"pool {name} {fault}")


@st.composite
def update_trial(draw: Any) -> Trial:
    t = draw(tokens())
    t = t._replace(states=t.states.nan_to_num(0, 0, 0).clamp(-9, 9))
    M, d = len(t.spans), t.states.shape[-1]
    dtype = reference.accumulation_dtype(t.states.dtype)
    own: dict[str, Callable[[Any], Any]] = {
        "a negated view": torch._neg_view,
        "a leaf with gradient": lambda x: x.requires_grad_(),
        "float16": lambda x: x.half(),
        "one row too many": lambda x: x.new_zeros(M + 1, *x.shape[1:]),
    }
    faults = pool_faults(t) | {"acc": FAULTS | own | WIDTH_FAULT, "weight": FAULTS | own}
    written = {"acc": torch.zeros(M, d, dtype=dtype), "weight": torch.zeros(M, dtype=dtype)}
    arguments = t._asdict()
    if draw(st.booleans()):
        name, fault = spoil(draw, arguments, pool_faults(t))
    else:
        name = draw(st.sampled_from(("acc", "weight")))
        fault = draw(st.sampled_from(sorted(faults[name])))
        written[name] = faults[name][fault](written[name])
    wants_grad = any(isinstance(v, Tensor) and v.requires_grad for v in arguments.values())
    names = ("acc", "weight", "states", "spans", "gate") if fault == "meta" or name == "states" else (name,)

    def call() -> tuple[Tensor, Tensor]:
        srr_fast.pool_update_(**written, **arguments)
        return written["acc"], written["weight"]

    exact = reference.pool_sums(t.states.double(), t.spans, t.pooling, None if t.gate is None else t.gate.double())

    def right(got: tuple[Tensor, Tensor]) -> bool:
        return near(got[0], exact[0], 1e-4) and near(got[1], exact[1], 1e-4) and got[0].requires_grad <= wants_grad

    return Trial(call, None if name else right, "pool_update_: ", names, f"pool_update_ {name} {fault}")


# ---- scorers ------------------------------------------------------------------------------------------------------

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


# ---- plain values -------------------------------------------------------------------------------------------------

ODD: tuple[Any, ...] = (None, True, "", "x", b"x", [], {}, -1, 1.5, math.nan, math.inf, 10**400, object(), np.zeros(2))
FIELDS: dict[str, tuple[tuple[Any, ...], tuple[Any, ...]]] = {  # right values, odd ones that are right too
    "hidden_size": ((1, 8, 1 << 20), ()),
    "layer": ((1, 0.5, (1, 0.25), [3], 1 << 16), ()),
    "pooling": (reference.POOLINGS, ()),
    "scope": (reference.SCOPES, ()),
    "proj_dim": ((12, 24, 512), ()),
    "num_layers": ((0, 1, 64), ()),
    "num_heads": ((1, 2, 4), ()),
    "ffn_dim": ((None, 1, 1 << 16), (None,)),
    "norm_first": ((True, False), (True,)),
    "temperature": ((1e-6, 1, 0.5, 1e30), (1.5,)),
    "dropout": ((0, 0.0, 0.999), ()),
}


@st.composite
def config_trial(draw: Any) -> Trial:
    values = {name: draw(st.sampled_from(right)) for name, (right, _) in FIELDS.items()}
    name = draw(st.sampled_from(("", *FIELDS)))
    if name:
        allowed = FIELDS[name][1]
        values[name] = draw(st.sampled_from([odd for odd in ODD if repr(odd) not in map(repr, allowed)]))

    def right(config: RankerConfig) -> bool:
        wanted = values | {"ffn_dim": values["ffn_dim"] or 4 * values["proj_dim"]}
        wanted["layer"] = tuple(values["layer"]) if isinstance(values["layer"], list) else values["layer"]
        return config.to_dict() == wanted and RankerConfig.from_dict(config.to_dict()) == config

    note = f"RankerConfig {name}={values.get(name)!r}"
    return Trial(lambda: RankerConfig(**values), None if name else right, "RankerConfig: ", (name,), note)


@st.composite
def ranker_trial(draw: Any) -> Trial:
    """The constructor's and prepare's arguments."""
    right: dict[str, tuple[Any, ...]] = {
        "calibration": (None, (1.0, 0.0), [2, -1]),
        "model_id": (None, "", "a/b"),
        "model_fingerprint": (None, "", "abc"),
        "metrics": (None, {}, {"a": 1}),
        "device": (None, "cpu", torch.device("cpu")),
        "dtype": (torch.float32, torch.bfloat16),
    }
    odd: dict[str, tuple[Any, ...]] = {
        "calibration": ((), (1,), (0, 1), (-1.0, 0.0), (math.nan, 0.0), (1, math.inf), "ab", {1: 2}, 3, (True, 1)),
        "model_id": (3, b"a", ["a"]),
        "model_fingerprint": (3, b"a", ["a"]),
        "metrics": ([], "a", 3),
        "device": ("nowhere", 1.5, "cpu:x", []),
        "dtype": (torch.float16, torch.float64, torch.int8, "float32", None, 32),
    }
    values = {name: draw(st.sampled_from(values)) for name, values in right.items()}
    name = draw(st.sampled_from(("", *right)))
    if name:
        values[name] = draw(st.sampled_from(odd[name]))
    config = RankerConfig(4, proj_dim=4)

    def call() -> Any:
        options = dict(values)
        device, dtype = options.pop("device"), options.pop("dtype")
        return SafetyRanker(config, **options).prepare(device, dtype)

    def is_right(scorer: Any) -> bool:
        return scorer.dtype == values["dtype"] and scorer.config == config

    op = "prepare: " if name in ("device", "dtype") else "SafetyRanker: "
    return Trial(call, None if name else is_right, op, (name,), f"SafetyRanker {name}={values.get(name)!r}")


@st.composite
def load_trial(draw: Any, folder: Path) -> Trial:
    """Folders and ids that are none."""
    text = draw(st.text(max_size=40).filter(lambda text: not os.path.exists(text.replace("\0", "") or "x")))
    where = draw(st.sampled_from((text, Path(text.replace("\0", "") + "x"), "a/" + text, None, 3, b"a", [text])))
    revision = draw(st.sampled_from((None, "main", "../..", "", 3)))
    if draw(st.integers(0, 9)) == 0:
        call, wanted = lambda: SafetyRanker.from_pretrained(folder), lambda ranker: isinstance(ranker, SafetyRanker)
        return Trial(call, wanted, "", (), "load the bundled ranker")
    call = lambda: SafetyRanker.from_pretrained(where, revision=revision)  # noqa: E731
    return Trial(call, None, "from_pretrained: ", ("",), f"load {where!r} at {revision!r}")


# ---- texts --------------------------------------------------------------------------------------------------------

LINE = {
    "id": "a-1",
    "source": "a",
    "split": "train",
    "instruction": "how?",
    "responses": [
        {"text": "so", "safe": 1},
        {"text": "no", "safe": False, "note": [1]},
        {"text": "well", "safe": None},
    ],
    "category": "b",
    "more": {"x": [1.5, None]},
}


@st.composite
def lists_trial(draw: Any, folder: Path) -> Trial:
    """A file of mutated rows: read back as written once read, or refused with file and line."""
    rng = draw(st.randoms(use_true_random=False))
    seeded = random.Random(rng.getrandbits(64))
    rows = [LINE, LINE | {"id": "a-2"}, LINE | {"id": "a-3"}]
    lines = [json.dumps(of_json(seeded, row) if seeded.random() < 0.3 else row).encode() for row in rows]
    data = b"\n".join(lines)
    if seeded.random() < 0.4:
        data = of_bytes(seeded, data)
    path, again = folder / "a.jsonl", folder / "again.jsonl"
    path.write_bytes(data)

    def call() -> str:
        import warnings

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of responses without text
            try:
                found = read_lists(path)
            except ValueError as error:
                assert str(path) in str(error), error
                return "refused"
            write_lists(again, found)
            assert read_lists(again) == found
            return "right"

    return Trial(call, lambda got: got in ("refused", "right"), "", (), f"lists {data!r}")


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


# ---- the checks ---------------------------------------------------------------------------------------------------


def entries(folder: Path) -> dict[str, st.SearchStrategy[Trial]]:
    from srr_fast import minichat

    return {
        "pool": pool_trial(),
        "pool by offsets": pool_offsets_trial(),
        "pool_update_": update_trial(),
        "score": score_trial("score"),
        "PreparedScorer": score_trial("PreparedScorer"),
        "PreparedScorer, out=": out_trial(),
        "PreparedScorer.from_hidden": hidden_trial(),
        "SafetyRanker.score": score_trial("SafetyRanker.score"),
        "SafetyRanker(), prepare": ranker_trial(),
        "SafetyRanker.from_pretrained": load_trial(minichat.RANKER_FOLDER),
        "SafetyRanker.rank_many, safety, save_pretrained": method_trial(folder),
        "RankerConfig": config_trial(),
        "read_lists": lists_trial(folder),
        "TextRanker.rank, token ids": text_trial(False),
        "TextRanker.rank, tokenizer": text_trial(True),
        "BestOfN.generate": generate_trial(),
    }


def check_entry_points() -> Iterator[Row]:
    os.environ["HF_HUB_OFFLINE"] = "1"
    with tempfile.TemporaryDirectory() as name:
        for entry, strategy in entries(Path(name)).items():
            try:
                found = trials(strategy, EXAMPLES)
                figure, ok = ", ".join(f"{count} {what}" for what, count in sorted(found.items())), True
                ok = found.total() >= EXAMPLES
            except Exception as error:  # whatever it is, it is what was looked for
                figure, ok = f"{type(error).__name__}: {error}"[:300], False
            yield Row(f"{entry}: {EXAMPLES} inputs or more", figure, "each answered rightly or refused", ok)
