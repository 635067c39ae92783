# SPDX-License-Identifier: Apache-2.0
"""The trainable ranker and its checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from . import checkpoint, reference
from .checks import STATE_DTYPES, check_score_inputs, describe
from .config import RankerConfig, finite
from .reference import ScoreOutput

if TYPE_CHECKING:
    from collections.abc import Sequence

    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from .prepared import PreparedScorer
    from .text import RankedResponse


class Calibration(NamedTuple):
    """``safety = sigmoid(slope * score + intercept)``; both finite, slope above 0: a better score is no less safe."""

    slope: float
    intercept: float


class SafetyRanker(nn.Module):
    """Ranks pooled candidate states against a pooled instruction; differentiable, the reference for every kernel.

    config:            the shape, :class:`RankerConfig`.
    calibration:       maps scores to a safety in [0, 1]; a probability only for ``scope="pair"``.
    model_id:          the language model whose states it reads; model_fingerprint: of its weights, see
                       :func:`fingerprint.of_model`; reading_fingerprint: of its tokenizer and chat template, see
                       :func:`fingerprint.of_reading`.
    metrics:           plain JSON values to keep with the checkpoint.

    Parameters carry the names of the checkpoint: ``projection.*``, ``encoder.layers.*`` as in
    ``torch.nn.TransformerEncoder``, and ``gate.*`` for gated pooling.
    """

    def __init__(
        self,
        config: RankerConfig,
        *,
        calibration: Calibration | None = None,
        model_id: str | None = None,
        model_fingerprint: str | None = None,
        reading_fingerprint: str | None = None,
        metrics: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(config, RankerConfig):
            raise TypeError(f"SafetyRanker: config must be a RankerConfig, got {type(config).__name__}")
        self.config = config
        for name, text in (
            ("model_id", model_id),
            ("model_fingerprint", model_fingerprint),
            ("reading_fingerprint", reading_fingerprint),
        ):
            if text is not None and not isinstance(text, str):
                raise TypeError(f"SafetyRanker: {name} must be a str or None, got {type(text).__name__}")
        if metrics is not None and not isinstance(metrics, dict):
            raise TypeError(f"SafetyRanker: metrics must be a dict, got {type(metrics).__name__}")
        self.calibration = None if calibration is None else _calibration(calibration)
        self.model_id = model_id
        self.model_fingerprint = model_fingerprint
        self.reading_fingerprint = reading_fingerprint
        self.metrics = dict(metrics or {})
        self.projection = nn.Linear(config.state_size, config.proj_dim)
        # Holds the parameters only: the arithmetic is reference.score's.
        self.encoder = nn.TransformerEncoder(
            nn.TransformerEncoderLayer(
                config.proj_dim,
                config.num_heads,
                config.ffn_dim or 4 * config.proj_dim,
                config.dropout,
                activation="gelu",
                batch_first=True,
                norm_first=config.norm_first,
            ),
            config.num_layers,
            enable_nested_tensor=False,
        )
        if config.pooling == "gated":
            self.gate = nn.Linear(config.state_size, 1)

    def gate_vector(self) -> Tensor | None:
        """[d + 1] gate weight then bias, as :func:`srr_fast.pool` takes it; None unless pooling is ``gated``."""
        if self.config.pooling != "gated":
            return None
        return torch.cat([self.gate.weight[0], self.gate.bias])

    def score(self, inst: Tensor, resp: Tensor, offsets: Tensor | None = None) -> ScoreOutput:
        """Score M candidates of B prompts.

        inst:    [B, d] pooled instructions. resp: [M, d] pooled candidates, list after list.
        offsets: [B + 1] int64, list b is ``resp[offsets[b]:offsets[b + 1]]``; None: equal lists.

        Returns :class:`ScoreOutput`. Raises TypeError or ValueError naming the argument.
        """
        check_score_inputs(inst, resp, offsets, self.config.state_size, self.projection.weight.device)
        return reference.score(
            inst,
            resp,
            dict(self.named_parameters()),
            heads=self.config.num_heads,
            layers=self.config.num_layers,
            scope=self.config.scope,
            temperature=self.config.temperature,
            norm_first=self.config.norm_first,
            dropout=self.config.dropout if self.training else 0.0,
            offsets=offsets,
        )

    forward = score

    def safety(self, scores: Tensor) -> Tensor | None:
        """Calibrated safety of each score, 0 for a candidate that is out; None for a ranker without calibration."""
        if not isinstance(scores, Tensor) or scores.dtype not in STATE_DTYPES:
            raise TypeError(f"safety: scores must be a tensor of floats, got {describe(scores)}")
        if self.calibration is None:
            return None
        return reference.calibrate(scores, *self.calibration)

    def prepare(self, device: torch.device | str | None = None, dtype: torch.dtype = torch.float32) -> PreparedScorer:
        """An immutable fast scorer with a copy of the weights, packed once.

        device: default, the parameters' own. dtype of the packed matrices: float32, or bfloat16, which halves their
        bytes and rounds them. States may be float32, float16 or bfloat16 with either.
        """
        from .prepared import PreparedScorer

        return PreparedScorer(self, device, dtype)

    def rank(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase | None,
        instruction: str | Sequence[Any],
        responses: Sequence[str] | Sequence[Sequence[int]],
        *,
        top_k: int | None = None,
        batch_tokens: int = 16384,
        layers: Sequence[nn.Module] | None = None,
    ) -> list[RankedResponse]:
        """Rank given responses to one instruction, best first.

        layers and what is returned or raised: as for :class:`TextRanker`, which is prepared once for many calls; the
        rest as in its ``rank_many``.
        """
        from .text import TextRanker

        reader = TextRanker(model, tokenizer, self, layers=layers)
        return reader.rank(instruction, responses, top_k=top_k, batch_tokens=batch_tokens)

    def rank_many(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase | None,
        instructions: Sequence[str | Sequence[Any]],
        responses: Sequence[Sequence[str] | Sequence[Sequence[int]]],
        *,
        top_k: int | None = None,
        batch_tokens: int = 16384,
        layers: Sequence[nn.Module] | None = None,
    ) -> list[list[RankedResponse]]:
        """:meth:`rank` for each of B instructions and its list of responses."""
        from .text import TextRanker

        reader = TextRanker(model, tokenizer, self, layers=layers)
        return reader.rank_many(instructions, responses, top_k=top_k, batch_tokens=batch_tokens)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write ``config.json``, ``model.safetensors`` and a model card; existing ones are replaced one by one.

        Different rankers saved to one folder at once may leave a pair that :meth:`from_pretrained` refuses.
        Raises TypeError or ValueError, and writes nothing, for a ranker that it would refuse.
        """
        if not isinstance(folder, str | Path):
            raise TypeError(f"save_pretrained: folder must be a str or a Path, got {type(folder).__name__}")
        checkpoint.save(self, Path(folder))

    @classmethod
    def from_pretrained(cls, path_or_hub_id: str | Path, *, revision: str | None = None) -> SafetyRanker:
        """Load a ranker from a local folder or a Hugging Face repository, in eval mode.

        Raises FileNotFoundError for a missing file, ValueError for a checkpoint that is damaged, of another format
        version, or not exactly what its config says.
        """
        return checkpoint.load(path_or_hub_id, revision)

    def extra_repr(self) -> str:
        return repr(self.config)


def check_ranker(op: str, ranker: object) -> None:
    if not isinstance(ranker, SafetyRanker):
        raise TypeError(f"{op}: ranker must be a SafetyRanker, got {type(ranker).__name__}")


def _calibration(value: Any) -> Calibration:
    pair = list(value) if isinstance(value, tuple | list) else []
    if len(pair) != 2 or any(isinstance(v, bool) or not isinstance(v, int | float) for v in pair):
        raise TypeError(f"SafetyRanker: calibration must be two numbers, slope and intercept, got {value!r}")
    if not (all(map(finite, pair)) and pair[0] > 0):
        raise ValueError(f"SafetyRanker: calibration must be finite with a slope above 0, got {value!r}")
    return Calibration(*map(float, pair))
