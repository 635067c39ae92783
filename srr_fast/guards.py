# SPDX-License-Identifier: Apache-2.0
"""Whole models that judge text: sequence classifiers and guards that answer in words, from Hugging Face.

Knows (instruction, response) pairs; knows nothing of lists or rankers.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch

from .backbone import check_name, most_tokens
from .metrics import Array

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Pair = tuple[str, str]

# Of a label's letters in lower case; safe is looked for first.
HARM = r"unsafe|harm|toxic|hate|offens|abus|insult|threat|obscen|violat|violen|jailbreak|injection|malicious"
UNSAFE_LABEL = re.compile(HARM)
SAFE_LABEL = re.compile(rf"^(safe|harmless|benign|acceptable|neutral|normal|clean|ok|no[nt]?({HARM})\w*)$")
VERDICTS = (("safe", "unsafe"), ("Safe", "Unsafe"), ("SAFE", "UNSAFE"))
VERDICT = re.compile(rf"\b({'|'.join(word for words in VERDICTS for word in words)})\b")
VERDICT_TOKENS = 16


class Guard(Protocol):
    """name: id or folder. safety: a number [M] per pair, higher being safer; inf and NaN do not occur. It is the
    log-odds of safe, unless ``is_reward``: then it has no zero.
    """

    name: str
    is_reward: bool

    def safety(self, pairs: Sequence[Pair]) -> Array: ...


def load_guard(name_or_path: str) -> Guard:
    """A guard by hub id or folder: a sequence classifier, or a causal model that answers "safe" or "unsafe".

    ``id#LABEL`` or ``id#LABEL,LABEL`` says which labels of a classifier mean safe, where the labels do not.
    Raises ValueError for labels that do not say it, and for a model of another kind.
    """
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

    name, _, safe_labels = name_or_path.partition("#")
    check_name("guard", name)
    config = AutoConfig.from_pretrained(name, trust_remote_code=False)
    kind = (config.architectures or ["a model without a head"])[0]
    if kind.endswith("ForSequenceClassification"):
        model = AutoModelForSequenceClassification.from_pretrained(name, dtype="auto", trust_remote_code=False)
        return Classifier(
            name_or_path,
            model,
            AutoTokenizer.from_pretrained(name, trust_remote_code=False),
            safe_labels=safe_labels.split(",") if safe_labels else (),
        )
    if kind.endswith(("ForCausalLM", "LMHeadModel")):
        model = AutoModelForCausalLM.from_pretrained(name, dtype="auto", trust_remote_code=False)
        return Verdict(name, model, AutoTokenizer.from_pretrained(name, trust_remote_code=False))
    raise ValueError(f"guard {name}: must be a sequence classifier or a causal language model, got {kind}")


class Classifier:
    """A sequence classifier: safety is the log-odds of its safe labels; of labels that do not exclude one another, or
    none of which is safe, minus the highest log-odds of those that are not.

    A label is safe or unsafe by its name; where one is safe by name, all others are not, and where one is unsafe of
    labels that exclude one another, all others are safe. One label without a meaning in its name is a reward: higher is
    safer. safe_labels: which are safe, whatever the names say. max_length: tokens of a pair; the longer text is cut.
    """

    def __init__(
        self,
        name: str,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        safe_labels: Sequence[str] = (),
        max_length: int = 512,
        batch_size: int = 32,
    ) -> None:
        self.name, self.model, self.tokenizer, self.batch_size = name, model.eval(), tokenizer, batch_size
        config = model.config
        self.max_length = min(max_length, most_tokens(model, tokenizer) or max_length)
        _prepare(model, tokenizer, "right")
        labels = dict(config.id2label or {})
        names = [str(label) for _, label in sorted(labels.items())]
        self.multi = config.problem_type == "multi_label_classification"
        self.safe = _safe(name, names, safe_labels, exclusive=not self.multi)
        self.is_reward = all(self.safe)

    def encode(self, pair: Pair) -> dict[str, list[int]]:
        """Token ids and what else the model takes of one pair."""
        return dict(self.tokenizer(*pair, truncation="longest_first", max_length=self.max_length))

    def safety(self, pairs: Sequence[Pair]) -> Array:
        rows = [self.encode(pair) for pair in pairs]
        found = np.empty(len(rows))
        with torch.inference_mode():
            for batch in _batches([row["input_ids"] for row in rows], self.batch_size):
                inputs = self.tokenizer.pad([rows[i] for i in batch], return_tensors="pt").to(self.model.device)
                found[batch] = self._log_odds(self.model(**inputs).logits.double()).cpu().numpy()
        return found

    def _log_odds(self, logits: torch.Tensor) -> torch.Tensor:
        safe = torch.tensor(self.safe, device=logits.device)
        if self.is_reward:
            return logits[:, 0]
        if self.multi or not safe.any():
            return -logits[:, ~safe].amax(1)
        return logits[:, safe].logsumexp(1) - logits[:, ~safe].logsumexp(1)


class Verdict:
    """A causal model whose chat template asks for a verdict on a conversation, and which answers "safe" or "unsafe".

    What it writes before the verdict is taken from its greedy answer to the first pair; safety is the log-odds of the
    two words after that.
    """

    def __init__(
        self, name: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, batch_size: int = 8
    ) -> None:
        self.name, self.model, self.tokenizer, self.batch_size = name, model.eval(), tokenizer, batch_size
        self.is_reward = False
        if not tokenizer.chat_template:
            raise ValueError(f"guard {name}: wants a tokenizer with a chat_template that asks for a verdict")
        _prepare(model, tokenizer, "left")

    def safety(self, pairs: Sequence[Pair]) -> Array:
        found = np.empty(len(pairs))
        if not pairs:
            return found
        prompts = [self._prompt(*pair) for pair in pairs]
        before, safe, unsafe = self._verdict(prompts[0])
        rows = [prompt + before for prompt in prompts]
        for batch in _batches(rows, self.batch_size):
            logits = self._generate([rows[i] for i in batch], 1).logits[0].double()
            found[batch] = (logits[:, safe] - logits[:, unsafe]).cpu().numpy()
        return found

    def _prompt(self, instruction: str, response: str) -> list[int]:
        messages = [{"role": "user", "content": instruction}, {"role": "assistant", "content": response}]
        text = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def _generate(self, rows: list[list[int]], tokens: int) -> Any:
        inputs = self.tokenizer.pad({"input_ids": rows}, return_tensors="pt").to(self.model.device)
        return self.model.generate(
            **inputs, max_new_tokens=tokens, do_sample=False, output_logits=True, return_dict_in_generate=True
        )

    def _verdict(self, prompt: list[int]) -> tuple[list[int], int, int]:
        """The ids before the verdict, and the ids with which "safe" and "unsafe" part there."""
        answer = self._generate([prompt], VERDICT_TOKENS).sequences[0, len(prompt) :]
        text = str(self.tokenizer.decode(answer, skip_special_tokens=True))
        found = VERDICT.search(text)
        if found is None:
            raise ValueError(f"guard {self.name}: must answer 'safe' or 'unsafe', got {text!r}")
        words = next(words for words in VERDICTS if found.group() in words)
        safe, unsafe = (
            self.tokenizer(text[: found.start()] + word, add_special_tokens=False)["input_ids"] for word in words
        )
        at = next(i for i, (one, other) in enumerate(zip(safe, unsafe, strict=False)) if one != other)
        return safe[:at], safe[at], unsafe[at]


def _prepare(model: Any, tokenizer: PreTrainedTokenizerBase, side: str) -> None:
    """Padding as the model finds the last token by it; on the GPU where there is one."""
    if torch.cuda.is_available():
        model.to("cuda")
    tokenizer.padding_side = side
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    if model.config.pad_token_id is None:
        model.config.pad_token_id = tokenizer.pad_token_id


def _safe(name: str, labels: list[str], safe_labels: Sequence[str], *, exclusive: bool) -> list[bool]:
    """Which labels mean safe; all of them: a reward."""
    if safe_labels:
        safe = [label in safe_labels for label in labels]
        if all(safe) or sum(safe) < len(set(safe_labels)):
            raise ValueError(f"guard {name}: safe labels must be some of {labels}, got {list(safe_labels)}")
        return safe
    plain = [re.sub(r"[^a-z]", "", label.lower()) for label in labels]
    safe = [bool(SAFE_LABEL.search(label)) for label in plain]
    unsafe = [bool(UNSAFE_LABEL.search(label)) and not one for label, one in zip(plain, safe, strict=True)]
    if len(labels) == 1:
        return [not unsafe[0]]
    if exclusive and not any(safe) and any(unsafe) and not all(unsafe):
        return [not one for one in unsafe]
    if not all(safe) and (any(safe) or any(unsafe)):
        return safe
    raise ValueError(f"guard {name}: which of the labels {labels} means safe? Say it: {name}#LABEL")


def _batches(rows: Sequence[Sequence[int]], batch_size: int) -> Iterator[list[int]]:
    """Indices of rows in batches of alike lengths, the longest first."""
    order = sorted(range(len(rows)), key=lambda i: -len(rows[i]))
    return (order[start : start + batch_size] for start in range(0, len(order), batch_size))
