# SPDX-License-Identifier: Apache-2.0
"""What kind of model reads the texts: a causal language model, or an encoder whose tokens see each other both ways."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
)

UNBOUNDED = 1 << 30  # tokenizers without a limit say a number beyond it


def load_backbone(name_or_path: str | Path, *, trust_remote_code: bool = False) -> tuple[Any, Any]:
    """A model in eval mode and its tokenizer, from a local folder or a Hugging Face repository.

    A causal language model comes with its head, an encoder without. float32 on the CPU; where there is a GPU, there
    and in the checkpoint's own dtype. trust_remote_code: run code that comes with the model.
    Raises OSError for a model that cannot be found, ValueError for an encoder-decoder.
    """
    check_name("load_backbone", name_or_path)
    options: dict[str, Any] = {"trust_remote_code": trust_remote_code}
    config = AutoConfig.from_pretrained(name_or_path, **options)
    if config.is_encoder_decoder:
        raise ValueError(
            f"load_backbone: wants a causal model or an encoder, {name_or_path} is encoder-decoder, {config.model_type}"
        )
    own = "AutoModelForCausalLM" in (getattr(config, "auto_map", None) or {})
    causal = own or (config.model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and not _masked(config))
    cuda = torch.cuda.is_available()
    model: Any = (AutoModelForCausalLM if causal else AutoModel).from_pretrained(
        name_or_path, dtype="auto" if cuda else torch.float32, **options
    )
    model = model.to("cuda") if cuda else model
    return model.eval(), AutoTokenizer.from_pretrained(name_or_path, **options)


def check_name(op: str, name_or_path: str | Path) -> None:
    """Raise FileNotFoundError for what can only be a local folder and is not there."""
    path = Path(name_or_path)
    if not path.exists() and (path.is_absolute() or str(name_or_path).startswith((".", "~")) or len(path.parts) > 2):
        raise FileNotFoundError(f"{op}: there is no folder {str(name_or_path)!r}")


def is_encoder(op: str, model: Any) -> bool:
    """Whether the model is an encoder; if not, it is a causal language model.

    Told by the model's type, for it is the same before and after loading: an encoder is what Hugging Face trains as a
    masked language model and does not configure as a decoder, or a type unknown there that cannot generate.
    Raises TypeError or ValueError, its message starting with ``op``, for a model that is neither.
    """
    config = getattr(model, "config", None)
    if config is not None and getattr(config, "is_encoder_decoder", False):
        raise ValueError(f"{op}: model must be decoder-only or an encoder, {type(model).__name__} is encoder-decoder")
    if config is not None and _masked(config):
        return True
    if callable(getattr(model, "generate", None)):
        return False
    kinds = set() if config is None else {config.model_type, config.get_text_config(decoder=True).model_type}
    if config is None or kinds & set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES):
        raise TypeError(
            f"{op}: model must be a transformers model with generate, or an encoder, got {type(model).__name__}"
        )
    return True


def check_decoder(op: str, model: Any) -> None:
    """Raise ValueError unless the model is decoder-only, TypeError for one that is none of transformers'."""
    if is_encoder(op, model):
        raise ValueError(f"{op}: model must be decoder-only, {type(model).__name__} is an encoder")


def check_positions(op: str, model: Any, tokens: int) -> None:
    """Raise ValueError where so many tokens are more than the model has learned positions for, in a table of them.

    Most models compute positions and take more than they were trained on, for better or worse.
    """
    most = most_tokens(model)
    if not most or tokens <= most:
        return
    for name, module in (model.get_decoder() or model).named_modules():
        if (
            isinstance(module, nn.Embedding)
            and re.search("pos|wpe", name)
            and most <= module.num_embeddings <= most + 2
        ):
            raise ValueError(
                f"{op}: prompt and answer may have {tokens} tokens, {type(model).__name__} has {most} positions; "
                "shorten the prompt or lower max_new_tokens"
            )


def check_ids(what: str, low: int, high: int, vocab: int | None) -> None:
    """Raise ValueError, its message starting with ``what``, unless ids from low to high are some that a model takes."""
    if low < 0 or (vocab is not None and high >= vocab):
        raise ValueError(f"{what} must have ids in 0 .. {'' if vocab is None else vocab - 1}, got {low} .. {high}")


def vocab_size(model: Any) -> int | None:
    """How many ids the model takes; None where neither its embeddings nor its config say."""
    try:
        found = getattr(model.get_input_embeddings(), "num_embeddings", None)
    except NotImplementedError:
        found = None
    return found or getattr(model.config.get_text_config(decoder=True), "vocab_size", None)


def most_tokens(model: Any, tokenizer: Any = None) -> int | None:
    """The longest sequence the model takes, in tokens; None where its config names no limit.

    tokenizer: its limit counts too; for encoders, whose configs do not always say.
    """
    limits = [getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", None)]
    for name, module in model.named_modules():
        # RoBERTa and its kin number positions from behind the padding index.
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding) and module.padding_idx is not None:
            limits.append(module.num_embeddings - module.padding_idx - 1)
    limits.append(getattr(tokenizer, "model_max_length", None))
    return min((int(limit) for limit in limits if limit and limit < UNBOUNDED), default=None)


def _masked(config: Any) -> bool:
    return config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES and not getattr(config, "is_decoder", False)
