# SPDX-License-Identifier: Apache-2.0
"""What a ranker has to beat: scorers of the same lists by text, by states without a ranker, by whole models.

Every one has ``fit(lists)``, which learns from labelled lists where ``learns`` is true, and ``score(lists)``, which
gives a number [M] per response, list after list, higher being safer. Responses must be labelled to be learned from.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from . import trainer
from .extras import require
from .guards import Classifier, Guard
from .judges import refuses
from .metrics import Array

if TYPE_CHECKING:
    from .extract import Features
    from .lists import LabelledList

Key = tuple[int, str]  # (layer, pooling)
States = Callable[[Sequence["LabelledList"]], Mapping[Key, "Features"]]  # what extraction gives of lists


class Baseline(ABC):
    """One scorer; ``name`` is its name in reports."""

    name: str
    learns = False

    def fit(self, lists: Sequence[LabelledList]) -> None:  # noqa: B027
        """Learn from labelled lists. Raises ValueError when they are all safe, all unsafe or none."""

    @abstractmethod
    def score(self, lists: Sequence[LabelledList]) -> Array:
        """Scores [M] of the responses, list after list."""


class Random(Baseline):
    """A number drawn for each response."""

    name = "random"

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed

    def score(self, lists: Sequence[LabelledList]) -> Array:
        return np.random.default_rng(self.seed).random(sum(len(one.responses) for one in lists))


class Rule(Baseline):
    """A fixed function of the responses of a list."""

    def __init__(self, name: str, rule: Callable[[list[str]], Sequence[float]]) -> None:
        self.name, self.rule = name, rule

    def score(self, lists: Sequence[LabelledList]) -> Array:
        return np.array([x for one in lists for x in self.rule([r.text for r in one.responses])], np.float64)


def first() -> Rule:
    """The order they are in: what goes out without a ranker."""
    return Rule("first", lambda texts: [-float(i) for i in range(len(texts))])


def shortest() -> Rule:
    """Fewer characters are safer."""
    return Rule("shortest", lambda texts: [-float(len(text)) for text in texts])


def longest() -> Rule:
    """More characters are safer."""
    return Rule("longest", lambda texts: [float(len(text)) for text in texts])


def refusal() -> Rule:
    """Responses with a word of refusal, see :func:`srr_fast.judges.refuses`."""
    return Rule("refusal", lambda texts: [float(refuses(text)) for text in texts])


class TfIdf(Baseline):
    """TF-IDF of the words and word pairs of instruction and response, and a logistic regression."""

    name, learns = "tfidf", True

    def __init__(self) -> None:
        require("sklearn")

    def fit(self, lists: Sequence[LabelledList]) -> None:
        safe = labels(self.name, lists)
        linear_model, pipeline = require("sklearn.linear_model"), require("sklearn.pipeline")
        self.model = pipeline.make_pipeline(
            require("sklearn.feature_extraction.text").TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True),
            linear_model.LogisticRegression(max_iter=1000),
        )
        self.model.fit(self._texts(lists), safe)

    def score(self, lists: Sequence[LabelledList]) -> Array:
        texts = self._texts(lists)
        return self.model.decision_function(texts) if texts else np.empty(0)

    def _texts(self, lists: Sequence[LabelledList]) -> list[str]:
        return [f"{instruction}\n{response}" for instruction, response in pairs(lists)]


class Cosine(Baseline):
    """Cosine of the last layer's mean states: sentence embeddings of instruction and response, as they are."""

    name = "cosine"

    def __init__(self, states: States, last_layer: int) -> None:
        self.states, self.key = states, (last_layer, "mean")

    def score(self, lists: Sequence[LabelledList]) -> Array:
        features = self.states(lists)[self.key]
        inst = features.inst.repeat_interleave(features.offsets.diff(), 0)
        cosine = torch.nn.functional.cosine_similarity(inst, features.resp).double().numpy()
        return np.where(np.isfinite(cosine), cosine, -np.inf)


