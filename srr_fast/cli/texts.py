# SPDX-License-Identifier: Apache-2.0
"""``srr-fast rank`` and ``srr-fast generate``: texts in, a table, JSON or JSONL out."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from .. import minichat
from ..answers import Prompt, answer, result_rows, text_of
from ..backbone import load_backbone
from ..generation import BestOfN
from ..loading import load
from ..results import BestOfNResult


def rank(
    model: str | None, ranker: str | None, instruction: str, candidates: str, top_k: int | None, form: str
) -> None:
    """Print the candidates of a file, best first. model and ranker: None is minichat; form: text, json or jsonl."""
    texts = read(candidates, text_of)
    lm, tokenizer, scorer = load(model, ranker, load_backbone)
    ranked = scorer.rank(lm, tokenizer, instruction, texts, top_k=top_k)
    results = result_rows(ranked)
    if form == "json":
        _print_json({"model": model or minichat.MODEL_ID, "query": instruction, "results": results})
    elif form == "jsonl":
        for result in results:
            _print_json(result)
    else:
        print(f"{'index':>5}  {'score':>7}  {'prob':>6}  {'safety':>6}  text")
        for r in ranked:
            safety = "-" if r.safety is None else f"{r.safety:.4f}"
            print(f"{r.index:>5}  {r.score:>7.4f}  {r.prob:>6.4f}  {safety:>6}  {' '.join((r.text or '').split())}")


def generate(
    model: str | None, ranker: str | None, prompts: Sequence[Prompt], form: str, seed: int, **options: Any
) -> None:
    """Print the safest of n answers to each prompt. options: of :meth:`BestOfN.generate`; the rest as for :func:`rank`.

    Text is the answers alone, each under its prompt where there are several; what was not answered is said on stderr.
    """
    lm, tokenizer, scorer = load(model, ranker)
    torch.manual_seed(seed)
    results = _answers(BestOfN(lm, tokenizer, scorer), prompts, options)
    if form == "json":
        answers = [answer(prompt, result) for prompt, result in results]
        _print_json({"model": model or minichat.MODEL_ID, "results": answers})
        return
    for number, (prompt, result) in enumerate(results):
        if form == "jsonl":
            _print_json(answer(prompt, result))
            continue
        if len(prompts) > 1:
            print(f"> {prompt if isinstance(prompt, str) else prompt[-1]['content']}")
        print(result.text or "", flush=True)
        if result.abstained:
            print(f"srr-fast generate: prompt {number}: {result.abstained}", file=sys.stderr)


def read(path: str, item: Callable[[Any], Any]) -> list[Any]:
    """The items of a file, ``-`` for stdin: JSON, JSONL, or else a text per line; blank lines do not count.

    item: takes a JSON value, gives the item or None. A file called .json or .jsonl must be that, and where the first
    line is a JSON object all must be JSON.
    Raises ValueError naming the item that is none, OSError for a file that cannot be read.
    """
    try:
        text = _stdin() if path == "-" else Path(path).read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: is not UTF-8: {error}") from error
    numbered = {number: line.rstrip("\r") for number, line in enumerate(text.split("\n"), 1) if line.strip()}
    lines = list(numbered.values())
    suffix = Path(path).suffix
    values = None
    if suffix != ".jsonl" and (suffix == ".json" or text.lstrip().startswith("[")):
        values = _json(path, {1: text}, must=suffix == ".json")
        values = values and values[0]
        if suffix == ".json" and not isinstance(values, list):
            raise ValueError(f"{path}: must be a JSON list, got {type(values).__name__}")
    if values is None and (suffix == ".jsonl" or text.lstrip()[:1] in ("[", "{", '"')):
        first = _json(path, dict([*numbered.items()][:1]), must=False)
        values = _json(path, numbered, must=suffix == ".jsonl" or bool(first and isinstance(first[0], dict)))
    values = lines if values is None else values
    items = [item(value) for value in values]
    if None in items:
        raise ValueError(f"{path}: item {items.index(None)} cannot be read: {json.dumps(values[items.index(None)])}")
    if not items:
        raise ValueError(f"{path}: is empty")
    return items


def _stdin() -> str:
    """All of it, without a byte order mark."""
    if sys.stdin is None:
        raise ValueError("-: there is no stdin")
    return sys.stdin.read().removeprefix("\ufeff")


def _answers(
    bon: BestOfN, prompts: Sequence[Prompt], options: dict[str, Any]
) -> Iterator[tuple[Prompt, BestOfNResult]]:
    for prompt in prompts:
        yield prompt, bon.generate(prompt, **options)[0]


def _json(path: str, parts: Mapping[int, str], *, must: bool) -> Any:
    """Each part, by the number of its line, decoded; None where one is not JSON, unless it must be."""
    values = []
    for number, part in parts.items():
        try:
            values.append(json.loads(part))
        except (ValueError, RecursionError) as error:
            if must:
                raise ValueError(f"{path}: line {number} is not JSON: {error}") from error
            return None
    return values


def _print_json(value: Any) -> None:
    print(json.dumps(value, ensure_ascii=False), flush=True)
