# SPDX-License-Identifier: Apache-2.0
"""A ranker and what it has to beat, scored on the same labelled lists: the content of ``metrics.json``."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from . import baselines, summary
from .backbone import is_encoder
from .baselines import Baseline, Key, States
from .decoder import layers_to_read
from .guards import load_guard
from .lists import LabelledList, labelled, split_of
from .metrics import Array

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from .extract import Features
    from .ranker import SafetyRanker

BASELINES = (
    "random",
    "first",
    "shortest",
    "longest",
    "refusal",
    "tfidf",
    "cosine",
    "probe",
    "last-layer",
    "cross-encoder",
)
LEARNING = ("tfidf", "probe", "last-layer", "cross-encoder")
GUARD = "guard:"
GATED = "gated"


def evaluate(
    ranker: SafetyRanker,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    lists: Sequence[LabelledList],
    *,
    names: Sequence[str] = (),
    fit: Sequence[LabelledList] = (),
    backbone: str | None = None,
    cache_dir: Path | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """The report on a ranker and the baselines named, of lists that :func:`select` gave.

    fit:       labelled lists for the baselines that learn; all of them are used, see :func:`to_learn_from`.
    backbone:  hub id or folder of the model, for the baseline that fine-tunes it.
    cache_dir: of :func:`srr_fast.extract.extract`. seed: of what is drawn: scores, folds, weights, resamples.

    Returns the top1, auc, ndcg of :func:`summary.summarise`, and under ``unsafe_rate`` and ``calibration`` (None for a
    ranker without) what those functions give; ``baselines`` has by name the same metrics, and ``ranker_minus``, the
    paired differences. Sources without a mixed list have None, and are counted by a warning.
    Raises ValueError for a name that is none, or nothing to fit on, before anything is computed.
    """
    keys = layer_keys(ranker, model)
    last_layer = model.config.get_text_config(decoder=True).num_hidden_layers
    more = [(last_layer, "mean")] * ("cosine" in names) + [(last_layer, keys[0][1])] * ("last-layer" in names)
    states = Extraction(model, tokenizer, [*keys, *more], cache_dir)
    others = [
        _baseline(name, states=states, keys=keys, last_layer=last_layer, backbone=backbone, seed=seed) for name in names
    ]
    if learners := [one for one in others if one.learns]:
        baselines.labels(learners[0].name, fit)

    gated = ranker.config.pooling == GATED
    scores = _by_tokens(ranker, model, tokenizer, lists) if gated else score(ranker, states, keys, lists)
    values = summary.values_of(lists, scores)
    _warn_of(lists, values, scores)
    safety = ranker.safety(torch.from_numpy(scores))
    report: dict[str, Any] = {
        **summary.summarise(values, seed=seed),
        "ranker": _about(ranker, keys),
        "unsafe_rate": summary.summarise(summary.unsafe_rates(lists, scores), summary.RATES, seed=seed),
        "calibration": None if safety is None else summary.calibration(lists, safety.numpy()),
        "baselines": {},
    }
    for one in others:
        one.fit(fit if one.learns else ())
        theirs = summary.values_of(lists, one.score(lists))
        report["baselines"][one.name] = {
            **summary.summarise(theirs, seed=seed),
            "ranker_minus": summary.summarise(summary.minus(values, theirs), seed=seed),
        }
    return report


def select(lists: Sequence[LabelledList], split: str | None = None) -> list[LabelledList]:
    """The lists of a split (None: all) with their labelled responses; a warning counts what is left out.

    Raises ValueError for a list that is there twice, and when none is left.
    """
    kept = labelled("eval", lists, split)
    if not kept:
        raise ValueError(f"eval: no list {f'of split {split} ' if split else ''}has a labelled response")
    seen: set[tuple[str, str]] = set()
    for one in kept:
        if (one.source, one.id) in seen:
            raise ValueError(f"eval: list {one.id} of source {one.source} is there twice")
        seen.add((one.source, one.id))
    return kept


def to_learn_from(lists: Sequence[LabelledList], evaluated: Sequence[LabelledList]) -> list[LabelledList]:
    """The lists of the train split, labelled responses only, whose instruction is none of those evaluated.

    Raises ValueError when there is none.
    """
    instructions = {one.instruction for one in evaluated}
    kept = [one for one in lists if split_of(one) == "train" and one.instruction not in instructions]
    if not kept:
        raise ValueError(
            "eval: baselines that learn want lists of split train that are not evaluated; "
            "evaluate another split, or give files to fit on"
        )
    return select(kept)


class Extraction:
    """States of lists under one model, read once for all who ask: a :data:`baselines.States`.

    keys: the (layer, pooling) that somebody reads.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        keys: Sequence[Key],
        cache_dir: Path | None = None,
    ) -> None:
        from .extract import extract

        layers, poolings = (sorted(set(part)) for part in zip(*keys, strict=True))
        self._extract = functools.partial(
            extract, model, tokenizer, layers=layers, poolings=poolings, cache_dir=cache_dir
        )
        self._kept: list[tuple[Sequence[LabelledList], Mapping[Key, Features]]] = []

    def __call__(self, lists: Sequence[LabelledList]) -> Mapping[Key, Features]:
        for known, features in self._kept:
            if known is lists:
                return features
        self._kept = [*self._kept[-1:], (lists, self._extract(lists))]  # two: lists to fit on, and lists to score
        return self._kept[-1][1]


