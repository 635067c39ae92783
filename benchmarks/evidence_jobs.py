# SPDX-License-Identifier: Apache-2.0
"""One fit of one learner and its scores of lists that it has not seen, kept on disk; many of them, in processes."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import inspect
import io
import json
import multiprocessing
import random
import time
import traceback
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from srr_fast import baselines, examples, metrics, reference, teacher
from srr_fast import train as training
from srr_fast.checkpoint import replace
from srr_fast.config import RankerConfig
from srr_fast.examples import Examples, Standardisation
from srr_fast.extras import require
from srr_fast.lists import LabelledList
from srr_fast.teacher import KernelTeacher
from srr_fast.train import COMPONENTS, TrainingOptions, train

from .evidence_data import Corpus, Row

Scores = dict[str, dict[Row, list[float]]]  # by source and list
DEPENDS = (training, teacher, examples, reference, baselines)  # a fit is made again when one of these has changed
INNER = 8  # every so manieth cluster of a training part stops the training where the learner can be stopped
STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1)  # of the states against the penalty, chosen inside the training part


@dataclass(frozen=True)
class Job:
    """learner: an objective of ``srr-fast train``, kernel (its teacher), probe, mlp, tfidf or cross-encoder.

    part:    "fold i": learn from the other folds, measure this one; "split": learn from train, measure val.
    sources: to learn from. tests: whose lists of the part are measured. options: of RankerConfig and TrainingOptions.
    n_lists: learn from so many mixed lists, -1 from all of them; None: from the pointwise ones too.
    """

    learner: str
    sources: tuple[str, ...]
    tests: tuple[str, ...]
    part: str
    layers: tuple[int, ...] = ()
    pooling: str = "mean"
    options: tuple[tuple[str, Any], ...] = ()
    n_lists: int | None = None
    seed: int = 0


def run_all(jobs: Sequence[Job], corpus: Corpus, cache: Path, processes: int) -> dict[Job, dict[str, Any]]:
    """Results of all jobs that did not fail; those in the cache are read. A failure is printed, and tried next time."""
    cache.mkdir(parents=True, exist_ok=True)
    jobs = list(dict.fromkeys(jobs))
    done = {job: found for job in jobs if (found := read(_path(cache, corpus, job))) is not None}
    missing = [job for job in jobs if job not in done]
    bar = tqdm(total=len(jobs), initial=len(done), desc="fits", unit="fit")
    with bar, _runner(corpus, processes) as run:
        for job, found in run(missing):
            if isinstance(found, str):
                tqdm.write(f"failed: {job}\n{found}")
            else:
                write(_path(cache, corpus, job), found)
                done[job] = found
            bar.update()
    return {job: found | {"scores": _with_rows(found["scores"])} for job, found in done.items()}


def read(path: Path) -> Any:
    """What :func:`write` wrote, None where there is nothing."""
    return json.loads(path.read_text()) if path.is_file() else None


def write(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    replace(path, json.dumps(value, allow_nan=False).encode())


def run(job: Job, corpus: Corpus) -> dict[str, Any]:
    """scores by source and list of what is measured; of the fit: seconds of processor time, parameters, lists."""
    learn, stop = training_part(job, corpus)
    tests = {name: test_rows(job.part, corpus, name) for name in job.tests}
    start = time.process_time()
    about: dict[str, Any] = {}
    with contextlib.redirect_stderr(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        score = _fit(job, corpus, learn, stop, about)
        seconds = time.process_time() - start
        scores = {name: _by_list(corpus, name, rows, score(name, rows)) for name, rows in tests.items() if rows}
    n = sum(len(rows) for part in (learn, stop) for rows in part.values())
    return {"scores": scores, "seconds": seconds, "n_lists": n, **about}


def training_part(job: Job, corpus: Corpus) -> tuple[dict[str, list[Row]], dict[str, list[Row]]]:
    """Lists to learn from and lists to stop by, none with a cluster of what is measured."""
    fold = int(job.part.split()[1]) if job.part.startswith("fold") else None
    learn: dict[str, list[Row]] = {}
    stop: dict[str, list[Row]] = {}
    stopped = job.learner in training.OBJECTIVES and job.learner != "distilled"
    rng = np.random.default_rng(job.seed)
    for name in job.sources:
        source = corpus.sources[name]
        rows = source.rows("train") if fold is None else [i for i in source.rows() if source.fold[i] != fold]
        if job.n_lists is not None:
            rows = source.mixed(rows)
            if job.n_lists >= 0:
                rows = sorted(rng.permutation(rows)[: job.n_lists].tolist())
        if fold is None:
            stop[name] = source.mixed(source.rows("val"))
            learn[name] = rows
        elif stopped:
            stop[name] = [i for i in rows if source.cluster[i] % INNER == 0]
            learn[name] = [i for i in rows if source.cluster[i] % INNER]
        else:
            stop[name], learn[name] = [], rows
    return learn, stop


def test_rows(part: str, corpus: Corpus, name: str) -> list[Row]:
    source = corpus.sources[name]
    if part == "split":
        return source.mixed(source.rows("val"))
    fold = int(part.split()[1])
    return [i for i in source.mixed(source.rows()) if source.fold[i] == fold]


def _fit(job: Job, corpus: Corpus, learn: dict[str, list[Row]], stop: dict[str, list[Row]], about: dict[str, Any]):
    """A function of (source, rows) that gives the scores of their responses, list after list."""
    torch.manual_seed(job.seed)
    if job.learner in ("tfidf", "cross-encoder"):
        lists = [corpus.sources[name].lists[i] for name, rows in learn.items() for i in rows]
        text = _text_learner(job, corpus, lists, about)
        return lambda name, rows: text.score([corpus.sources[name].lists[i] for i in rows])
    learned = corpus.examples(learn, job.layers, job.pooling)
    if job.learner in training.OBJECTIVES:
        given = dict(job.options)
        options = {key: given.pop(key) for key in ("steps", "epochs") if key in given}
        config = RankerConfig(corpus.d, layer=job.layers, pooling=job.pooling, **given)
        held_out = corpus.examples(stop, job.layers, job.pooling)
        chosen = TrainingOptions(objective=job.learner, seed=job.seed, **options)
        ranker = train(config, learned, held_out, chosen).ranker
        about["parameters"] = sum(weight.numel() for weight in ranker.parameters())
        scorer = ranker.prepare("cpu")

        def by_ranker(name: str, rows: list[Row]) -> np.ndarray:
            found = corpus.features(name, rows, job.layers, job.pooling)
            return scorer(found.inst, found.resp, found.offsets).scores.double().numpy()

        return by_ranker

    standardise = Standardisation.of(learned.resp, min(COMPONENTS, learned.resp.shape[1], len(learned.resp)))
    if job.learner == "kernel":
        cut = _cut(learned, job.seed)
        machine = KernelTeacher(standardise(cut.resp), cut.safe, job.seed)
        about["parameters"] = machine.states.numel() + machine.weights.numel()
        decide = machine
    else:
        model = _probe(job, standardise(learned.resp).numpy(), learned)
        about["parameters"] = _size(model)

        def decide(states: torch.Tensor) -> torch.Tensor:
            return torch.from_numpy(_logit(model, states.numpy()))

    def by_states(name: str, rows: list[Row]) -> np.ndarray:
        states = standardise(corpus.features(name, rows, job.layers, job.pooling).resp)
        finite = states.isfinite().all(1)
        scores = torch.full((len(states),), -torch.inf, dtype=torch.float64)
        scores[finite] = decide(states[finite]).double()
        return scores.numpy()

    return by_states


def _text_learner(
    job: Job, corpus: Corpus, lists: Sequence[LabelledList], about: dict[str, Any]
) -> baselines.TfIdf | baselines.CrossEncoder:
    if job.learner == "tfidf":
        words = baselines.TfIdf()
        words.fit(lists)
        about["parameters"] = int(words.model[-1].coef_.size)
        return words
    rng, most = random.Random(job.seed), TrainingOptions().list_size
    drawn = [tuple(rng.sample(one.responses, min(most, len(one.responses)))) for one in lists]
    some = [dataclasses.replace(one, responses=few) for one, few in zip(lists, drawn, strict=True)]
    whole = baselines.CrossEncoder(corpus.model, seed=job.seed, **dict(job.options))
    whole.fit(some)
    about["parameters"] = sum(weight.numel() for weight in whole.classifier.model.parameters())
    return whole


def _cut(learned: Examples, seed: int) -> Examples:
    """As the distilled objective does: of a long list, some."""
    rows = torch.arange(len(learned.inst))
    return learned.take(rows, TrainingOptions().list_size, torch.Generator().manual_seed(seed))


def _probe(job: Job, states: np.ndarray, learned: Examples) -> Any:
    if job.learner == "mlp":
        neural = require("sklearn.neural_network")
        model = neural.MLPClassifier((64,), alpha=1e-2, early_stopping=True, max_iter=60, random_state=job.seed)
        return model.fit(states, learned.safe.numpy())
    selection, linear = require("sklearn.model_selection"), require("sklearn.linear_model")
    groups = np.repeat(np.arange(len(learned.inst)), learned.offsets.diff().numpy())
    folds = selection.GroupKFold(min(3, len(learned.inst)))
    search = selection.GridSearchCV(
        linear.LogisticRegression(max_iter=500),
        {"C": STRENGTHS},
        scoring="neg_log_loss",
        cv=list(folds.split(states, learned.safe, groups)),
    )
    return search.fit(states, learned.safe.numpy()).best_estimator_


def _logit(model: Any, states: np.ndarray) -> np.ndarray:
    if hasattr(model, "decision_function"):
        return model.decision_function(states)
    p = np.clip(model.predict_proba(states)[:, 1], 1e-9, 1 - 1e-9)
    return np.log(p / (1 - p))


def _size(model: Any) -> int:
    weights = [model.coef_, model.intercept_] if hasattr(model, "coef_") else [*model.coefs_, *model.intercepts_]
    return int(sum(one.size for one in weights))


def _by_list(corpus: Corpus, name: str, rows: list[Row], scores: np.ndarray) -> dict[Row, list[float]]:
    if np.isneginf(scores).all():
        raise ValueError(f"no response of {name} has a finite state")
    finite = np.where(np.isfinite(scores), scores, scores[np.isfinite(scores)].min() - 1).tolist()  # JSON has no -inf
    found, at = {}, 0
    for i in rows:
        n = len(corpus.sources[name].lists[i].responses)
        found[i] = finite[at : at + n]
        at += n
    return found


def _with_rows(scores: dict[str, dict[str, list[float]]]) -> Scores:
    """JSON's keys are strings."""
    return {name: {int(i): values for i, values in own.items()} for name, own in scores.items()}


