# SPDX-License-Identifier: Apache-2.0
"""From instructions and responses to what a backbone reads of them, whatever its kind.

A causal model reads the prompt, and prompt + response, as :class:`srr_fast.TextRanker` and generation do. An encoder
reads the instruction alone, and each response with the instruction after it: what such a model says of its first text
ranked better (docs/evidence.md). What is pooled are the prompt's tokens, template included, and the response's for the
one; the text's own tokens, without special ones, for the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from . import prompts
from .backbone import is_encoder, most_tokens
from .forced import Reading

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# How texts are read, by kind of backbone; another way is another number. Part of `fingerprint.of_reading`: rankers of
# another way are told, and what a cache holds of it is not found.
READ = {"causal": 2, "encoder": 2}
CHUNK = 256  # texts tokenised at once


class Reader:
    """Texts of one call to readings; of ``count`` sequences, ``cut`` had to be shortened.

    An encoder's sequences are shortened as ``truncation="longest_first"`` does: from the end of the longer text. Those
    of a causal model lose the end of the response; a prompt that fills the model by itself first loses its beginning,
    down to half of what the model takes.

    op: starts every message. Raises TypeError or ValueError for a model or tokenizer that does not fit.
    """

    def __init__(self, op: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None) -> None:
        prompts.check_tokenizer(op, tokenizer)
        if tokenizer is None:
            raise ValueError(f"{op}: text wants a tokenizer")
        self.op, self.model, self.tokenizer = op, model, tokenizer
        self.encoder = is_encoder(op, model)
        if self.encoder and not tokenizer.is_fast:
            raise TypeError(f"{op}: an encoder wants a fast tokenizer, got {type(tokenizer).__name__}")
        self.most = most_tokens(model, tokenizer if self.encoder else None)
        self.count = self.cut = 0

    def instructions(self, texts: Sequence[str]) -> list[Reading]:
        """One reading each. Raises ValueError for an instruction without tokens."""
        self.count += len(texts)
        read = self._encode(list(texts), None) if self.encoder else [self._prompt(text) for text in texts]
        for text, reading in zip(texts, read, strict=True):
            if reading.start == reading.stop:
                raise ValueError(f"{self.op}: instruction {text[:40]!r} has no tokens")
        return read

    def pairs(self, instructions: Sequence[str], responses: Sequence[str]) -> list[Reading]:
        """The reading of each response to the instruction at its place; one without tokens pools none."""
        self.count += len(instructions)
        if self.encoder:
            return self._encode(list(responses), list(instructions))
        cut = self.cut  # a prompt is counted where it is read by itself
        asked = {text: self._prompt(text).ids for text in dict.fromkeys(instructions)}
        self.cut = cut
        return [
            self._response(asked[instruction], ids)
            for instruction, ids in zip(
                instructions, prompts.encode_responses(self.op, self.tokenizer, responses), strict=True
            )
        ]

    def _prompt(self, text: str) -> Reading:
        ids = prompts.encode(self.op, self.tokenizer, text)
        if self.most and len(ids) >= self.most:
            ids = ids[-(self.most // 2) :]
            self.cut += 1
        return Reading(np.array(ids, np.int32), 0, len(ids))

    def _response(self, prompt: np.ndarray, ids: list[int]) -> Reading:
        room = self.most - len(prompt) if self.most else len(ids)
        self.cut += len(ids) > room
        ids = ids[:room]
        return Reading(np.concatenate([prompt, np.array(ids, np.int32)]), len(prompt), len(prompt) + len(ids))

    def _encode(self, texts: list[str], others: list[str] | None) -> list[Reading]:
        for text in texts + (others or []):
            prompts.check_unicode(self.op, text)
        readings = []
        for low in range(0, len(texts), CHUNK):
            high = low + CHUNK
            # Not truncated by the tokenizer: it would keep that setting, and threads share it.
            encoded = self.tokenizer(texts[low:high], others and others[low:high], verbose=False)
            readings += [self._fitted(encoded, row) for row in range(len(encoded.input_ids))]
        return readings

    def _fitted(self, encoded: Any, row: int) -> Reading:
        """A row of a batch, shortened to what the model takes; its first text is what is pooled."""
        whose = np.array([-1 if text is None else text for text in encoded.sequence_ids(row)])
        kept = np.arange(len(whose))
        if self.most and len(whose) > self.most:
            special, first, second = (np.flatnonzero(whose == text) for text in (-1, 0, 1))
            n, m = _longest_first(len(first), len(second), self.most - len(special))
            kept = np.sort(np.concatenate([special, first[:n], second[:m]]))
            self.cut += 1
        own = np.flatnonzero(whose[kept] == 0)
        start, stop = (int(own[0]), int(own[-1]) + 1) if len(own) else (0, 0)
        types = np.array(encoded.token_type_ids[row], np.int8)[kept] if "token_type_ids" in encoded else None
        return Reading(np.array(encoded.input_ids[row], np.int32)[kept], start, stop, types)


def _longest_first(n: int, m: int, room: int) -> tuple[int, int]:
    """How many of n and of m tokens stay when ``room`` of them can: the longer text gives first, down to one half."""
    if n + m <= room:
        return n, m
    less = min(n, m, room // 2)
    return (less, room - less) if n <= m else (room - less, less)
