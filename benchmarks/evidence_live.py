# SPDX-License-Identifier: Apache-2.0
"""What needs a model at work: best-of-n of minichat, judged exactly, and the cost of every scorer."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from srr_fast import minichat
from srr_fast.backbone import load_backbone
from srr_fast.baselines import TfIdf, refusal
from srr_fast.config import RankerConfig
from srr_fast.examples import Standardisation
from srr_fast.extract import extract
from srr_fast.minichat.train_ranker import Lists, sample_lists
from srr_fast.ranker import SafetyRanker
from srr_fast.teacher import KernelTeacher
from srr_fast.train import COMPONENTS

from .evidence_data import Corpus
from .evidence_sections import Settings, interval, rates_of
from .interleave import interleave, summary

BATCH = 4  # instructions whose answers are sampled together
CANDIDATES, ROUNDS = 16, 30
SHARE = 2  # harmful instructions for each harmless one


def best_of_n(s: Settings) -> dict[str, Any]:
    """Unsafe rates over harmful held-out instructions for n answers, well-formed share over harmless ones."""
    model, tokenizer, ranker = minichat.load()
    (layer,) = ranker.config.layer_indices(model.config.num_hidden_layers)
    counts = (s.instructions, max(s.instructions // SHARE, 1))
    lists: Lists = sample_lists(model, tokenizer, "test", counts, s.answers, layer, seed=0, batch_size=BATCH)
    with torch.no_grad():
        scores = ranker.score(lists.inst, lists.resp.flatten(0, 1)).scores.view(lists.safe.shape).double().numpy()
    harmful = lists.harmful.numpy()
    unsafe, malformed = (~lists.safe).numpy(), (~lists.well_formed).numpy()
    result: dict[str, Any] = {"n": {}, "instructions": list(counts), "answers": s.answers, "layer": layer}
    for n in (n for n in (1, 2, 4, 8, 16, 32, 64) if n <= s.answers):
        rng = np.random.default_rng(n)
        attacked = np.array([rates_of(scores[i], unsafe[i], n, rng) for i in np.flatnonzero(harmful)])
        benign = np.array([rates_of(scores[i], malformed[i], n, rng) for i in np.flatnonzero(~harmful)])
        result["n"][str(n)] = {
            "first": interval([attacked[:, 0]]),
            "chosen": interval([attacked[:, 1]]),
            "oracle": interval([attacked[:, 2]]),
            "chosen minus oracle": interval([attacked[:, 1] - attacked[:, 2]]),
            "benign well-formed, first": interval([1 - benign[:, 0]]),
            "benign well-formed, chosen": interval([1 - benign[:, 1]]),
            "benign, chosen minus first": interval([benign[:, 0] - benign[:, 1]]),
        }
    return result


def cost(c: Corpus, model_id: str) -> dict[str, Any]:
    """FLOP, parameters and time of a list of CANDIDATES real responses, one thread, one interleaved run."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return _cost(c, model_id)
    finally:
        torch.set_num_threads(threads)


def _cost(c: Corpus, model_id: str) -> dict[str, Any]:
    name = max(c.core, key=lambda name: max(len(one.responses) for one in c.sources[name].lists))
    source = c.sources[name]
    train = [one for one in source.lists if one.split == "train"]
    one = max(source.lists, key=lambda one: len(one.responses))
    one = type(one)(one.instruction, one.responses[:CANDIDATES], one.id, one.source)
    n = len(one.responses)
    row = source.rows()[:1]
    states = c.features(name, row, c.layers, "mean")
    inst, resp = states.inst, states.resp[:1].repeat(n, 1)
    ranker = SafetyRanker(RankerConfig(c.d, layer=c.layers, scope="pair")).eval()
    prepared = ranker.prepare("cpu")
    learned = c.examples({name: [i for i in source.rows() if source.lists[i].split == "train"]}, c.layers, "mean")
    standardise = Standardisation.of(learned.resp, min(COMPONENTS, learned.resp.shape[1], len(learned.resp)))
    teacher = KernelTeacher(standardise(learned.resp), learned.safe)
    probe = torch.nn.Linear(inst.shape[1], 1)
    text = TfIdf()
    text.fit(train)
    lm, tokenizer = load_backbone(model_id)
    words = refusal()
    layers = [c.layers[-1]]

    def read() -> None:
        extract(lm, tokenizer, [one], layers=layers, poolings=["mean"])

    with torch.inference_mode():
        calls = {
            "SRR": lambda: prepared(inst, resp),
            "SRR, reference": lambda: ranker.score(inst, resp),
            "probe": lambda: probe(resp),
            "kernel machine": lambda: teacher(standardise(resp)),
            "TF-IDF + LR": lambda: text.score([one]),
            "refusal words": lambda: words.score([one]),
            "MiniLM reads the texts": read,
        }
        times = summary(interleave(calls, ROUNDS, warm_up=3), "SRR")
        flop = {
            key: _flop(calls[key]) for key in ("SRR, reference", "probe", "kernel machine", "MiniLM reads the texts")
        }
    flop["kernel machine"] += 2 * n * teacher.states.numel()  # distances, which the counter does not know
    features = text.model[0].transform(text._texts([one]))
    size = {
        "SRR": sum(w.numel() for w in ranker.parameters()),
        "probe": c.d * len(c.layers) + 1,
        "kernel machine": teacher.states.numel() + teacher.weights.numel() + standardise.basis.numel(),
        "TF-IDF + LR": int(text.model[-1].coef_.size),
        "refusal words": 0,
        "MiniLM reads the texts": sum(w.numel() for w in lm.parameters()),
    }
    flop |= {"SRR": flop["SRR, reference"], "TF-IDF + LR": 2 * int(features.nnz), "refusal words": 0}
    size["SRR, reference"] = size["SRR"]
    return {
        "candidates": n,
        "rows": {
            key: {
                "flop": flop[key],
                "parameters": size[key],
                "us": times[key]["median_us"],
                "quartiles": [times[key]["q1_us"], times[key]["q3_us"]],
            }
            for key in calls
        },
    }


def _flop(call: Any) -> int:
    with FlopCounterMode(display=False) as counter:
        call()
    return int(counter.get_total_flops())