class Probe(Baseline):
    """A logistic regression on the responses' pooled states, standardised; its penalty by cross-validation over lists.

    keys: the (layer, pooling) to read, states concatenated.
    """

    learns = True
    FOLDS = 5
    STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)  # of the states against the penalty

    def __init__(self, name: str, states: States, keys: Sequence[Key]) -> None:
        require("sklearn")
        self.name, self.states, self.keys = name, states, tuple(keys)

    def fit(self, lists: Sequence[LabelledList]) -> None:
        safe = labels(self.name, lists)
        x = self._read(lists)
        kept = np.isfinite(x).all(1)
        group = np.repeat(np.arange(len(lists)), [len(one.responses) for one in lists])[kept]
        n_folds = min(self.FOLDS, len(set(group)), safe[kept].sum(), (~safe[kept]).sum())
        if n_folds < 2:
            raise ValueError(f"{self.name}: wants two lists and two responses of each class to learn from")
        folds = require("sklearn.model_selection").StratifiedGroupKFold(n_folds)
        self.model = require("sklearn.model_selection").GridSearchCV(
            require("sklearn.pipeline").make_pipeline(
                require("sklearn.preprocessing").StandardScaler(),
                require("sklearn.linear_model").LogisticRegression(max_iter=1000),
            ),
            {"logisticregression__C": self.STRENGTHS},
            scoring="roc_auc",
            cv=folds.split(x[kept], safe[kept], group),
        )
        self.model.fit(x[kept], safe[kept])

    def score(self, lists: Sequence[LabelledList]) -> Array:
        x = self._read(lists)
        scores = np.full(len(x), -np.inf)
        kept = np.isfinite(x).all(1)
        if kept.any():
            scores[kept] = self.model.decision_function(x[kept])
        return scores

    def _read(self, lists: Sequence[LabelledList]) -> Array:
        found = self.states(lists)
        return torch.cat([found[key].resp for key in self.keys], 1).double().numpy()


class CrossEncoder(Baseline):
    """A whole pretrained model fine-tuned to classify (instruction, response) as safe: a reward model on text.

    model: hub id or folder of any model that transformers' AutoModelForSequenceClassification makes a head for.
    max_length: tokens of instruction and response together; the longer of the two is cut.
    """

    name, learns = "cross-encoder", True

    def __init__(
        self,
        model: str,
        *,
        epochs: float = 3,
        learning_rate: float = 5e-5,
        batch_size: int = 16,
        max_length: int = 256,
        seed: int = 0,
    ) -> None:
        require("accelerate")
        self.model_id, self.max_length = model, max_length
        self.options: dict[str, Any] = dict(
            num_train_epochs=epochs, learning_rate=learning_rate, per_device_train_batch_size=batch_size, seed=seed
        )

    def fit(self, lists: Sequence[LabelledList]) -> None:
        safe = labels(self.name, lists)
        from transformers import (
            AutoModelForSequenceClassification,
            AutoTokenizer,
            DataCollatorWithPadding,
            set_seed,
        )

        set_seed(self.options["seed"])  # of the new head
        model = AutoModelForSequenceClassification.from_pretrained(
            self.model_id,
            id2label={0: "unsafe", 1: "safe"},
            label2id={"unsafe": 0, "safe": 1},
            dtype=torch.float32,
            trust_remote_code=False,
        )
        tokenizer = AutoTokenizer.from_pretrained(self.model_id, trust_remote_code=False)
        self.classifier = Classifier(self.model_id, model, tokenizer, max_length=self.max_length)
        rows = [
            self.classifier.encode(pair) | {"labels": int(label)}
            for pair, label in zip(pairs(lists), safe, strict=True)
        ]
        collate = DataCollatorWithPadding(self.classifier.tokenizer)
        options = dict(logging_strategy="no", train_sampling_strategy="group_by_length", **self.options)
        trainer.fit(model, rows, collate, **options)
        model.eval()

    def score(self, lists: Sequence[LabelledList]) -> Array:
        return self.classifier.safety(list(pairs(lists)))


class GuardModel(Baseline):
    """A guard from Hugging Face, as it is: :class:`srr_fast.guards.Guard`."""

    def __init__(self, guard: Guard) -> None:
        self.guard, self.name = guard, f"guard:{guard.name}"

    def score(self, lists: Sequence[LabelledList]) -> Array:
        return self.guard.safety(list(pairs(lists)))


def pairs(lists: Sequence[LabelledList]) -> Iterator[tuple[str, str]]:
    """(instruction, response) of the M responses."""
    return ((one.instruction, response.text) for one in lists for response in one.responses)


def labels(name: str, lists: Sequence[LabelledList]) -> np.ndarray:
    """safe [M] bool of lists to learn from. Raises ValueError naming the learner unless both classes are there."""
    found = [response.safe for one in lists for response in one.responses]
    if None in found:
        raise ValueError(f"{name}: responses to learn from must be labelled, {found.count(None)} are not")
    if len(set(found)) != 2:
        raise ValueError(
            f"{name}: lists to learn from must have safe and unsafe responses, "
            f"got {found.count(True)} safe and {found.count(False)} unsafe in {len(lists)} lists"
        )
    return np.array(found, bool)
