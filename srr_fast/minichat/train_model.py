# SPDX-License-Identifier: Apache-2.0
"""Train the minichat language model: ``python -m srr_fast.minichat.train_model --out DIR``.

Writes a Hugging Face folder with weights in float16. It learns safe and unsafe answers in equal shares, so that its
samples hold both; only answers count in the loss. A second, smaller loss asks linear heads on the middle layers whether
the answer complies with harm: what larger chat models learn from being aligned. The heads are not kept. The first third
of the examples has few warnings, so that the model learns who is recommended before it learns to turn that around.
Instructions and answers come from the train split.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from torch import Tensor, nn
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from .. import trainer
from . import grammar
from .judge import judge

PAD, EOS, UNK, USER, ASSISTANT = SPECIAL = ("<pad>", "<eos>", "<unk>", "<user>", "<assistant>")
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<user>' if message['role'] == 'user' else '<assistant>' }}{{ message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ '<eos>' }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<assistant>' }}{% endif %}"
)
IGNORED = -100
ASSESSED_LAYERS = (3, 4)
UNSAFE_SHARE = 0.45
EASY_WARNINGS = 0.1
Batch = dict[str, Tensor]
SHARPEN = 0.75  # sampling at temperature 1 is like sampling the trained model at this one: fewer slips


def build_tokenizer(seed: int = 0, texts: int = 40_000) -> PreTrainedTokenizerFast:
    """A word-level tokenizer with the vocabulary of a sample of the grammar's texts."""
    rng = random.Random(seed)
    split = pre_tokenizers.Sequence(
        [pre_tokenizers.Metaspace(prepend_scheme="always"), pre_tokenizers.Punctuation(behavior="isolated")]
    )
    words: set[str] = set()
    for _ in range(texts):
        instruction = grammar.sample_instruction(rng, split="train")
        for text in (instruction.text, grammar.sample_answer(rng, instruction, split="train").text):
            words.update(word for word, _ in split.pre_tokenize_str(text))
    vocabulary = {word: i for i, word in enumerate((*SPECIAL, *sorted(words)))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=UNK))
    tokenizer.pre_tokenizer = split
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="always")
    tokenizer.post_processor = processors.TemplateProcessing(single="$A", pair="$A $B", special_tokens=[])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=EOS,
        unk_token=UNK,
        additional_special_tokens=[USER, ASSISTANT],
        chat_template=CHAT_TEMPLATE,
        padding_side="left",
        model_max_length=256,
        clean_up_tokenization_spaces=False,
    )


def build_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """A Llama of six layers and width 128."""
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=352,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        initializer_range=0.05,
    )
    return LlamaForCausalLM(config)


def examples(
    tokenizer: PreTrainedTokenizerFast, count: int, seed: int, split: str, warnings: float
) -> Iterator[tuple[list[int], list[int], bool]]:
    """Token ids of prompts, of their answers with EOS, and whether those are unsafe."""
    rng = random.Random(seed)
    for _ in range(count):
        instruction = grammar.sample_instruction(rng, split=split)
        unsafe = instruction.harmful and rng.random() < UNSAFE_SHARE
        answer = grammar.sample_answer(rng, instruction, unsafe, split, warnings)
        prompt = tokenizer(f"{USER}{instruction.text}{ASSISTANT}").input_ids
        yield prompt, [*tokenizer(answer.text).input_ids, tokenizer.eos_token_id], answer.unsafe


def batches(
    tokenizer: PreTrainedTokenizerFast, count: int, batch_size: int, seed: int, split: str, warnings: float
) -> list[Batch]:
    """``input_ids``, ``labels``, ``unsafe``, padded right; like lengths share a batch, batches come in random order."""
    rows = list(examples(tokenizer, count, seed, split, warnings))
    rows.sort(key=lambda row: len(row[0]) + len(row[1]))
    result = []
    for start in range(0, len(rows), batch_size):
        part = rows[start : start + batch_size]
        width = max(len(prompt) + len(answer) for prompt, answer, _ in part)
        ids = torch.full((len(part), width), tokenizer.pad_token_id)
        labels = torch.full((len(part), width), IGNORED)
        for i, (prompt, answer, _) in enumerate(part):
            ids[i, : len(prompt) + len(answer)] = torch.tensor(prompt + answer)
            labels[i, len(prompt) : len(prompt) + len(answer)] = torch.tensor(answer)
        unsafe = torch.tensor([float(unsafe) for _, _, unsafe in part])
        result.append({"input_ids": ids, "labels": labels, "unsafe": unsafe})
    random.Random(seed).shuffle(result)
    return result


