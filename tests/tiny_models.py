# SPDX-License-Identifier: Apache-2.0
"""Random models of a few thousand weights, one per architecture, and a tokenizer to go with them."""

from __future__ import annotations

import functools

import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

VOCAB, WIDTH, LAYERS = 64, 16, 4
COMMON = dict(
    vocab_size=VOCAB,
    hidden_size=WIDTH,
    num_hidden_layers=LAYERS,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=8,
    intermediate_size=32,
    max_position_embeddings=128,
)
GPT2 = dict(vocab_size=VOCAB, n_embd=WIDTH, n_layer=LAYERS, n_head=2, n_positions=128)
SLIDING = dict(sliding_window=4)
MOE = dict(num_experts=4, num_local_experts=4, num_experts_per_tok=2, moe_intermediate_size=16)

ARCHITECTURES: dict[str, dict] = {
    "llama": COMMON,
    "qwen2": COMMON,
    "qwen3": COMMON,
    "mistral": COMMON | SLIDING,
    "mixtral": COMMON | MOE | dict(sliding_window=None),
    "qwen3_moe": COMMON | MOE,
    "gemma": COMMON,
    "gemma2": COMMON | SLIDING,
    "gemma3_text": COMMON | SLIDING,
    "phi": COMMON | dict(num_key_value_heads=2),
    "phi3": COMMON | dict(pad_token_id=0),
    "gpt_neox": COMMON,
    "gpt2": GPT2,
    "gptj": GPT2 | dict(rotary_dim=4),
    "gpt_neo": COMMON | dict(num_layers=LAYERS, num_heads=2, attention_types=[[["global", "local"], 2]], window_size=4),
    "opt": COMMON | dict(ffn_dim=32, word_embed_proj_dim=WIDTH),
    "bloom": dict(vocab_size=VOCAB, hidden_size=WIDTH, n_layer=LAYERS, n_head=2),
    "falcon": dict(vocab_size=VOCAB, hidden_size=WIDTH, num_hidden_layers=LAYERS, num_attention_heads=2),
    "mpt": dict(vocab_size=VOCAB, d_model=WIDTH, n_layers=LAYERS, n_heads=2, max_seq_len=128, use_cache=True),
    "stablelm": COMMON,
    "starcoder2": COMMON | SLIDING,
    "olmo2": COMMON,
    "cohere": COMMON,
    "granite": COMMON,
    "glm": COMMON | dict(pad_token_id=0),
    "nemotron": COMMON,
    "gpt_bigcode": GPT2,
    "olmo": COMMON,
    "smollm3": COMMON,
    "gpt_oss": COMMON | MOE | SLIDING,
    "granitemoe": COMMON | MOE,
    "lfm2": COMMON | dict(layer_types=["conv", "full_attention"] * 2),
    "jamba": COMMON | MOE | dict(attn_layer_period=2, attn_layer_offset=1, mamba_d_state=4, use_mamba_kernels=False),
    "mamba": dict(vocab_size=VOCAB, hidden_size=WIDTH, num_hidden_layers=LAYERS, state_size=4),
    "mamba2": dict(
        vocab_size=VOCAB,
        hidden_size=WIDTH,
        num_hidden_layers=LAYERS,
        state_size=4,
        num_heads=4,
        head_dim=8,
        n_groups=1,
        chunk_size=8,
    ),
}
STATEFUL = {"lfm2", "jamba", "mamba", "mamba2"}  # their caches hold more than keys and values


def block_outputs(model: PreTrainedModel, tokens: Tensor, ks: tuple[int, ...]) -> Tensor:
    """States [T, d] of these layers, from one forward of the sequence [T] alone."""
    with torch.no_grad():
        states = model(tokens[None], output_hidden_states=True, use_cache=False).hidden_states
    first = 1 if model.config.model_type in ("mamba", "mamba2") else 0  # they leave the embeddings out of hidden_states
    return torch.cat([states[k - first] for k in ks], -1)[0]


@functools.cache
def tiny(name: str, dtype: torch.dtype = torch.float32, seed: int = 0) -> PreTrainedModel:
    """A model of LAYERS blocks and width WIDTH that never ends a row by itself (no EOS id); do not change it."""
    return fresh(name, dtype, seed)


def fresh(name: str, dtype: torch.dtype = torch.float32, seed: int = 0) -> PreTrainedModel:
    """As :func:`tiny`, for a test's own use."""
    ids = dict(bos_token_id=1, eos_token_id=None, pad_token_id=0)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        config = transformers.AutoConfig.for_model(name, **ids | ARCHITECTURES[name])
        model = AutoModelForCausalLM.from_config(config)
        for parameter in model.parameters():  # the default 0.02 makes all states alike
            if parameter.dim() > 1:
                torch.nn.init.normal_(parameter, std=0.3)
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = None
    return model.to(dtype).eval()


WORDS = ["[PAD]", "[EOS]", "[UNK]", "<user>", "<assistant>", *(f"w{i}" for i in range(5, VOCAB - 1)), "abcdef"]
CHAT_TEMPLATE = (
    "{% for message in messages %}<{{ message.role }}> {{ message.content }} {% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def tokenizer(chat_template: str | None = None) -> PreTrainedTokenizerFast:
    """One token per word ``w5`` .. ``w62``; ``abcdef`` is there for StopStringCriteria."""
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]", eos_token="[EOS]")
    made.chat_template = chat_template
    return made
