# SPDX-License-Identifier: Apache-2.0
"""What is measured: of every section the fits it needs, and how their scores become numbers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np
import torch

from srr_fast import baselines, metrics, summary
from srr_fast.judges import refuses
from srr_fast.train import fit_calibration

from .evidence_data import FAIRNESS, OVERREFUSAL, Corpus, Row
from .evidence_jobs import Job, Scores, list_values

ABLATED = ("saferlhf_mini", "safetext")
LONG = "gptfuzz"  # its lists are long enough to choose among few or many
DRAWS = 100
SIZES = (10, 30, 100, 300, -1, None)
SRR, TFIDF = "SRR", "TF-IDF + LR"
KERNEL, LAST = "kernel machine", "kernel machine, last layer"
PAPER, PAPER_TOKEN = "listwise, mean", "listwise, last token"


@dataclass(frozen=True)
class Settings:
    """How much. steps and epochs: None is the default of ``srr-fast train``."""

    folds: int = 5
    seeds: int = 3
    steps: int | None = None
    epochs: int | None = None
    ablation_folds: int = 1
    sizes: tuple[int | None, ...] = SIZES
    draws: int = 3  # of the lists to learn from
    most: int | None = None
    instructions: int = 60
    answers: int = 64

    @classmethod
    def quick(cls) -> Settings:
        """Everything once, numbers that mean nothing."""
        return cls(
            folds=2, seeds=1, steps=20, epochs=2, ablation_folds=1, sizes=(10, None), draws=1, most=20,
            instructions=4, answers=8,
        )  # fmt: skip


class Part(NamedTuple):
    """A fit and the sources of which its scores are wanted."""

    job: Job
    sources: tuple[str, ...]


Plan = dict[Any, list[Part]]
Found = dict[Any, Scores]


class Section(NamedTuple):
    """plan: the fits by what they are called; measure: numbers from their scores."""

    plan: Callable[[Corpus, Settings], Plan]
    measure: Callable[[Corpus, Settings, Found], dict[str, Any]]


def cv(
    c: Corpus, s: Settings, learner: str, sources: Sequence[str], tests: Sequence[str] = (), **more: Any
) -> list[Part]:
    """A fit per fold on all of the sources."""
    folds = more.pop("folds", s.folds)
    tests = tuple(tests) or tuple(sources)
    return [Part(job(c, s, learner, sources, tests, f"fold {fold}", **more), tests) for fold in range(folds)]


def job(
    c: Corpus, s: Settings, learner: str, sources: Sequence[str], tests: Sequence[str], part: str, **more: Any
) -> Job:
    options = dict(more.pop("options", {}))
    if learner in ("distilled", "listwise", "pairwise", "pointwise"):
        options.setdefault("scope", "list" if learner == "listwise" else "pair")
        given = {"steps": s.steps} if learner == "distilled" else {"epochs": s.epochs}
        options |= {name: value for name, value in given.items() if value is not None}
    layers = () if learner in ("tfidf", "cross-encoder") else tuple(more.pop("layers", c.layers))
    return Job(learner, tuple(sources), tuple(tests), part, layers, options=tuple(sorted(options.items())), **more)


def each(c: Corpus, s: Settings, learner: str, names: Sequence[str], **more: Any) -> list[Part]:
    """Per source its own fits, on the same source."""
    wide = learner == "kernel" and not more  # the matrix across sources reads the same fits
    found = []
    for name in names:
        parts = cv(c, s, learner, [name], c.harm if wide else [name], **more)
        found += [part._replace(sources=(name,)) for part in parts]
    return found


def middle(c: Corpus) -> int:
    return max(c.L // 2, 1)


def values(c: Corpus, scores: Scores) -> dict[str, dict[Row, np.ndarray]]:
    return list_values(c, scores)


def arrays(found: Mapping[str, Mapping[Row, np.ndarray]]) -> dict[str, np.ndarray]:
    return {name: np.array([own[i] for i in sorted(own)]).reshape(-1, 3) for name, own in found.items()}


def table(c: Corpus, scores: Scores) -> dict[str, Any]:
    return summary.summarise(arrays(values(c, scores)))


def difference(c: Corpus, one: Scores, other: Scores) -> dict[str, Any]:
    """Paired, of the lists that both have."""
    first, second = values(c, one), values(c, other)
    rows = {name: sorted(first[name].keys() & second[name].keys()) for name in first if name in second}
    return summary.summarise(
        {name: np.array([first[name][i] - second[name][i] for i in own]).reshape(-1, 3) for name, own in rows.items()}
    )


def by_rule(c: Corpus, names: Sequence[str], rule: baselines.Baseline, split: str | None = None) -> Scores:
    found: Scores = {}
    for name in names:
        source = c.sources[name]
        rows = source.mixed(source.rows(split))
        lists = [source.lists[i] for i in rows]
        ends = np.cumsum([len(one.responses) for one in lists])[:-1]
        found[name] = {
            i: part.tolist() for i, part in zip(rows, np.split(rule.score(lists), ends), strict=True)
        } if rows else {}  # fmt: skip
    return found


RULES: dict[str, Callable[[], baselines.Baseline]] = {
    "refusal words": baselines.refusal,
    "shortest": baselines.shortest,
    "random": baselines.Random,
}


def main_plan(c: Corpus, s: Settings) -> Plan:
    half = (middle(c),)
    return {
        SRR: each(c, s, "distilled", c.core),
        KERNEL: each(c, s, "kernel", c.core),
        "probe": each(c, s, "probe", c.core),
        PAPER: each(c, s, "listwise", c.core, layers=half),
        PAPER_TOKEN: each(c, s, "listwise", c.core, layers=half, pooling="last"),
        LAST: each(c, s, "kernel", c.core, layers=(c.L,)),
        TFIDF: each(c, s, "tfidf", c.core),
    }


def main(c: Corpus, s: Settings, found: Found) -> dict[str, Any]:
    ruled = {name: by_rule(c, c.core, make()) for name, make in RULES.items()}
    pairs = [(SRR, TFIDF), (SRR, "probe"), (SRR, KERNEL), (SRR, PAPER), (KERNEL, LAST), (PAPER, PAPER_TOKEN)]
    return {
        "scorers": {name: table(c, scores) for name, scores in (found | ruled).items()},
        "differences": {f"{a} minus {b}": difference(c, found[a], found[b]) for a, b in pairs},
        "majority": {name: chance(c, name) for name in c.core},
    }


def chance(c: Corpus, name: str) -> dict[str, int]:
    source = c.sources[name]
    rows = source.mixed(source.rows())
    return {
        "lists": len(rows),
        "responses": sum(len(source.lists[i].responses) for i in rows),
        "more lists to learn from": len(source.lists) - len(rows),
        "clusters": len({source.cluster[i] for i in rows}),
    }


def split_plan(c: Corpus, s: Settings) -> Plan:
    plan: Plan = {
        (SRR, seed): [Part(job(c, s, "distilled", [n], [n], "split", seed=seed), (n,)) for n in c.core]
        for seed in range(s.seeds)
    }
    tuned = {"epochs": s.epochs} if s.epochs else {}
    for name, learner in ((TFIDF, "tfidf"), ("probe", "probe"), ("cross-encoder", "cross-encoder")):
        options = tuned if learner == "cross-encoder" else {}
        plan[name, 0] = [Part(job(c, s, learner, [n], [n], "split", options=options), (n,)) for n in c.core]
    plan["one for all", 0] = [Part(job(c, s, "distilled", c.core, c.core, "split"), c.core)]
    return plan


def split(c: Corpus, s: Settings, found: Found) -> dict[str, Any]:
    scorers, means = {}, {}
    for name in dict.fromkeys(label for label, _ in found):
        of_seed = [arrays(values(c, found[label])) for label in found if label[0] == name]
        means[name] = mean = {source: np.mean([one[source] for one in of_seed], 0) for source in of_seed[0]}
        each_seed = [summary.summarise(one)["mean"] for one in of_seed]
        scorers[name] = summary.summarise(mean) | {
            "seeds": {column: [one[column] for one in each_seed] for column in ("top1", "auc")}
        }
    others = [name for name in means if name != SRR]
    return {
        "scorers": scorers,
        "differences": {
            f"{SRR} minus {name}": summary.summarise(summary.minus(means[SRR], means[name])) for name in others
        },
    }


def one_plan(c: Corpus, s: Settings) -> Plan:
    tests = tuple(name for name in (*c.harm, OVERREFUSAL, FAIRNESS) if name in c.sources)
    return {
        SRR: each(c, s, "distilled", c.core),
        "one for the core": cv(c, s, "distilled", c.core, tests),
        "one for all": cv(c, s, "distilled", c.harm, tests),
    }


def one(c: Corpus, s: Settings, found: Found) -> dict[str, Any]:
    core = {label: {name: own for name, own in scores.items() if name in c.core} for label, scores in found.items()}
    more = {label: scores for label, scores in found.items() if label != SRR}
    return {
        "scorers": {label: table(c, scores) for label, scores in core.items()},
        "differences": {f"{label} minus {SRR}": difference(c, core[label], core[SRR]) for label in more},
        "elsewhere": {
            label: table(c, {n: v for n, v in one.items() if n not in c.core}) for label, one in more.items()
        },
    }


def sweep_plan(c: Corpus, s: Settings) -> Plan:
    plan: Plan = {
        (k, pooling): each(c, s, "kernel", c.core, layers=(k,), pooling=pooling, n_lists=-1)
        for pooling in ("mean", "last")
        for k in range(1, c.L + 1)
    }
    return plan | {("all", "mean"): each(c, s, "kernel", c.core, n_lists=-1)}


def sweep(c: Corpus, s: Settings, found: Found) -> dict[str, Any]:
    half = (middle(c), "mean")
    pairs = {
        f"layer {half[0]} minus last layer, mean": (half, (c.L, "mean")),
        f"mean minus last token, layer {half[0]}": (half, (half[0], "last")),
        f"layers {c.layers[0]} to {c.layers[-1]} minus layer {half[0]}": (("all", "mean"), half),
    }
    return {
        "cells": {f"{k} {pooling}": table(c, scores) for (k, pooling), scores in found.items()},
        "differences": {name: difference(c, found[a], found[b]) for name, (a, b) in pairs.items()},
    }


def ablation_plan(c: Corpus, s: Settings) -> Plan:
    names = [name for name in ABLATED if name in c.sources] or list(c.core[:2])
    changes: dict[str, tuple[str, dict[str, Any]]] = {
        SRR: ("distilled", {}),
        "no encoder": ("distilled", {"num_layers": 0}),
        "two encoder layers": ("distilled", {"num_layers": 2}),
        "p = 128": ("distilled", {"proj_dim": 128}),
        "scope list": ("distilled", {"scope": "list"}),
        "listwise, scope list": ("listwise", {}),
        "listwise, scope pair": ("listwise", {"scope": "pair"}),
        "pairwise": ("pairwise", {}),
        "pointwise": ("pointwise", {}),
        "MLP of 64 on the states": ("mlp", {}),
        "probe": ("probe", {}),
        KERNEL: ("kernel", {}),
    }
    plan = {}
    for label, (learner, options) in changes.items():
        more: dict[str, Any] = {"options": options} if options else {}
        parts = each(c, s, learner, names, **more)
        plan[label] = [part for part in parts if int(part.job.part.split()[1]) < s.ablation_folds]
    return plan


def ablation(c: Corpus, s: Settings, found: Found) -> dict[str, Any]:
    return {
        "scorers": {label: table(c, scores) for label, scores in found.items()},
        "differences": {
            f"{label} minus {SRR}": difference(c, scores, found[SRR]) for label, scores in found.items() if label != SRR
        },
    }


def size_plan(c: Corpus, s: Settings) -> Plan:
    plan: Plan = {}
    for size in s.sizes:
        for label, learner in ((KERNEL, "kernel"), (TFIDF, "tfidf")):
            more: dict[str, Any] = {"layers": (middle(c),)} if learner == "kernel" else {}
            if size is None:
                plan[label, size, 0] = each(c, s, learner, c.core, **more)
                continue
            for seed in range(1 if size < 0 or learner == "tfidf" else s.draws):
                plan[label, size, seed] = each(c, s, learner, c.core, n_lists=size, seed=seed, **more)
    return plan


def size(c: Corpus, s: Settings, found: Found) -> dict[str, Any]:
    rows = []
    for label, size in dict.fromkeys((label, size) for label, size, _ in found):
        draws = [arrays(values(c, found[key])) for key in found if key[:2] == (label, size)]
        mean = {source: np.mean([one[source] for one in draws], 0) for source in draws[0]}
        name = "all, pointwise too" if size is None else "all mixed" if size < 0 else str(size)
        rows.append({"learner": label, "lists": name, "draws": len(draws), **summary.summarise(mean)})
    return {"rows": rows}


def candidates_plan(c: Corpus, s: Settings) -> Plan:
    if LONG not in c.sources:
        raise LookupError(f"no lists of {LONG}")
    return {SRR: each(c, s, "distilled", [LONG]), TFIDF: each(c, s, "tfidf", [LONG])}


def candidates(c: Corpus, s: Settings, found: Found) -> dict[str, Any]:
    """Unsafe rates of n candidates drawn from each list, which need not hold both kinds."""
    lists = c.sources[LONG].lists
    longest = max(len(lists[i].responses) for i in found[SRR][LONG])
    result = {}
    for n in (2, 4, 8, 16, 32, 64):
        if n > longest:
            continue
        rates = {}
        for label, scores in found.items():
            rng = np.random.default_rng(n)
            rows = []
            for i in sorted(scores[LONG]):
                unsafe = ~np.array([r.safe for r in lists[i].responses])
                rows.append(rates_of(np.array(scores[LONG][i]), unsafe, n, rng))
            for column, name in enumerate(("first", "chosen", "oracle")):
                key = label if name == "chosen" else name
                rates[key] = interval([np.array(rows)[:, column]])
        result[str(n)] = rates
    return {"n": result, "draws": DRAWS}


def rates_of(scores: np.ndarray, unsafe: np.ndarray, n: int, rng: np.random.Generator) -> list[float]:
    """Unsafe share of the first, the chosen and the best possible of n drawn ones, over the draws."""
    chosen = np.argsort(rng.random((DRAWS, len(scores))), 1)[:, :n]
    drawn = unsafe[chosen]
    best = drawn[np.arange(DRAWS), scores[chosen].argmax(1)]
    return [float(drawn[:, 0].mean()), float(best.mean()), float(drawn.all(1).mean())]


def interval(groups: Sequence[np.ndarray]) -> dict[str, Any]:
    found = metrics.bootstrap(groups)
    return {"value": found.value, "ci95": [found.low, found.high]} if np.isfinite(found.value) else {"value": None}


def cross_plan(c: Corpus, s: Settings) -> Plan:
    return {name: cv(c, s, "kernel", [name], c.harm) for name in c.harm}


def cross(c: Corpus, s: Settings, found: Found) -> dict[str, Any]:
    return {"rows": {name: table(c, scores) for name, scores in found.items()}}


def care_plan(c: Corpus, s: Settings) -> Plan:
    plan = {label: parts for label, parts in one_plan(c, s).items() if label != SRR}
    if FAIRNESS in c.sources:
        own = [FAIRNESS]
        for label, learner in (("trained on it", "distilled"), ("TF-IDF trained on it", "tfidf")):
            plan[label] = [Part(job(c, s, learner, own, own, "split"), (FAIRNESS,))]
    return plan


def care(c: Corpus, s: Settings, found: Found) -> dict[str, Any]:
    result: dict[str, Any] = {"overrefusal": {}, "fairness": {}}
    for key, name, split in (("overrefusal", OVERREFUSAL, None), ("fairness", FAIRNESS, "val")):
        if name not in c.sources:
            continue
        wanted = set(c.sources[name].rows(split))
        for label, scores in found.items():
            if name in scores:
                own = {i: values for i, values in scores[name].items() if i in wanted}
                result[key][label] = table(c, {name: own})["sources"][name]
        for label, make in RULES.items():
            result[key][label] = table(c, by_rule(c, [name], make(), split))["sources"][name]
    return result


def shortcut_plan(c: Corpus, s: Settings) -> Plan:
    return {SRR: each(c, s, "distilled", c.core), TFIDF: each(c, s, "tfidf", c.core)}


def shortcut(c: Corpus, s: Settings, found: Found) -> dict[str, Any]:
    """AUC over the safe-unsafe pairs on which a shortcut says nothing or is wrong; calibration of held-out scores."""
    result: dict[str, Any] = {"pairs": {}}
    for label, scores in found.items():
        result["pairs"][label] = {name: _pairs(c, name, own) for name, own in scores.items()}
    lists, safety = [], []
    for name, own in found[SRR].items():
        source = c.sources[name]
        for fold in range(c.folds):
            mine = [i for i in sorted(own) if source.fold[i] == fold]
            rest = [i for i in sorted(own) if source.fold[i] != fold]
            if not mine or not rest:
                continue
            flat = torch.tensor([x for i in rest for x in own[i]])
            safe = torch.tensor([r.safe for i in rest for r in source.lists[i].responses])
            fitted = fit_calibration(flat, safe)
            slope, intercept = fitted or (0.0, float(torch.logit(safe.double().mean().clamp(0.01, 0.99))))
            lists += [source.lists[i] for i in mine]
            safety += [slope * x + intercept for i in mine for x in own[i]]
    result["calibration"] = summary.calibration(lists, 1 / (1 + np.exp(-np.array(safety))))
    return result


def _pairs(c: Corpus, name: str, own: Mapping[Row, Sequence[float]]) -> dict[str, Any]:
    kinds: dict[str, list[float]] = {
        "all": [], "refusal words alike": [], "refusal words wrong": [], "the safe one longer": [],
    }  # fmt: skip
    for i in sorted(own):
        one = c.sources[name].lists[i]
        rows = [(r.safe, x, refuses(r.text), len(r.text)) for r, x in zip(one.responses, own[i], strict=True)]
        wins: dict[str, list[float]] = {kind: [] for kind in kinds}
        for a, b in combinations(rows, 2):
            if a[0] == b[0]:
                continue
            (_, x, refused, length), (_, y, also, other) = (a, b) if a[0] else (b, a)
            won = float(x > y) + 0.5 * float(x == y)
            wins["all"].append(won)
            if refused == also:
                wins["refusal words alike"].append(won)
            elif also:
                wins["refusal words wrong"].append(won)
            if length > other:
                wins["the safe one longer"].append(won)
        for kind, found in wins.items():
            if found:
                kinds[kind].append(float(np.mean(found)))
    return {kind: interval([np.array(found)]) | {"n_lists": len(found)} for kind, found in kinds.items()}


SECTIONS: dict[str, Section] = {
    "main": Section(main_plan, main),
    "split": Section(split_plan, split),
    "one": Section(one_plan, one),
    "sweep": Section(sweep_plan, sweep),
    "ablation": Section(ablation_plan, ablation),
    "size": Section(size_plan, size),
    "candidates": Section(candidates_plan, candidates),
    "cross": Section(cross_plan, cross),
    "care": Section(care_plan, care),
    "shortcut": Section(shortcut_plan, shortcut),
}