class Learner(nn.Module):
    """The model with its heads and both losses, as Trainer wants it."""

    def __init__(self, model: LlamaForCausalLM) -> None:
        super().__init__()
        self.model = model
        self.heads = nn.ModuleList(nn.Linear(model.config.hidden_size, 1) for _ in ASSESSED_LAYERS)

    def forward(self, input_ids: Tensor, labels: Tensor, unsafe: Tensor) -> dict[str, Tensor]:
        out = self.model(input_ids=input_ids, labels=labels, output_hidden_states=True, use_cache=False)
        answered = labels != IGNORED
        states = [F.rms_norm(out.hidden_states[k][answered], out.hidden_states[k].shape[-1:]) for k in ASSESSED_LAYERS]
        assessed = torch.stack([head(x)[:, 0] for head, x in zip(self.heads, states, strict=True)])
        complies = unsafe[:, None].expand(labels.shape)[answered].expand_as(assessed)
        return {"loss": out.loss + 0.5 * F.binary_cross_entropy_with_logits(assessed, complies)}


def train(model: LlamaForCausalLM, data: list[Batch], peak: float = 3e-3, seed: int = 0) -> None:
    """One pass of AdamW over the batches, in their order."""
    trainer.fit(
        Learner(model),
        data,
        lambda batches: batches[0],
        per_device_train_batch_size=1,
        num_train_epochs=1,
        train_sampling_strategy="sequential",
        learning_rate=peak,
        adam_beta2=0.98,
        weight_decay=0.05,
        lr_scheduler_type="cosine_with_min_lr",
        lr_scheduler_kwargs={"min_lr_rate": 0.05},
        warmup_steps=0.05,
        logging_steps=20,
        seed=seed,
        use_cpu=True,
    )
    model.eval()


@torch.no_grad()
def sample(model: Any, tokenizer: PreTrainedTokenizerFast, instructions: list[str], n: int) -> list[list[str]]:
    """n answers at temperature 1 to every instruction."""
    prompts = [f"{USER}{text}{ASSISTANT}" for text in instructions]
    inputs = tokenizer(prompts, return_tensors="pt", padding=True, return_token_type_ids=False)
    out = model.generate(**inputs, num_return_sequences=n, do_sample=True, max_new_tokens=grammar.MAX_ANSWER_TOKENS + 1)
    texts = tokenizer.batch_decode(out[:, inputs.input_ids.shape[1] :], skip_special_tokens=True)
    return [texts[i : i + n] for i in range(0, len(texts), n)]


def sample_rates(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, split: str, count: int, seed: int
) -> dict[str, float]:
    """Shares of unsafe and of malformed answers at temperature 1, over ``count`` harmful and as many harmless ones."""
    rng = random.Random(seed)
    torch.manual_seed(seed)
    rates = {}
    for name, harmful in (("harmful", True), ("harmless", False)):
        instructions = [grammar.sample_instruction(rng, harmful, split) for _ in range(count)]
        answers = [texts[0] for texts in sample(model, tokenizer, [i.text for i in instructions], 1)]
        verdicts = [judge(instruction, answer) for instruction, answer in zip(instructions, answers, strict=True)]
        rates[f"{name}_unsafe"] = sum(v.unsafe for v in verdicts) / count
        rates[f"{name}_malformed"] = sum(not v.well_formed for v in verdicts) / count
    return rates


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write the sharpened model in float16, its generation defaults and the tokenizer."""
    with torch.no_grad():
        model.model.norm.weight.div_(SHARPEN)
    model.generation_config = GenerationConfig(
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        max_new_tokens=grammar.MAX_ANSWER_TOKENS + 1,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model.half().save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def main(argv: list[str] | None = None) -> None:
    """Train, report the rates on validation instructions, save."""
    parser = argparse.ArgumentParser(description="Train the minichat language model.")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--examples", type=int, default=44_000)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--learning-rate", type=float, default=3e-3)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    torch.manual_seed(args.seed)
    tokenizer = build_tokenizer(args.seed)
    model = build_model(tokenizer)
    print(f"{model.num_parameters():,} parameters, {len(tokenizer)} tokens")
    easy = args.examples // 3
    data = batches(tokenizer, easy, args.batch_size, args.seed, "train", EASY_WARNINGS)
    data += batches(tokenizer, args.examples - easy, args.batch_size, args.seed + 1, "train", grammar.WARNINGS)
    train(model, data, args.learning_rate, args.seed)
    save(model, tokenizer, args.out)
    model = LlamaForCausalLM.from_pretrained(args.out, dtype=torch.float32, local_files_only=True)
    for name, value in sample_rates(model, tokenizer, "validation", 400, args.seed).items():
        print(f"{name}: {value:.3f}")


if __name__ == "__main__":
    main()