def _path(cache: Path, corpus: Corpus, job: Job) -> Path:
    code = "".join(map(inspect.getsource, DEPENDS))
    key = hashlib.sha256(repr((corpus.digest, code, sorted(asdict(job).items()))).encode()).hexdigest()[:24]
    return cache / "fits" / f"{key}.json"


@contextlib.contextmanager
def _runner(corpus: Corpus, processes: int) -> Iterator[Any]:
    if processes < 2:

        def here(jobs: Sequence[Job]) -> Iterator[tuple[Job, Any]]:
            for job in jobs:
                yield job, _tried(job, corpus)

        yield here
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, mp_context=context, initializer=_start, initargs=(corpus,)) as pool:

        def apart(jobs: Sequence[Job]) -> Iterator[tuple[Job, Any]]:
            waiting = {pool.submit(_run_mine, job): job for job in jobs}
            for future in as_completed(waiting):
                error = future.exception()
                yield waiting[future], repr(error) if error else future.result()

        try:
            yield apart
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


_corpus: Corpus


def _start(corpus: Corpus) -> None:
    global _corpus
    _corpus = corpus
    torch.set_num_threads(1)


def _run_mine(job: Job) -> Any:
    return _tried(job, _corpus)


def _tried(job: Job, corpus: Corpus) -> Any:
    try:
        return run(job, corpus)
    except Exception:
        return traceback.format_exc(limit=4)


def list_values(corpus: Corpus, scores: Scores) -> dict[str, dict[Row, np.ndarray]]:
    """top1, auc and ndcg [3] of every mixed list that has scores."""
    found: dict[str, dict[Row, np.ndarray]] = {}
    for name, own in scores.items():
        lists = corpus.sources[name].lists
        rows = sorted(own)
        safe = np.array([r.safe for i in rows for r in lists[i].responses], bool)
        offsets = np.cumsum([0, *(len(own[i]) for i in rows)])
        got = metrics.list_metrics(np.array([x for i in rows for x in own[i]]), safe, offsets)
        values = np.stack([got.top1, got.auc, got.ndcg], 1)
        found[name] = {rows[b]: value for b, value in zip(got.lists, values, strict=True)}
    return found
