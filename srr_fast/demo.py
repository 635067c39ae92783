# SPDX-License-Identifier: Apache-2.0
"""``srr-fast demo``: best-of-N shown and measured, on the bundled minichat or on any model with a ranker.

On minichat the judge knows the true label of every answer, so the rates are exact.
"""

from __future__ import annotations

import random
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import Literal, TextIO

import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text
from tqdm import tqdm

from . import _native, minichat, reference
from .generation import BestOfN
from .loading import load_causal
from .minichat import grammar
from .minichat.judge import judge, parse_instruction
from .ranker import SafetyRanker
from .results import BestOfNResult

HARMFUL_SHARE = 0.8
BATCH = 4
WIDTH = 120  # columns where stdout is not a terminal
MARKS = {True: Text("unsafe", "red"), False: Text("safe", "green"), None: Text("?", "dim")}


class Demo:
    """One run of the demo. model and ranker: a hub id or folder and a ranker's folder; None is minichat."""

    def __init__(
        self,
        model: str | None = None,
        ranker: str | None = None,
        *,
        n: int = 16,
        seed: int = 0,
        max_new_tokens: int = 64,
        file: TextIO | None = None,
    ) -> None:
        self.n, self.seed, self.max_new_tokens = n, seed, max_new_tokens
        file = file or sys.stdout
        self.console = Console(file=file, width=None if file.isatty() else WIDTH)
        self.judged = model is None
        self.name = model or minichat.MODEL_ID
        if model is None:
            lm, tokenizer, self.ranker = minichat.load()
        else:
            assert ranker is not None
            lm, tokenizer = load_causal(model)
            self.ranker = SafetyRanker.from_pretrained(ranker)
        self.best_of_n = BestOfN(lm, tokenizer, self.ranker)

    def run(self, *, prompts: int = 60, texts: Sequence[str] | None = None, tables: int = 4) -> None:
        """Generate for ``texts``, or for so many held-out prompts, and print everything."""
        texts = list(texts or self.held_out(prompts))
        self.console.print(
            f"Best of {self.n} for {len(texts)} prompts on {self.name}, {describe(self.ranker)}.", soft_wrap=True
        )
        results = self.generate(texts)
        labels = [self.labels(text, result) for text, result in zip(texts, results, strict=True)]
        for text, result, unsafe in list(zip(texts, results, labels, strict=True))[:tables]:
            self.console.print(Text(f"\n{text}", "bold"), soft_wrap=True)
            self.console.print(self.table(result, unsafe))
        if len(texts) > tables:
            self.console.print(f"... and {len(texts) - tables} more prompts.")
        self.console.rule("Summary")
        if self.judged:
            self.print_rates(texts, results, labels)
        self.print_times(results)

    def held_out(self, count: int) -> list[str]:
        """Instructions that no training saw; four of five ask for harm, the fifth does not."""
        rng = random.Random(self.seed)
        period = round(1 / (1 - HARMFUL_SHARE))
        return [grammar.sample_instruction(rng, i % period != period - 1, "test").text for i in range(count)]

    def generate(self, texts: list[str]) -> list[BestOfNResult]:
        """One result per prompt, a few prompts at a time."""
        torch.manual_seed(self.seed)
        results: list[BestOfNResult] = []
        with tqdm(total=len(texts), desc="generate", unit="prompt", disable=None) as bar:
            for start in range(0, len(texts), BATCH):
                part = texts[start : start + BATCH]
                results += self.best_of_n.generate(part, n=self.n, max_new_tokens=self.max_new_tokens)
                bar.update(len(part))
        return results

    def labels(self, text: str, result: BestOfNResult) -> list[bool | None]:
        """Whether each candidate is unsafe; None where the judge has no say."""
        if not self.judged:
            return [None] * len(result.candidates)
        try:
            return [judge(text, candidate.text or "").unsafe for candidate in result.candidates]
        except ValueError:  # a prompt outside the grammar
            return [None] * len(result.candidates)

    def table(self, result: BestOfNResult, unsafe: list[bool | None]) -> Table:
        """The candidates of one prompt, best first."""
        table = Table()
        names = ["chosen", "#", "score", "prob"]
        names += ["safety"] * (self.ranker.calibration is not None) + ["judge"] * self.judged
        for name in names:
            justify: Literal["left", "right"] = "left" if name in ("chosen", "judge") else "right"
            table.add_column(name, justify=justify, no_wrap=True, min_width=max(len(name), 6))
        table.add_column("answer", no_wrap=True, overflow="ellipsis")
        order = sorted(range(len(result.candidates)), key=lambda i: (-result.candidates[i].score, i))
        for i in order:
            candidate = result.candidates[i]
            cells: list[str | Text] = [
                "->" if i == result.index else "",
                str(i),
                f"{candidate.score:.3f}",
                f"{candidate.prob:.3f}",
            ]
            if self.ranker.calibration is not None:
                cells.append("" if candidate.safety is None else f"{candidate.safety:.3f}")
            if self.judged:
                cells.append(MARKS[unsafe[i]])
            table.add_row(*cells, Text(" ".join((candidate.text or "").split())))
        return table

    def print_rates(self, texts: list[str], results: list[BestOfNResult], labels: list[list[bool | None]]) -> None:
        """Unsafe rates over the harmful prompts; a prompt for which nothing was chosen counts as unsafe."""
        harmful = [i for i, text in enumerate(texts) if asks_for_harm(text)]
        if not harmful:
            self.console.print("Unsafe rates: no harmful prompt that the judge knows.")
            return
        first = sum(bool(labels[i][0]) for i in harmful)
        chosen = 0
        for i in harmful:
            index = results[i].index
            chosen += index is None or bool(labels[i][index])
        possible = sum(all(labels[i]) for i in harmful)
        self.console.print(f"Unsafe answers over {len(harmful)} harmful prompts, judged exactly:", soft_wrap=True)
        table = Table()
        table.add_column("answer")
        table.add_column("unsafe", justify="right")
        table.add_column("rate", justify="right")
        for name, count in (("first sample", first), ("chosen", chosen), ("best possible", possible)):
            table.add_row(name, str(count), f"{count / len(harmful):.3f}")
        self.console.print(table)

    def print_times(self, results: list[BestOfNResult]) -> None:
        """Ranking next to generation, native next to reference."""
        calls = [results[i].timings for i in range(0, len(results), BATCH)]
        generate_s, capture_s, rank_s = (sum(column) for column in list(zip(*calls, strict=True))[:3])
        ranking_s = capture_s + rank_s
        self.console.print(
            f"Generation {generate_s:.2f} s; ranking {1e3 * ranking_s:.1f} ms (capture {1e3 * capture_s:.1f}, "
            f"score {1e3 * rank_s:.1f}), {100 * ranking_s / generate_s:.2f} % of generation.",
            soft_wrap=True,
        )
        self.console.print(compare_backends(self.ranker, self.n), soft_wrap=True)
        self.console.print(f"Backend used: {backend(self.ranker)}.")


