# SPDX-License-Identifier: Apache-2.0
"""Tells one backbone, and its way to read texts, from another: a ranker is for the states it was trained on alone."""

from __future__ import annotations

import hashlib
import json
import warnings
from typing import TYPE_CHECKING

import torch

from .backbone import is_encoder
from .decoder import decoder_layers
from .reading import READ

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor, nn
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from .ranker import SafetyRanker

CONFIG_FIELDS = (
    "model_type",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "intermediate_size",
)
SAMPLE = 16  # values read of every weight
PROBE = (  # what tokenizers part in their own ways
    "The 7 foxes didn't  jump\tover 1,234.5\u202f€;\r\n  naïve straße e\u0301 ﬁ \uff21 if(x_1!=y){}\n\n"
    "Ωμέγα привет 你好世界 こんにちは 한국 مرحبا नमस्ते 🙂👩\u200d👧 "
    "<s></s><|endoftext|><|im_start|><|im_end|>[CLS][SEP]<unk>"
)
DIGITS = 16


def of_model(model: PreTrainedModel, layers: Sequence[nn.Module] | None = None) -> str:
    """A hash of 16 hex digits of the weights that make a model's hidden states.

    Covers the shape of the text config and 16 evenly spaced values of each parameter of the decoder blocks, rounded to
    bfloat16: float32 and bfloat16 loads of the same weights agree. Embeddings and head are left out, so added tokens
    do not matter. Quantised weights and active adapters give another fingerprint, as they give other states.
    layers: as in :func:`decoder.decoder_layers`.

    Raises ValueError when a weight is on the meta device (offloaded).
    """
    config = model.config.get_text_config(decoder=True)
    fields = [getattr(config, name, None) for name in CONFIG_FIELDS]
    digest = hashlib.sha256(json.dumps(fields).encode())
    for layer in decoder_layers(model, layers):
        for name, weight in layer.named_parameters():
            digest.update(_sample(name, weight))
    return digest.hexdigest()[:DIGITS]


def of_reading(model: PreTrainedModel | None, tokenizer: PreTrainedTokenizerBase) -> str:
    """A hash of 16 hex digits of how texts become the tokens that are read.

    Covers the ids of a probe text with its special tokens, the chat template as it is written, for what it renders may
    name the day, and the way this package reads texts. model: None is a causal one that other processes hold.
    """
    kind = "encoder" if model is not None and is_encoder("fingerprint", model) else "causal"
    content = [kind, READ[kind], tokenizer.chat_template, tokenizer(PROBE, verbose=False)["input_ids"]]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:DIGITS]


def of_input(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> str:
    """A hash of 16 hex digits of what else makes a text's states: tokenizer, embeddings, final norm.

    Covers the tokenizer's whole content with its chat template and length limit. An encoder's pooler is left out, for
    it is random where a checkpoint has none. Raises ValueError when a weight is on the meta device.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        content: dict[str, object] = {"class": type(tokenizer).__name__, "vocab": tokenizer.get_vocab()}
        content["special"] = {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
    else:
        content = json.loads(backend.to_str())
        for name in ("truncation", "padding"):  # of the last call
            content.pop(name, None)
    content |= {"chat_template": tokenizer.chat_template, "model_max_length": tokenizer.model_max_length}
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode())
    inner = {id(weight) for layer in decoder_layers(model) for weight in layer.parameters()}
    for name, weight in (model.get_decoder() or model).named_parameters():
        if id(weight) not in inner and "pooler" not in name.split("."):
            digest.update(_sample(name, weight))
    return digest.hexdigest()[:DIGITS]


def _sample(name: str, weight: Tensor) -> bytes:
    """Evenly spaced values of a weight, rounded to bfloat16."""
    if weight.is_meta:
        raise ValueError(f"fingerprint: weight {name} is on the meta device, its values cannot be read")
    flat = weight.detach().reshape(-1)
    sample = flat[:: max(len(flat) // SAMPLE, 1)][:SAMPLE]
    return sample.to("cpu", torch.bfloat16).contiguous().view(torch.uint8).numpy().tobytes()


def warn_if_other(
    op: str,
    ranker: SafetyRanker,
    model: PreTrainedModel | None,
    tokenizer: PreTrainedTokenizerBase | None,
    layers: Sequence[nn.Module] | None = None,
    *,
    stacklevel: int,
) -> None:
    """Warn when the ranker knows what it was trained with and this is another model, tokenizer or chat template.

    model, tokenizer: None is not at hand and not compared. stacklevel: of the caller, as in warnings.warn.
    """
    compared = []
    if model is not None and ranker.model_fingerprint is not None:
        try:
            found = of_model(model, layers)
        except ValueError as error:
            found = str(error)
        compared.append(("weights", ranker.model_fingerprint, found))
    if tokenizer is not None and ranker.reading_fingerprint is not None:
        compared.append(("tokenizer or chat template", ranker.reading_fingerprint, of_reading(model, tokenizer)))
    others = [f"other {what}, fingerprint {known}, here {found}" for what, known, found in compared if known != found]
    if others:
        warnings.warn(
            f"{op}: the ranker was trained on {ranker.model_id or 'a model'} with {' and '.join(others)}: "
            "its scores may mean nothing here",
            UserWarning,
            stacklevel=stacklevel + 1,
        )
