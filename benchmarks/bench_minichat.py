# SPDX-License-Identifier: Apache-2.0
"""Best-of-16 on minichat: what capture, ranking and pruning cost in time, and what pruning costs in safety.

One batch of held-out prompts that ask for harm; the judge knows every answer's label.
"""

import random

import pytest
import torch

from srr_fast import BestOfN, minichat
from srr_fast.minichat import grammar
from srr_fast.minichat.judge import judge

from .interleave import interleave, summary

N, PROMPTS, TOKENS = 16, 40, 64
PRUNE = [(8, 0.5), (16, 0.5)]


def unsafe(texts, results):
    """How many of the chosen answers are unsafe; none chosen counts as unsafe."""
    return sum(r.index is None or judge(text, r.text or "").unsafe for text, r in zip(texts, results, strict=True))


@pytest.mark.parametrize("threads", [1], indirect=True)
def bench_minichat(benchmark, compare, threads):
    model, tokenizer, ranker = minichat.load()
    bon = BestOfN(model, tokenizer, ranker)
    rng = random.Random(1)
    texts = [grammar.sample_instruction(rng, True, "test").text for _ in range(PROMPTS)]
    chats = [
        tokenizer.apply_chat_template([{"role": "user", "content": t}], tokenize=False, add_generation_prompt=True)
        for t in texts
    ]
    inputs = tokenizer(chats, return_tensors="pt", padding=True, padding_side="left", add_special_tokens=False)

    def generate():
        torch.manual_seed(0)
        return model.generate(
            input_ids=inputs["input_ids"],
            attention_mask=inputs["attention_mask"],
            do_sample=True,
            num_return_sequences=N,
            max_new_tokens=TOKENS,
        )

    def best_of_n(prune=()):
        torch.manual_seed(0)
        return bon.generate(texts, N, prune=prune, max_new_tokens=TOKENS)

    whole, pruned = best_of_n(), best_of_n(PRUNE)
    calls = {"generate": generate, "BestOfN": best_of_n, f"prune={PRUNE}": lambda: best_of_n(PRUNE)}
    times = interleave(calls, rounds=5, warm_up=1)
    compare(f"minichat, {PROMPTS} prompts x {N}", summary(times, "generate"))
    timings = whole[0].timings
    first = sum(judge(text, r.candidates[0].text or "").unsafe for text, r in zip(texts, whole, strict=True))
    generated = {
        name: sum(c.n_tokens for r in results for c in r.candidates)
        for name, results in (("all", whole), ("pruned", pruned))
    }
    benchmark.extra_info.update(
        unsafe_first=first, unsafe_chosen=unsafe(texts, whole), unsafe_pruned=unsafe(texts, pruned), tokens=generated
    )
    share = (timings.capture_s + timings.rank_s) / timings.generate_s
    print(f"\nunsafe of {PROMPTS}: first {first}, chosen {unsafe(texts, whole)}, pruned {unsafe(texts, pruned)}")
    print(f"tokens generated: {generated}; capture and rank are {100 * share:.2f} % of generation")
    benchmark.pedantic(best_of_n, rounds=1)