def layer_keys(ranker: SafetyRanker, model: PreTrainedModel) -> list[Key]:
    """The (layer, pooling) whose states, concatenated, the ranker reads from this model; means for a gated ranker,
    whose own pooling cannot be extracted without it. Raises ValueError for a model it cannot read.
    """
    layers_to_read(model, ranker.config)
    L = model.config.get_text_config(decoder=True).num_hidden_layers
    pooling = "mean" if ranker.config.pooling == GATED else ranker.config.pooling
    return [(k, pooling) for k in ranker.config.layer_indices(L, last=L if is_encoder("eval", model) else L - 1)]


def score(ranker: SafetyRanker, states: States, keys: Sequence[Key], lists: Sequence[LabelledList]) -> Array:
    """The ranker's scores [M], -inf for a response that is out. keys: see :func:`layer_keys`."""
    found = states(lists)
    inst, resp = (torch.cat([getattr(found[key], name) for key in keys], 1) for name in ("inst", "resp"))
    return ranker.prepare("cpu")(inst, resp, found[keys[0]].offsets).scores.double().numpy()


def _by_tokens(
    ranker: SafetyRanker, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, lists: Sequence[LabelledList]
) -> Array:
    """As :func:`score`, from the tokens' states."""
    texts = [[response.text for response in one.responses] for one in lists]
    ranked = ranker.rank_many(model, tokenizer, [one.instruction for one in lists], texts)
    return np.array([r.score for one in ranked for r in sorted(one, key=lambda r: r.index)], np.float64)


def check_names(names: Sequence[str]) -> None:
    """ValueError unless every name is one of BASELINES or ``guard:ID``, and none is there twice."""
    for name in names:
        if name not in BASELINES and not (name.startswith(GUARD) and name != GUARD):
            raise ValueError(f"eval: baseline must be one of {', '.join(BASELINES)} or {GUARD}ID, got {name}")
    if len(set(names)) < len(names):
        raise ValueError(f"eval: a baseline is named twice: {' '.join(names)}")


def _baseline(
    name: str, *, states: States, keys: Sequence[Key], last_layer: int, backbone: str | None, seed: int
) -> Baseline:
    check_names([name])
    if name.startswith(GUARD):
        return baselines.GuardModel(load_guard(name.removeprefix(GUARD)))
    make: dict[str, Callable[[], Baseline]] = {
        "random": lambda: baselines.Random(seed),
        "first": baselines.first,
        "shortest": baselines.shortest,
        "longest": baselines.longest,
        "refusal": baselines.refusal,
        "tfidf": baselines.TfIdf,
        "cosine": lambda: baselines.Cosine(states, last_layer),
        "probe": lambda: baselines.Probe("probe", states, keys),
        "last-layer": lambda: baselines.Probe("last-layer", states, [(last_layer, keys[0][1])]),
        "cross-encoder": lambda: baselines.CrossEncoder(_given(backbone), seed=seed),
    }
    return make[name]()


def _given(backbone: str | None) -> str:
    if backbone is None:
        raise ValueError("eval: the baseline cross-encoder wants the hub id or folder of a model to fine-tune")
    return backbone


def _warn_of(lists: Sequence[LabelledList], values: summary.Values, scores: Array) -> None:
    if empty := [name for name, rows in values.items() if not len(rows)]:
        warnings.warn(
            f"eval: {len(empty)} of {len(values)} sources have no list with a safe and an unsafe response, "
            f"and no metrics: {', '.join(empty)}",
            stacklevel=3,
        )
    if out := int(np.isneginf(scores).sum()):
        warnings.warn(f"eval: {out} of {len(scores)} responses have no finite state and come last", stacklevel=3)


def _about(ranker: SafetyRanker, keys: Sequence[Key]) -> dict[str, Any]:
    return {
        "model_id": ranker.model_id,
        "model_fingerprint": ranker.model_fingerprint,
        "reading_fingerprint": ranker.reading_fingerprint,
        "layers": [k for k, _ in keys],
        "parameters": sum(weight.numel() for weight in ranker.parameters()),
        **{name: value for name, value in ranker.config.to_dict().items() if name != "layer"},
    }
