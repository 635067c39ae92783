# SPDX-License-Identifier: Apache-2.0
"""A model, its tokenizer and a ranker that go together: what every way to rank with them starts from."""

from __future__ import annotations

from typing import TYPE_CHECKING

from . import fingerprint, reference
from .decoder import layers_to_read
from .prompts import check_tokenizer
from .ranker import SafetyRanker, check_ranker

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor, nn
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class RankedModel:
    """The base of :class:`BestOfN` and :class:`TextRanker`.

    op: begins its messages. The ranker is read once; ``layers`` are the modules to read, in the order of its config.
    Warns when the ranker was trained with other weights, another tokenizer or chat template.
    Raises TypeError or ValueError for a tokenizer or ranker that is none, or a ranker that cannot read the model.
    """

    def __init__(
        self,
        op: str,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase | None,
        ranker: SafetyRanker,
        layers: Sequence[nn.Module] | None,
    ) -> None:
        check_tokenizer(op, tokenizer)
        check_ranker(op, ranker)
        self.model = model
        self.tokenizer = tokenizer
        self.layers = layers_to_read(model, ranker.config, layers)
        self.scorer = ranker.prepare(model.device)
        self.calibration = ranker.calibration
        fingerprint.warn_if_other(op, ranker, model, tokenizer, layers, stacklevel=3)

    def _safety(self, scores: Tensor) -> list[float | None]:
        """Of each score [M], in [0, 1]; None without a calibration."""
        if self.calibration is None:
            return [None] * len(scores)
        return reference.calibrate(scores, *self.calibration).tolist()

    def _text(self, response: str | Sequence[int]) -> str | None:
        """A string as it is, token ids decoded without special tokens; None of ids without a tokenizer."""
        if isinstance(response, str) or self.tokenizer is None:
            return response if isinstance(response, str) else None
        return str(self.tokenizer.decode(list(response), skip_special_tokens=True))
