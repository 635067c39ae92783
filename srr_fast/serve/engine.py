# SPDX-License-Identifier: Apache-2.0
"""What a server computes: texts to ids before a request is queued, and whole batches in the worker thread."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase, StoppingCriteria

from .. import prompts
from ..generation import BestOfN
from ..ranker import SafetyRanker
from ..results import BestOfNResult
from ..text import RankedResponse, TextRanker
from .errors import RequestError
from .settings import Settings


class RankItem(NamedTuple):
    """Token ids of one list."""

    prompt: list[int]
    responses: list[list[int]]

    @property
    def tokens(self) -> int:
        return len(self.prompt) + sum(map(len, self.responses))


@dataclass(frozen=True)
class Sampling:
    """How the candidates of a chat request are drawn; requests with equal ones are joined.

    alone: differs from all others where a request must not be joined: a seed draws the same only then.
    """

    best_of: int
    max_tokens: int
    temperature: float | None = None
    top_p: float | None = None
    stop: tuple[str, ...] = ()
    min_safety: float | None = None
    fallback: str | None = None
    seed: int | None = None
    alone: int = 0


class ChatItem(NamedTuple):
    """A conversation to be answered. heard: told of every candidate, in the worker thread, as soon as it is finished:
    its index, its tokens, its text."""

    messages: list[Mapping[str, Any]]
    heard: Callable[[int, int, str], None] | None = None


class Engine:
    """One model, its tokenizer and its ranker. ``encode_*`` may run in any thread; ``run`` in one at a time."""

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, ranker: SafetyRanker, settings: Settings
    ) -> None:
        self.settings = settings
        self.tokenizer = tokenizer
        # What a first call changes in it must not change between threads.
        prompts.encode_responses("serve", tokenizer, ["a"])
        self.ranker = ranker
        self.best_of_n = BestOfN(model, tokenizer, ranker)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # best_of_n has said what does not go together
            self.reader = TextRanker(model, None, ranker)  # of ids: it need not decode them again
        config = model.config.get_text_config(decoder=True)
        self.positions: int | None = getattr(config, "max_position_embeddings", None)
        self.eos = frozenset(prompts.eos_ids(model.generation_config.eos_token_id))

    def encode_list(self, query: str, documents: Sequence[str], most: int | None) -> RankItem:
        """Ids of a query and its documents, each cut to ``most`` tokens. Raises RequestError for too many tokens."""
        ids = prompts.encode("rerank", self.tokenizer, query)
        if not ids:
            raise RequestError("query has no tokens", "query")
        item = RankItem(ids, [one[:most] for one in prompts.encode_responses("rerank", self.tokenizer, documents)])
        self._check_tokens(item.tokens, "query and documents")
        self._check_positions(len(ids), max(map(len, item.responses)), "the query and its longest document")
        return item

    def encode_chat(self, messages: list[Mapping[str, Any]], max_tokens: int | None) -> tuple[int, int]:
        """The tokens of a conversation, and how many may follow: max_tokens, or where None what the server and the
        model allow. Raises RequestError for a conversation that cannot be answered."""
        try:
            tokens = len(prompts.encode("chat", self.tokenizer, messages))
        except ValueError as error:
            raise RequestError(str(error).removeprefix("chat: "), "messages") from error
        if not tokens:
            raise RequestError("messages have no tokens", "messages")
        self._check_tokens(tokens, "messages")
        left = self.settings.new_tokens if self.positions is None else self.positions - tokens
        if max_tokens is None:
            max_tokens = max(1, min(self.settings.new_tokens, left))
        self._check_positions(tokens, max_tokens, "messages and max_tokens")
        return tokens, max_tokens

    def _check_tokens(self, tokens: int, what: str) -> None:
        if tokens > self.settings.tokens:
            raise RequestError(
                f"{what} have {tokens} tokens, this server reads {self.settings.tokens} for a request",
                code="context_length_exceeded",
            )

    def _check_positions(self, prompt: int, answer: int, what: str) -> None:
        if self.positions and prompt + answer > self.positions:
            raise RequestError(
                f"{what} have {prompt} + {answer} tokens, the model takes {self.positions}",
                code="context_length_exceeded",
            )

    def finish_reason(self, token_ids: list[int], max_tokens: int) -> Literal["stop", "length"]:
        """``length`` for a candidate that was cut off, else ``stop``."""
        return "length" if len(token_ids) >= max_tokens and token_ids[-1] not in self.eos else "stop"

    def run(self, key: Sampling | None, items: list[Any], abandoned: Callable[[], bool]) -> Sequence[Any]:
        """Results of rerank items (key None) or of chat items to be answered alike."""
        return self._rank(items) if key is None else self._generate(key, items, abandoned)

    def _rank(self, items: list[RankItem]) -> list[list[RankedResponse]]:
        return self.reader.rank_many([item.prompt for item in items], [item.responses for item in items])

    def _generate(self, key: Sampling, items: list[ChatItem], abandoned: Callable[[], bool]) -> list[BestOfNResult]:
        options: dict[str, Any] = {"max_new_tokens": key.max_tokens}
        if key.temperature == 0:
            options["do_sample"] = False
        elif key.temperature is not None:
            options["temperature"] = key.temperature
        if key.top_p is not None and key.temperature != 0:
            options["top_p"] = key.top_p
        stops: list[StoppingCriteria] = [_Abandoned(abandoned)]
        if key.stop:
            stops.append(_StopTexts(self.tokenizer, key.stop))
        if any(item.heard for item in items):
            stops = [_Finished(self, key, items, stops)]
        with torch.random.fork_rng(enabled=key.seed is not None):
            if key.seed is not None:
                torch.manual_seed(key.seed)
            return self.best_of_n.generate(
                [item.messages for item in items],
                key.best_of,
                min_safety=key.min_safety,
                fallback=key.fallback,
                stopping_criteria=stops,
                **options,
            )


class _Abandoned(StoppingCriteria):
    """Ends every row once nobody waits for the answers."""

    def __init__(self, abandoned: Callable[[], bool]) -> None:
        self.abandoned = abandoned

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Any:
        return torch.full((len(input_ids),), self.abandoned(), device=input_ids.device)


class _Finished(StoppingCriteria):
    """Ends what others end, and tells who asked of every candidate that has ended, for whatever reason."""

    def __init__(self, engine: Engine, key: Sampling, items: list[ChatItem], others: list[StoppingCriteria]) -> None:
        self.engine, self.key, self.items, self.others = engine, key, items, others
        self.told: set[int] = set()
        self.prompt: int | None = None

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Any:
        if self.prompt is None:
            self.prompt = input_ids.shape[1] - 1
        ended = torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)
        for one in self.others:
            ended |= one(input_ids, scores, **kwargs)
        last, generated = input_ids[:, -1].tolist(), input_ids.shape[1] - self.prompt
        for row, (token, stopped) in enumerate(zip(last, ended.tolist(), strict=True)):
            if row in self.told or not (stopped or token in self.engine.eos or generated >= self.key.max_tokens):
                continue
            self.told.add(row)
            item, index = self.items[row // self.key.best_of], row % self.key.best_of
            if item.heard is not None:
                ids = input_ids[row, self.prompt :].tolist()
                item.heard(index, generated, str(self.engine.tokenizer.decode(ids, skip_special_tokens=True)))
        return ended


class _StopTexts(StoppingCriteria):
    """Ends the rows whose generated text holds a stop string. Reads text: no table over the vocabulary is built."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stops: tuple[str, ...]) -> None:
        self.tokenizer, self.stops = tokenizer, stops
        self.window = 4 * max(map(len, stops)) + 4  # tokens; a character may be four tokens of a byte each
        self.prompt: int | None = None

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Any:
        if self.prompt is None:
            self.prompt = input_ids.shape[1] - 1
        rows = input_ids[:, max(self.prompt, input_ids.shape[1] - self.window) :].tolist()
        texts = [str(self.tokenizer.decode(row, skip_special_tokens=True)) for row in rows]
        return torch.tensor([any(stop in text for stop in self.stops) for text in texts], device=input_ids.device)
