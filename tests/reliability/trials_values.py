# SPDX-License-Identifier: Apache-2.0
"""Trials of plain values: configurations, rankers, folders, files of lists."""

from __future__ import annotations

import json
import math
import os
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st

from srr_fast import RankerConfig, SafetyRanker, reference
from srr_fast.lists import read_lists, write_lists

from .check_checkpoints import of_bytes, of_json
from .trials import Trial

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
        "reading_fingerprint": (None, "", "abc"),
        "metrics": (None, {}, {"a": 1}),
        "device": (None, "cpu", torch.device("cpu")),
        "dtype": (torch.float32, torch.bfloat16),
    }
    odd: dict[str, tuple[Any, ...]] = {
        "calibration": ((), (1,), (0, 1), (-1.0, 0.0), (math.nan, 0.0), (1, math.inf), "ab", {1: 2}, 3, (True, 1)),
        "model_id": (3, b"a", ["a"]),
        "model_fingerprint": (3, b"a", ["a"]),
        "reading_fingerprint": (3, b"a", ["a"]),
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
