# SPDX-License-Identifier: Apache-2.0
"""Fit a ranker to labelled lists: a loss, transformers' Trainer around it, calibration.

The states are standardised for training; the standardisation becomes part of the projection.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import trainer
from .config import RankerConfig
from .examples import Examples, Standardisation
from .extras import require
from .ranker import Calibration, SafetyRanker
from .teacher import KernelTeacher

OBJECTIVES = ("distilled", "listwise", "pairwise", "pointwise")
COMPONENTS = 256  # of the states, kept for the kernel: it measures distances, and what hardly varies is noise to it
GROUP = 8  # drawn candidates that share an instruction
STEPS, EPOCHS = 1000, 30  # where nothing is said
SEEDS = 2**32  # numpy's, which Trainer seeds too


@dataclass(frozen=True)
class TrainingOptions:
    """How to fit.

    objective: ``distilled``: the ranker learns the scores of a kernel machine (:mod:`srr_fast.teacher`) on mixtures of
               states; ``listwise``: KL of the paper; ``pairwise``: logistic loss of every safe-unsafe pair of a list;
               ``pointwise``: cross-entropy of every label.
    steps:     of the optimiser, for ``distilled``; default 1000.
    epochs:    passes over the lists, for the others, fewer where the validation loss stops falling for ``patience``
               passes; default 30.
    batch:     drawn candidates, or lists. list_size: responses of a longer list that one pass sees, drawn anew.
    """

    objective: str = "distilled"
    steps: int | None = None
    epochs: int | None = None
    patience: int = 5
    learning_rate: float = 2e-3
    weight_decay: float = 1e-4
    batch: int = 16
    drawn: int = 256
    list_size: int = 16
    seed: int = 0

    def __post_init__(self) -> None:
        if self.objective not in OBJECTIVES:
            raise ValueError(f"train: objective must be one of {OBJECTIVES}, got {self.objective!r}")
        for name, value in (("steps", self.steps), ("epochs", self.epochs)):
            if value is not None and (name == "steps") != (self.objective == "distilled"):
                takes = "steps" if name == "epochs" else "epochs"
                raise ValueError(f"train: objective {self.objective} takes {takes}, not {name}, got {name}={value}")
            if value is not None and value < 1:
                raise ValueError(f"train: {name} must be at least 1, got {value}")
        if not 0 <= self.seed < SEEDS:
            raise ValueError(f"train: seed must be in 0 .. {SEEDS - 1}, got {self.seed}")


@dataclass(frozen=True)
class Trained:
    """ranker: in eval mode, calibrated if it could be. history: what Trainer logged, a dict per entry."""

    ranker: SafetyRanker
    history: list[dict[str, float]]


def train(config: RankerConfig, train: Examples, val: Examples, options: TrainingOptions | None = None) -> Trained:
    """A ranker fitted to ``train``, stopped and calibrated by ``val``.

    config: d = ``config.state_size`` must be the width of the examples' states.
    val:    may be empty: then every pass is made, and the calibration is fitted to ``train``.

    ``pointwise`` and ``distilled`` learn from every response, ``listwise`` and ``pairwise`` from lists with both kinds.
    Raises ValueError when there is nothing of the sort to learn from.
    """
    options = options or TrainingOptions()
    require("accelerate")
    _check(config, train, options)
    distilled = options.objective == "distilled"
    components = min(COMPONENTS, config.state_size, len(train.resp)) if distilled else None
    standardise = Standardisation.of(train.resp, components)
    train, val = (part._replace(inst=standardise(part.inst), resp=standardise(part.resp)) for part in (train, val))
    width = train.resp.shape[1]
    torch.manual_seed(options.seed)
    # The teacher's scores are smooth and never repeat: nothing to drop out for.
    narrow = replace(config, hidden_size=width, layer=1, dropout=0.0 if distilled else config.dropout)
    pupil = _Pupil(SafetyRanker(narrow), options.objective)
    history = _fit(pupil, _Drawn(train, options) if distilled else _Lists(train, options), val, options)

    ranker = SafetyRanker(config)
    weights = pupil.ranker.state_dict()
    projection = standardise.folded(weights["projection.weight"], weights["projection.bias"])
    ranker.load_state_dict(weights | dict(zip(("projection.weight", "projection.bias"), projection, strict=True)))
    pupil.ranker.eval()
    with torch.no_grad():
        fitted_to = val if _both_kinds(val.safe) else train
        scores = pupil.ranker.score(fitted_to.inst, fitted_to.resp, fitted_to.offsets).scores
    ranker.calibration = fit_calibration(scores, fitted_to.safe)
    return Trained(ranker.eval(), history)


def listwise_kl(scores: Tensor, offsets: Tensor, safe: Tensor, temperature: float) -> Tensor:
    """Mean over lists of KL(uniform on the safe || softmax(scores / temperature)): the paper's loss.

    scores, safe: [M], list after list by offsets [B + 1]; every list with a safe response.
    """
    s, y = (_padded(part, offsets, fill) for part, fill in ((scores / temperature, -torch.inf), (safe.float(), 0.0)))
    target = y / y.sum(1, keepdim=True)
    log_p = torch.log_softmax(s, 1).masked_fill(s == -torch.inf, 0)
    return F.kl_div(log_p, target, reduction="batchmean")


def pairwise_logistic(scores: Tensor, offsets: Tensor, safe: Tensor, temperature: float) -> Tensor:
    """Mean over lists of the mean over its safe-unsafe pairs of ``log(1 + exp((unsafe - safe) / temperature))``."""
    s, y, real = (_padded(part, offsets, 0.0) for part in (scores / temperature, safe.float(), torch.ones_like(scores)))
    pairs = y[:, :, None] * (real - y)[:, None, :]
    losses = F.softplus(s[:, None, :] - s[:, :, None]) * pairs
    return (losses.sum((1, 2)) / pairs.sum((1, 2))).mean()


def fit_calibration(scores: Tensor, safe: Tensor) -> Calibration | None:
    """Logistic regression of safe on score, with a slight pull of the slope to zero so that it stays finite.

    None, with a warning, where better scores are no safer.
    """
    parameters = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    finite = scores.isfinite()
    x, y = scores[finite].flatten().double(), safe[finite].flatten().double()
    optimizer = torch.optim.LBFGS([parameters], max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        logits = parameters[0] * x + parameters[1]
        loss = F.binary_cross_entropy_with_logits(logits, y) + 1e-4 * parameters[0] ** 2
        loss.backward()
        return loss

    optimizer.step(closure)
    slope, intercept = parameters.tolist()
    if slope <= 0:
        warnings.warn("train: better scores are no safer, the ranker gets no calibration", stacklevel=2)
        return None
    return Calibration(slope, intercept)


class _Pupil(nn.Module):
    """A ranker with a loss, as Trainer wants it. The slope and intercept turn a score into a logit."""

    def __init__(self, ranker: SafetyRanker, objective: str) -> None:
        super().__init__()
        self.ranker, self.objective = ranker, objective
        self.slope = nn.Parameter(torch.tensor(4.0))
        self.intercept = nn.Parameter(torch.tensor(0.0))

    def forward(self, inst: Tensor, resp: Tensor, offsets: Tensor, target: Tensor) -> dict[str, Tensor]:
        scores = self.ranker.score(inst, resp, offsets).scores
        temperature = self.ranker.config.temperature
        if self.objective == "listwise":
            return {"loss": listwise_kl(scores, offsets, target, temperature)}
        if self.objective == "pairwise":
            return {"loss": pairwise_logistic(scores, offsets, target, temperature)}
        logits = self.slope * scores + self.intercept
        if self.objective == "pointwise":
            return {"loss": F.binary_cross_entropy_with_logits(logits, target.float())}
        return {"loss": F.mse_loss(logits, 2 * target)}


class _Numbers(torch.utils.data.Dataset):
    """The numbers 0 .. n - 1: what they stand for is the collator's to say."""

    def __init__(self, n: int) -> None:
        self.n = n

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, at: int) -> int:
        return at