def describe(ranker: SafetyRanker) -> str:
    """The ranker in a few words."""
    config = ranker.config
    return f"a ranker of layer {config.layer}, {config.pooling} pooling, scope {config.scope}, p = {config.proj_dim}"


def asks_for_harm(text: str) -> bool:
    """Whether the judge knows the prompt and takes it for harmful."""
    try:
        return parse_instruction(text).harmful
    except ValueError:
        return False


def backend(ranker: SafetyRanker) -> str:
    """What scores this ranker's states on its own device."""
    return "native" if ranker.prepare().packed is not None else "reference"


def compare_backends(ranker: SafetyRanker, n: int, repeats: int = 200) -> str:
    """Median time of one scoring call of n candidates, native and reference in turn."""
    generator = torch.Generator().manual_seed(0)
    inst = torch.randn(1, ranker.config.state_size, generator=generator)
    resp = torch.randn(n, ranker.config.state_size, generator=generator)
    scorer = ranker.prepare("cpu")
    config = ranker.config

    def by_reference() -> None:
        reference.score(
            inst,
            resp,
            scorer.weights,
            heads=config.num_heads,
            layers=config.num_layers,
            scope=config.scope,
            temperature=config.temperature,
            norm_first=config.norm_first,
        )

    calls: list[Callable[[], object]] = [by_reference]
    if scorer.packed is not None:
        calls.append(lambda: scorer(inst, resp))
    seconds: list[list[float]] = [[] for _ in calls]
    with torch.inference_mode():
        for i in range(repeats + 10):
            for call, taken in zip(calls, seconds, strict=True):
                start = time.perf_counter()
                call()
                if i >= 10:
                    taken.append(time.perf_counter() - start)
    reference_us, *native_us = (1e6 * statistics.median(taken) for taken in seconds)
    text = f"Scoring {n} candidates on the CPU: reference {reference_us:.0f} us; "
    if native_us:
        return f"{text}native {native_us[0]:.0f} us, {reference_us / native_us[0]:.1f} times as fast."
    why = "not used" if _native.missing_reason == "SRR_FAST_BACKEND=reference" else "not built"
    return f"{text}native {why}: {_native.missing_reason}."
