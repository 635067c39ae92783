# SPDX-License-Identifier: Apache-2.0
"""Which models can be read, as what, and how they are loaded."""

from __future__ import annotations

import pytest
import torch
from transformers import BertForMaskedLM, BertLMHeadModel, LlamaModel, T5Config, T5ForConditionalGeneration

from srr_fast import backbone
from srr_fast import extract as module
from srr_fast.extract import extract

from .plain_states import ROWS
from .tiny_encoders import encoder, pair_tokenizer
from .tiny_models import fresh, tiny, tokenizer


def test_models_that_are_neither():
    words = tokenizer()
    t5 = T5ForConditionalGeneration(T5Config(vocab_size=8, d_model=16, d_kv=8, d_ff=8, num_layers=2, num_heads=2))
    with pytest.raises(ValueError, match=r"extract: .*encoder-decoder"):
        extract(t5.eval(), words, ROWS, layers=[1], poolings=["mean"])
    with pytest.raises(TypeError, match=r"extract: model must be .* with generate, or an encoder, got LlamaModel"):
        extract(LlamaModel(tiny("llama").config).eval(), words, ROWS, layers=[1], poolings=["mean"])
    assert backbone.is_encoder("x", BertForMaskedLM(encoder("bert").config))
    config = type(encoder("bert").config)(**encoder("bert").config.to_dict() | {"is_decoder": True})
    assert not backbone.is_encoder("x", BertLMHeadModel(config))


def test_load_backbone(tmp_path):
    words = tokenizer()
    for name, model in {
        "llama": fresh("llama", torch.bfloat16),
        "bert": encoder("bert"),
        "masked": BertForMaskedLM(encoder("bert").config),
    }.items():
        model.save_pretrained(tmp_path / name)
        (words if name == "llama" else pair_tokenizer("bert")).save_pretrained(tmp_path / name)
        loaded, its = backbone.load_backbone(tmp_path / name)
        assert not loaded.training and loaded.dtype == (torch.float32 if loaded.device.type == "cpu" else model.dtype)
        assert type(loaded).__name__ == {"llama": "LlamaForCausalLM"}.get(name, "BertModel")
        assert its.is_fast and backbone.is_encoder("x", loaded) == (name != "llama")
    assert len({module.cache_name(*backbone.load_backbone(tmp_path / "masked")) for _ in range(2)}) == 1
    T5ForConditionalGeneration(
        T5Config(vocab_size=8, d_model=16, d_kv=8, d_ff=8, num_layers=2, num_heads=2)
    ).save_pretrained(tmp_path / "t5")
    with pytest.raises(ValueError, match="encoder-decoder"):
        backbone.load_backbone(tmp_path / "t5")