class _Lists:
    """Batches of labelled lists."""

    def __init__(self, examples: Examples, options: TrainingOptions, draw: bool = True) -> None:
        self.examples = examples
        pointwise = options.objective == "pointwise"
        self.rows = torch.arange(len(examples.inst)) if pointwise else examples.mixed.nonzero()[:, 0]
        self.size = options.list_size if draw else None
        self.generator = torch.Generator().manual_seed(options.seed)
        self.numbers, self.batch = _Numbers(len(self.rows)), options.batch
        self.passes: dict[str, Any] = {"num_train_epochs": options.epochs or EPOCHS}

    def __call__(self, numbers: list[int]) -> dict[str, Tensor]:
        part = self.examples.take(self.rows[numbers], self.size, self.generator)
        return {"inst": part.inst, "resp": part.resp, "offsets": part.offsets, "target": part.safe}


class _Drawn:
    """Batches of drawn states with the teacher's scores.

    A state is a mixture of three responses' states with weights of norm 1, so that its distance to the mean is that of
    a real one; ``GROUP`` of them share a real instruction.
    """

    def __init__(self, examples: Examples, options: TrainingOptions) -> None:
        self.generator = torch.Generator().manual_seed(options.seed)
        rows = torch.arange(len(examples.inst))
        examples = examples.take(rows, options.list_size, self.generator)
        self.inst, self.resp = examples.inst, examples.resp
        self.teacher = KernelTeacher(examples.resp, examples.safe, options.seed)
        self.batch = max(options.drawn // GROUP, 1)
        steps = options.steps or STEPS
        self.numbers = _Numbers(steps * self.batch)
        self.passes: dict[str, Any] = {"max_steps": steps}

    def __call__(self, numbers: list[int]) -> dict[str, Tensor]:
        M = len(numbers) * GROUP
        theta, phi = torch.rand(2, M, 1, generator=self.generator) * (torch.pi / 2)
        one, two, three = self.resp[torch.randint(len(self.resp), (3, M), generator=self.generator)]
        resp = theta.cos() * one + theta.sin() * (phi.cos() * two + phi.sin() * three)
        inst = self.inst[torch.randint(len(self.inst), (len(numbers),), generator=self.generator)]
        offsets = torch.arange(0, M + 1, GROUP)
        return {"inst": inst, "resp": resp, "offsets": offsets, "target": self.teacher(resp)}


def _fit(pupil: _Pupil, data: _Lists | _Drawn, val: Examples, options: TrainingOptions) -> list[dict[str, float]]:
    """Train in place; lists stop by the validation loss, and the best pass is kept."""
    from transformers import EarlyStoppingCallback, Trainer

    held_out = _Lists(val, options, draw=False) if isinstance(data, _Lists) and val.mixed.any() else None
    stopping: dict[str, Any] = {}
    if held_out is not None:
        stopping = {
            "held_out": held_out.numbers,
            "callbacks": [EarlyStoppingCallback(options.patience)],
            "save_strategy": "epoch",
            "eval_strategy": "epoch",
            "save_total_limit": 1,
            "load_best_model_at_end": True,
            "metric_for_best_model": "eval_loss",
            "per_device_eval_batch_size": len(held_out.rows),
            "prediction_loss_only": True,
        }

    class ListTrainer(Trainer):
        """Trainer whose validation batch is all held-out lists, whole."""

        def get_eval_dataloader(self, eval_dataset: Any = None) -> Any:
            assert held_out is not None
            return torch.utils.data.DataLoader(held_out.numbers, batch_size=len(held_out.rows), collate_fn=held_out)

    return trainer.fit(
        pupil,
        data.numbers,
        data,
        kind=ListTrainer,
        **data.passes,
        **stopping,
        per_device_train_batch_size=data.batch,
        learning_rate=options.learning_rate,
        weight_decay=options.weight_decay,
        lr_scheduler_type="cosine",
        logging_steps=25 if isinstance(data, _Drawn) else 5,
        seed=options.seed,
        label_names=["target"],
        use_cpu=True,
    )


def _check(config: RankerConfig, train: Examples, options: TrainingOptions) -> None:
    if config.pooling == "gated":
        raise ValueError("train: pooling gated learns from the states of single tokens; use mean or last")
    if train.resp.shape[1] != config.state_size:
        raise ValueError(f"train: the states must have {config.state_size} values, got {train.resp.shape[1]}")
    if not _both_kinds(train.safe):
        raise ValueError(f"train: wants safe and unsafe responses, got {len(train.safe)} of one kind or none")
    if options.objective in ("listwise", "pairwise") and not train.mixed.any():
        raise ValueError(
            f"train: objective {options.objective} wants lists with a safe and an unsafe response, got none"
        )


def _both_kinds(safe: Tensor) -> bool:
    return bool(safe.any()) and not bool(safe.all())


def _padded(values: Tensor, offsets: Tensor, fill: float) -> Tensor:
    """[B, N] of values [M], list after list."""
    sizes = offsets.diff()
    padded = values.new_full((len(sizes), int(sizes.max())), fill)
    padded[torch.arange(padded.shape[1]) < sizes[:, None]] = values
    return padded
