# SPDX-License-Identifier: Apache-2.0
"""Train minichat's safety ranker: ``python -m srr_fast.minichat.train_ranker --out DIR``.

Samples answers from the language model, labels every answer with the judge, and fits a :class:`SafetyRanker` to the
states as ``srr-fast train --objective pointwise`` does: labels are exact and thousands, and scores of different prompts
must be comparable, of which harmless ones have one label only. Both scopes are trained; the one with the higher
within-list AUC on validation lists is saved, ``pair`` unless ``list`` is better by more than ``--margin``.
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm, trange

from .. import fingerprint
from ..config import RankerConfig
from ..decoder import state_modules
from ..examples import Examples
from ..forced import BATCH_TOKENS, pool_given
from ..metrics import list_metrics
from ..ranker import SafetyRanker
from ..train import TrainingOptions, train
from . import MODEL_ID, grammar, load_model
from .judge import judge


class Lists(NamedTuple):
    """B lists of n judged answers. inst [B, d], resp [B, n, d], safe [B, n] bool, harmful [B] bool."""

    inst: Tensor
    resp: Tensor
    safe: Tensor
    harmful: Tensor
    well_formed: Tensor

    def take(self, rows: Tensor) -> Lists:
        """Some of the lists."""
        return Lists(*(value[rows] for value in self))

    @property
    def offsets(self) -> Tensor:
        """[B + 1] of the answers, list after list."""
        return torch.arange(len(self.safe) + 1) * self.safe.shape[1]

    def examples(self) -> Examples:
        """What training reads."""
        return Examples(self.inst, self.resp.flatten(0, 1), self.offsets, self.safe.flatten())


class Quality(NamedTuple):
    """Over the harmful lists: share unsafe of the first, the chosen, the best possible; AUC within mixed lists."""

    first_unsafe: float
    chosen_unsafe: float
    best_possible_unsafe: float
    within_list_auc: float
    mixed_lists: float
    lists: int


@torch.no_grad()
def sample_lists(
    model: Any,
    tokenizer: Any,
    split: str,
    counts: tuple[int, int],
    n: int,
    layer: int,
    seed: int,
    batch_size: int = 24,
) -> Lists:
    """Lists of n answers at temperature 1 to ``counts`` = (harmful, harmless) instructions of a split."""
    rng = random.Random(seed)
    torch.manual_seed(seed)
    instructions = [
        grammar.sample_instruction(rng, h, split) for h, k in zip((True, False), counts, strict=True) for _ in range(k)
    ]
    read = state_modules(model, [layer])
    rows: list[tuple[Tensor, ...]] = []
    for start in trange(0, len(instructions), batch_size, desc=f"sample {split}"):
        part = instructions[start : start + batch_size]
        chats = [
            tokenizer.apply_chat_template(
                [{"role": "user", "content": i.text}], tokenize=False, add_generation_prompt=True
            )
            for i in part
        ]
        inputs = tokenizer(chats, return_tensors="pt", padding=True, return_token_type_ids=False)
        out = model.generate(**inputs, num_return_sequences=n, do_sample=True)[:, inputs.input_ids.shape[1] :].tolist()
        ended = [_until_end(ids, tokenizer.eos_token_id) for ids in out]
        answers = [ended[i : i + n] for i in range(0, len(ended), n)]
        inst, resp = pool_given(model, read, tokenizer(chats).input_ids, answers, batch_tokens=BATCH_TOKENS)
        for i, instruction in enumerate(part):
            verdicts = [judge(instruction, tokenizer.decode(ids, skip_special_tokens=True)) for ids in answers[i]]
            safe = torch.tensor([not v.unsafe for v in verdicts])
            well_formed = torch.tensor([v.well_formed for v in verdicts])
            rows.append((inst[i], resp[i * n : (i + 1) * n], safe, torch.tensor(instruction.harmful), well_formed))
    return Lists(*(torch.stack(column) for column in zip(*rows, strict=True)))


def _until_end(ids: list[int], eos: int) -> list[int]:
    """The tokens before EOS; an answer cut off by the token limit ends with a token that was never fed back."""
    return ids[: ids.index(eos)] if eos in ids else ids[:-1]


@torch.no_grad()
def scores_of(ranker: SafetyRanker, lists: Lists) -> Tensor:
    """[B, n] scores."""
    return ranker.score(lists.inst, lists.resp.flatten(0, 1)).scores.view(lists.safe.shape)


def quality(scores: Tensor, lists: Lists) -> Quality:
    """What choosing by these scores [B, n] gives on the harmful lists."""
    scores, lists = scores[lists.harmful], lists.take(lists.harmful)
    unsafe = ~lists.safe
    chosen = unsafe.gather(1, scores.argmax(1, keepdim=True))
    mixed = list_metrics(scores.flatten(), lists.safe.flatten(), lists.offsets)
    return Quality(
        unsafe[:, 0].float().mean().item(),
        chosen.float().mean().item(),
        unsafe.all(1).float().mean().item(),
        float(mixed.auc.mean()),
        len(mixed.lists) / len(unsafe),
        len(unsafe),
    )


def main(argv: list[str] | None = None) -> None:
    """Sample, train both scopes, choose, calibrate, test, save."""
    parser = argparse.ArgumentParser(description="Train minichat's safety ranker.")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--model", type=Path, help="folder of the language model; default: the bundled one")
    parser.add_argument("--instructions", type=int, default=400, help="harmful ones to train on; a fifth more harmless")
    parser.add_argument("--answers", type=int, default=16, help="sampled per instruction")
    parser.add_argument("--layer", type=float, default=0.5, help="fraction of the depth")
    parser.add_argument("--margin", type=float, default=0.005, help="AUC by which list must beat pair")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    model, tokenizer = load_model(args.model)
    configs = {
        scope: RankerConfig(model.config.hidden_size, layer=args.layer, pooling="mean", scope=scope)
        for scope in ("pair", "list")
    }
    (layer,) = configs["pair"].layer_indices(model.config.num_hidden_layers)

    def lists(split: str, harmful: int, seed: int) -> Lists:
        return sample_lists(model, tokenizer, split, (harmful, harmful // 5), args.answers, layer, seed)

    data = lists("train", args.instructions, args.seed)
    validation = lists("validation", max(args.instructions // 4, 1), args.seed + 1)
    test = lists("test", max(args.instructions // 2, 1), args.seed + 2)
    options = TrainingOptions(objective="pointwise", seed=args.seed)
    rankers = {
        scope: train(config, data.examples(), validation.examples(), options).ranker
        for scope, config in configs.items()
    }
    found = {scope: quality(scores_of(ranker, validation), validation) for scope, ranker in rankers.items()}
    for scope, result in found.items():
        tqdm.write(f"validation, {scope}: {result}")
    better = found["list"].within_list_auc > found["pair"].within_list_auc + args.margin
    ranker = rankers["list" if better else "pair"]
    ranker.model_id, ranker.model_fingerprint = MODEL_ID, fingerprint.of_model(model)
    ranker.reading_fingerprint = fingerprint.of_reading(model, tokenizer)
    ranker.metrics = test_metrics(ranker, test)
    ranker.save_pretrained(args.out)
    for name, value in ranker.metrics.items():
        print(f"test {name}: {value}")
    for name, value in quality(scores_of(rankers["pair" if better else "list"], test), test)._asdict().items():
        print(f"test {name}, other scope: {value:.4f}")


@torch.no_grad()
def test_metrics(ranker: SafetyRanker, test: Lists) -> dict[str, Any]:
    """What goes into the checkpoint."""
    scores = scores_of(ranker, test)
    safety = ranker.safety(scores)
    assert safety is not None
    metrics: dict[str, Any] = quality(scores, test)._asdict()
    metrics |= {
        "candidates": test.safe.shape[1],
        "unsafe_share": (~test.safe[test.harmful]).float().mean().item(),
        "malformed_share": (~test.well_formed).float().mean().item(),
        "brier": (safety - test.safe.float()).square().mean().item(),
        "harmless_safety": safety[~test.harmful].mean().item(),
        "split": "held-out instructions",
    }
    return {key: round(value, 4) if isinstance(value, float) else value for key, value in metrics.items()}


if __name__ == "__main__":
    main()
