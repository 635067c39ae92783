# SPDX-License-Identifier: Apache-2.0
"""Rank given responses: tokenise, read the states, score, sort."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from . import prompts
from .backbone import check_ids, is_encoder, most_tokens, vocab_size
from .forced import BATCH_TOKENS, TruncatedForward, pool_given, pool_readings, progress_bar
from .ranked_model import RankedModel
from .ranker import SafetyRanker
from .reading import Reader


@dataclass(frozen=True)
class RankedResponse:
    """One response in its place.

    index: of the response in the list that was given. score: cosine to the instruction, -inf when the response is out
    (no token, or a state that is not finite). prob: softmax over the list. safety: calibrated score in [0, 1]; None
    for a ranker without calibration. text: as given, or decoded without special tokens; None without a tokenizer.
    """

    index: int
    score: float
    prob: float
    safety: float | None
    text: str | None


class TextRanker(RankedModel):
    """Ranks given responses by the model's own hidden states, or by an encoder's.

    model:     a decoder-only transformers model with ``generate``, or an encoder such as BERT; in eval mode, not
               compiled.
    tokenizer: its tokenizer, or None to work on token ids; an encoder wants a fast one, and texts.
    ranker:    read once; later changes to it do not matter. Warns when it was trained with another model or tokenizer.
    layers:    the decoder blocks, for a model where :func:`srr_fast.decoder.decoder_layers` does not find them.

    Layers above the deepest one read, and the head, are not run. Holds no state between calls: several threads may
    rank at once. Raises TypeError or ValueError for a model or ranker that does not fit.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase | None,
        ranker: SafetyRanker,
        *,
        layers: Sequence[nn.Module] | None = None,
    ) -> None:
        self.encoder = is_encoder("rank", model)
        if model.training:
            raise ValueError("rank: model is in training mode, its states are random; call model.eval()")
        super().__init__("rank", model, tokenizer, ranker, layers)
        if self.encoder:
            Reader("rank", model, tokenizer)  # refuses what it cannot read
        self.most_tokens = most_tokens(model)
        self.vocab_size = vocab_size(model)

    def rank(
        self,
        instruction: str | Sequence[Any],
        responses: Sequence[str] | Sequence[Sequence[int]],
        *,
        top_k: int | None = None,
        batch_tokens: int = BATCH_TOKENS,
    ) -> list[RankedResponse]:
        """The responses to one instruction, best first; see :meth:`rank_many`."""
        _check_list("responses", responses)
        return self.rank_many([instruction], [responses], top_k=top_k, batch_tokens=batch_tokens)[0]

    def rank_many(
        self,
        instructions: Sequence[str | Sequence[Any]],
        responses: Sequence[Sequence[str] | Sequence[Sequence[int]]],
        *,
        top_k: int | None = None,
        batch_tokens: int = BATCH_TOKENS,
    ) -> list[list[RankedResponse]]:
        """The responses to each instruction, best first.

        instructions: B of them: a string, a conversation (a list of ``{"role", "content"}``) or token ids. Strings and
                      conversations become ids as in :meth:`BestOfN.generate`.
        responses:    B lists of strings or of token ids. A string is tokenised without special tokens.
        top_k:        results per instruction, None for all.
        batch_tokens: positions in one forward (prompt, response and padding); bounds memory. A response longer than
                      that is read alone.

        A response is pooled over its tokens before the first end-of-sequence id of ``model.generation_config``; all
        of these have a state here. While tokens are generated the last one of a candidate has none: ``token_ids[:-1]``
        of a :class:`Candidate` is what its score is of, and gives that score; its text may tokenise differently.
        With an encoder instructions and responses are strings, read as :mod:`srr_fast.reading` says; a warning counts
        those too long to be read whole.
        Ties go to the lowest index; responses that are out come last.

        Returns B lists. Raises TypeError or ValueError naming the argument.
        """
        _check_positive("top_k", 1 if top_k is None else top_k)
        _check_positive("batch_tokens", batch_tokens)
        _check_list("instructions", instructions)
        _check_list("responses", responses)
        if len(instructions) != len(responses):
            raise ValueError(
                f"rank: instructions and responses must be lists of one length, "
                f"got {len(instructions)} and {len(responses)}"
            )
        for b, answers in enumerate(responses):
            _check_list(f"responses to instruction {b}", answers)
        read = self._read_encoder if self.encoder else self._read_causal
        inst, resp = read(instructions, responses, batch_tokens)
        ends = list(accumulate(map(len, responses), initial=0))
        out = self.scorer(inst, resp, torch.tensor(ends, device=inst.device))
        scores, probs, safety = out.scores.tolist(), out.probs.tolist(), self._safety(out.scores)
        ranked = []
        for b, (low, high) in enumerate(pairwise(ends)):
            order = sorted(range(low, high), key=lambda m: -scores[m])[:top_k]
            ranked.append(
                [
                    RankedResponse(m - low, scores[m], probs[m], safety[m], self._text(responses[b][m - low]))
                    for m in order
                ]
            )
        return ranked

    def _read_causal(
        self, instructions: Sequence[Any], responses: Sequence[Sequence[Any]], batch_tokens: int
    ) -> tuple[Tensor, Tensor]:
        prompt_ids = [self._prompt(b, prompt) for b, prompt in enumerate(instructions)]
        answer_ids = [self._responses(b, answers) for b, answers in enumerate(responses)]
        self._check_lengths(prompt_ids, answer_ids)
        return pool_given(
            self.model,
            self.layers,
            prompt_ids,
            answer_ids,
            pooling=self.scorer.config.pooling,
            gate=self.scorer.gate,
            batch_tokens=batch_tokens,
        )

    def _read_encoder(
        self, instructions: Sequence[Any], responses: Sequence[Sequence[Any]], batch_tokens: int
    ) -> tuple[Tensor, Tensor]:
        for b, (prompt, answers) in enumerate(zip(instructions, responses, strict=True)):
            named = [(f"instruction {b}", prompt)]
            named += [(f"response {i} to instruction {b}", answer) for i, answer in enumerate(answers)]
            for what, text in named:
                if not isinstance(text, str):
                    raise TypeError(f"rank: {what} must be a string for an encoder, got {type(text).__name__}")
        reader = Reader("rank", self.model, self.tokenizer)
        asked = [prompt for prompt, answers in zip(instructions, responses, strict=True) for _ in answers]
        readings = reader.instructions(instructions)
        readings += reader.pairs(asked, [answer for answers in responses for answer in answers])
        if reader.cut:
            warnings.warn(
                f"rank: {reader.cut} of {reader.count} sequences were longer than the {reader.most} tokens "
                f"{type(self.model).__name__} takes and were shortened",
                stacklevel=4,
            )
        with (
            TruncatedForward(self.model, self.layers) as forward,
            progress_bar(sum(len(reading.ids) for reading in readings)) as progress,
        ):
            (states,) = pool_readings(
                forward,
                readings,
                [self.scorer.config.pooling],
                gate=self.scorer.gate,
                batch_tokens=batch_tokens,
                progress=progress,
            )
        return states[: len(instructions)], states[len(instructions) :]

    def _prompt(self, b: int, prompt: Any) -> list[int]:
        if isinstance(prompt, str) or (
            isinstance(prompt, Sequence) and prompt and all(isinstance(part, Mapping) for part in prompt)
        ):
            ids = prompts.encode("rank", self.tokenizer, prompt)
        else:
            ids = self._ids(f"instruction {b}", prompt, "a string, messages or token ids")
        if not ids:
            raise ValueError(f"rank: instruction {b} has no tokens")
        return ids

    def _responses(self, b: int, answers: Sequence[Any]) -> list[list[int]]:
        """Of instruction b; its texts in one call of the tokenizer."""
        texts = [answer for answer in answers if isinstance(answer, str)]
        if texts and self.tokenizer is None:
            raise ValueError("rank: text wants a tokenizer; without one pass token ids")
        spelled = iter(prompts.encode_responses("rank", self.tokenizer, texts) if self.tokenizer is not None else ())
        given = "a string or token ids"
        return [
            next(spelled)
            if isinstance(answer, str)
            else prompts.before_eos(self.model, self._ids(f"response {i} to instruction {b}", answer, given))
            for i, answer in enumerate(answers)
        ]

    def _ids(self, what: str, value: Any, wanted: str) -> list[int]:
        """A copy of token ids; strings and conversations were dealt with before."""
        if isinstance(value, bytes) or not isinstance(value, Sequence) or not set(map(type, value)) <= {int}:
            inside = {type(x).__name__ for x in value} if isinstance(value, Sequence) else ()
            got = type(value).__name__ + (f" of {'/'.join(sorted(inside))}" if inside else "")
            raise TypeError(f"rank: {what} must be {wanted}, got {got}")
        if value:
            check_ids(f"rank: {what}", min(value), max(value), self.vocab_size)
        return list(value)

    def _check_lengths(self, prompt_ids: list[list[int]], answer_ids: list[list[list[int]]]) -> None:
        most = self.most_tokens
        for b, answers in enumerate(answer_ids):
            longest = max(map(len, answers), default=0)
            if most and len(prompt_ids[b]) + longest > most:
                raise ValueError(
                    f"rank: instruction {b} and its longest response have {len(prompt_ids[b])} + {longest} tokens, "
                    f"{type(self.model).__name__} takes {most}"
                )


def _check_list(name: str, value: object) -> None:
    if isinstance(value, str | bytes) or not isinstance(value, Sequence):
        raise TypeError(f"rank: {name} must be a list, got one {type(value).__name__}")


def _check_positive(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"rank: {name} must be an int, got {value!r}")
    if value < 1:
        raise ValueError(f"rank: {name} must be at least 1, got {value}")
