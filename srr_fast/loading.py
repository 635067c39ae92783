# SPDX-License-Identifier: Apache-2.0
"""A language model, its tokenizer and its ranker by the names that a command line or a request gives."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from transformers.utils import logging

from . import minichat
from .ranker import SafetyRanker

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def load_causal(name: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A causal language model in its own dtype, on the GPU where there is one, and its tokenizer."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    device = "cuda" if torch.cuda.is_available() else "cpu"
    model: Any = AutoModelForCausalLM.from_pretrained(name, dtype="auto", trust_remote_code=False)
    return model.to(device).eval(), AutoTokenizer.from_pretrained(name, trust_remote_code=False)


def load(
    model: str | None, ranker: str | None, load_model: Callable[[str], tuple[Any, Any]] = load_causal
) -> tuple[Any, Any, SafetyRanker]:
    """Model, tokenizer and ranker by hub id or folder; None is minichat's."""
    logging.disable_progress_bar()
    if model is None or ranker is None:
        return minichat.load()
    scorer = SafetyRanker.from_pretrained(ranker)
    return *load_model(model), scorer
