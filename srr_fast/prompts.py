# SPDX-License-Identifier: Apache-2.0
"""From texts to the token ids of a causal model: one rule for every entry point."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def encode(op: str, tokenizer: PreTrainedTokenizerBase | None, prompt: str | Sequence[Mapping[str, Any]]) -> list[int]:
    """Token ids of a string or a conversation.

    With a chat template a string is one user message and both end with the generation prompt. Without one a string is
    continued as it is, and a conversation is refused. Raises ValueError, its message starting with ``op``; also for
    text with half a character in it, and for messages that the template refuses.
    """
    if not isinstance(prompt, str):
        _check_messages(op, prompt)
    if tokenizer is None:
        raise ValueError(f"{op}: text wants a tokenizer; without one pass token ids")
    if not tokenizer.chat_template:
        if not isinstance(prompt, str):
            raise ValueError(f"{op}: messages want a tokenizer with a chat_template, this one has none")
        check_unicode(op, prompt)
        return tokenizer(prompt)["input_ids"]
    messages: list[Any] = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
    try:
        text = str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
    except ImportError:
        raise
    except Exception as error:  # a template is code, and not ours: it raises what it likes
        raise ValueError(f"{op}: the model's chat template refuses these messages: {error}") from error
    check_unicode(op, text)
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def encode_responses(op: str, tokenizer: PreTrainedTokenizerBase, responses: Sequence[str]) -> list[list[int]]:
    """Token ids of answers that were given as texts: no special tokens, and what is spelled like one is read as text.

    Otherwise an answer that spells the end of sequence would be judged by what comes before it alone. Raises ValueError
    for text with half a character in it.
    """
    if not responses:
        return []
    for response in responses:
        check_unicode(op, response)
    ids: list[list[int]] = tokenizer(list(responses), add_special_tokens=False)["input_ids"]
    special = _special_ids(tokenizer)
    for i, own in enumerate(ids):
        if not special.isdisjoint(own):
            ids[i] = _speller(tokenizer)(responses[i], add_special_tokens=False)["input_ids"]
    return ids


def check_unicode(op: str, text: str) -> None:
    """Raise ValueError for a lone surrogate, half a character that no tokenizer takes."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        at = error.start
        near = ascii(text[max(at - 20, 0) : at + 20])
        raise ValueError(f"{op}: text must be Unicode, got the lone surrogate {text[at]!a} in {near}") from None


# Of a tokenizer, for as long as it lives: both take long to make.
_SPECIAL_IDS: WeakKeyDictionary[Any, frozenset[int]] = WeakKeyDictionary()
_SPELLERS: WeakKeyDictionary[Any, Any] = WeakKeyDictionary()


def _special_ids(tokenizer: Any) -> frozenset[int]:
    """But for the unknown token, which text may well have."""
    if tokenizer not in _SPECIAL_IDS:
        ids = {i for i, token in getattr(tokenizer, "added_tokens_decoder", {}).items() if token.special}
        _SPECIAL_IDS[tokenizer] = frozenset(ids) - {getattr(tokenizer, "unk_token_id", None)}
    return _SPECIAL_IDS[tokenizer]


def _speller(tokenizer: Any) -> Any:
    """The tokenizer with special tokens read as text. A copy: the setting would stay, and threads share a tokenizer."""
    if tokenizer not in _SPELLERS:
        speller = copy.deepcopy(tokenizer)
        speller.split_special_tokens = True
        _SPELLERS[tokenizer] = speller
    return _SPELLERS[tokenizer]


def eos_ids(value: Any) -> list[int]:
    """The ids that end a row, of an ``eos_token_id``: None, an int, a sequence or a tensor of them."""
    return [] if value is None else torch.as_tensor(value, dtype=torch.int64).reshape(-1).tolist()


def before_eos(model: PreTrainedModel, ids: list[int]) -> list[int]:
    """The ids before the first end-of-sequence id of ``model.generation_config``."""
    ends = set(eos_ids(model.generation_config.eos_token_id))
    return ids[: next((at for at, token in enumerate(ids) if token in ends), len(ids))]


def check_tokenizer(op: str, tokenizer: object) -> None:
    if tokenizer is not None and not (callable(tokenizer) and callable(getattr(tokenizer, "decode", None))):
        raise TypeError(f"{op}: tokenizer must be a transformers tokenizer or None, got {type(tokenizer).__name__}")


def _check_messages(op: str, messages: Sequence[Mapping[str, Any]]) -> None:
    if not messages:
        raise ValueError(f"{op}: a conversation must have at least one message, got none")
    for message in messages:
        if "role" not in message or not ("content" in message or "tool_calls" in message):
            raise ValueError(f"{op}: a message must have role and content, got the keys {list(message)}")
