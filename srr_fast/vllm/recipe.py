# SPDX-License-Identifier: Apache-2.0
"""What the library and the server share: one engine samples, another reads the states of what was sampled.

Two engines, because an engine that extracts states while it decodes can repeat tokens (vLLM issue 56417). The reader
only ever reads prompts; with prefix caching the instruction is read once for all its candidates.
"""

from __future__ import annotations

import math
import uuid
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from transformers import AutoConfig

from .. import reference
from ..ranker import Calibration, SafetyRanker
from ..results import BestOfNResult, Candidate, Timings, choose

CONNECTOR = "SrrFastPoolingConnector"
CONNECTOR_MODULE, CONNECTOR_CLASS = "srr_fast.vllm.connector", "PoolingConnector"
RANK = "srr_fast_rank"  # the worker's method
WAIT_S = 0.001  # between two questions for states: they come one step after the engine's answer
LONGEST_WAIT_S = 60.0

Ids = Sequence[int]


class Readings(NamedTuple):
    """keys: of the pooled states, one list per instruction. prompts, options: of one request per response."""

    keys: list[list[str]]
    prompts: list[Any]
    options: list[Any]


def readings(instructions: Sequence[Ids], responses: Sequence[Sequence[Ids]]) -> Readings:
    """The requests that make the reader pool these responses. All are token ids."""
    from vllm import SamplingParams

    job, made = uuid.uuid4().hex, Readings([], [], [])
    for b, (prompt, answers) in enumerate(zip(instructions, responses, strict=True)):
        made.keys.append([f"{job}:{b}:{i}" for i in range(len(answers))])
        for key, answer in zip(made.keys[-1], answers, strict=True):
            ours = {"kv_transfer_params": {"srr_fast": {"key": key, "prompt": len(prompt)}}}
            made.prompts.append({"prompt_token_ids": [*prompt, *answer]})
            made.options.append(SamplingParams(max_tokens=1, temperature=0, detokenize=False, extra_args=ours))
    return made


def pooled_tokens(token_ids: Ids) -> list[int]:
    """What is pooled of a sampled candidate: its last token, the one that ended it, never was an input."""
    return list(token_ids)[:-1]


def results(
    drawn: Sequence[Sequence[tuple[str, Ids]]],
    ranked: Sequence[Sequence[Sequence[float]]],
    calibration: Calibration | None,
    min_safety: float | None,
    fallback: str | None,
    timings: Timings,
) -> list[BestOfNResult]:
    """drawn: text and tokens of each candidate of each prompt. ranked: score and probability of each."""
    made = []
    for row, pairs in zip(drawn, ranked, strict=True):
        candidates = [
            Candidate(text, list(ids), score, prob, _safety(score, calibration), len(ids))
            for (text, ids), (score, prob) in zip(row, pairs, strict=True)
        ]
        finite = [i for i, one in enumerate(candidates) if math.isfinite(one.score)]
        best = max(finite, key=lambda i: (candidates[i].score, -i), default=-1)
        made.append(choose(candidates, best, min_safety, fallback, timings))
    return made


def reader_options(model: str, ranker: str) -> dict[str, Any]:
    """Options of a ``vllm.LLM``, and under the same names of a server, that make it pool and score what this ranker
    reads. Raises ValueError for a ranker of another model."""
    scorer = SafetyRanker.from_pretrained(ranker)
    config = AutoConfig.from_pretrained(model, trust_remote_code=False).get_text_config(decoder=True)
    if scorer.config.hidden_size != config.hidden_size:
        raise ValueError(
            f"srr_fast.vllm: the ranker reads states of width {scorer.config.hidden_size}, the model's are "
            f"{config.hidden_size} wide"
        )
    layers = list(scorer.config.layer_indices(config.num_hidden_layers))
    return {
        "speculative_config": {
            "method": "extract_hidden_states",
            "num_speculative_tokens": 1,
            "draft_model_config": {"hf_config": {"eagle_aux_hidden_state_layer_ids": layers}},
        },
        "kv_transfer_config": {
            "kv_connector": CONNECTOR_CLASS,
            "kv_connector_module_path": CONNECTOR_MODULE,
            "kv_role": "kv_producer",
            "kv_connector_extra_config": {"ranker": ranker},
        },
        "worker_extension_cls": f"{CONNECTOR_MODULE}.RankWorker",
        "enable_prefix_caching": True,
    }


def _safety(score: float, calibration: Calibration | None) -> float | None:
    return None if calibration is None else float(reference.calibrate(torch.tensor(score), *calibration))
