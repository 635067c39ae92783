# SPDX-License-Identifier: Apache-2.0
"""``srr-fast convert`` and ``srr-fast sample``: labelled lists from public files, and from a model."""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..adapters import FORMATS
from ..lists import LabelledList, read_lists, write_lists
from .options import add_seed

if TYPE_CHECKING:
    from collections.abc import Sequence


def add(commands: Any) -> None:
    """Add both to the subcommands of an argument parser."""
    convert = commands.add_parser("convert", help="labelled lists from files in a public format")
    convert.add_argument("--from", dest="form", required=True, choices=sorted(FORMATS), help="the format of the files")
    convert.add_argument("files", nargs="+", metavar="FILE", help="of one data set, gzip or not")
    convert.add_argument("--out", required=True, metavar="FILE", help=".jsonl or .jsonl.gz")
    convert.set_defaults(run=_convert, parser=convert)

    sample = commands.add_parser("sample", help="labelled lists from a model: n judged samples per instruction")
    sample.add_argument("--model", metavar="HUB_ID_OR_FOLDER", help="default: the bundled minichat")
    sample.add_argument(
        "--instructions",
        "--data",
        required=True,
        metavar="FILE",
        help="lists (.jsonl, .jsonl.gz), or texts: one per line or a JSON list",
    )
    sample.add_argument("--n", type=int, default=16, help="samples per instruction (%(default)s)")
    sample.add_argument(
        "--judge", required=True, metavar="NAME", help="keyword, minichat, or hub id or folder of a guard model"
    )
    sample.add_argument("--temperature", type=float, default=1.0, help="of the sampling (%(default)s)")
    sample.add_argument("--max-new-tokens", type=int, default=256, metavar="T", help="per sample (%(default)s)")
    add_seed(sample)
    sample.add_argument("--out", required=True, metavar="FILE", help=".jsonl or .jsonl.gz")
    sample.set_defaults(run=_sample, parser=sample)


def _convert(args: argparse.Namespace) -> None:
    rows = FORMATS[args.form]([Path(file) for file in args.files])
    write_lists(args.out, rows)
    print(summary(args.out, rows))


def _sample(args: argparse.Namespace) -> None:
    from transformers.utils import logging

    from .. import judges, minichat
    from ..loading import load_causal
    from ..sample import sample

    logging.disable_progress_bar()
    instructions = read_instructions(args.instructions)
    judge = judges.load(args.judge)
    model, tokenizer = load_causal(args.model) if args.model else minichat.load_model()
    rows = sample(
        model,
        tokenizer,
        instructions,
        judge,
        args.out,
        n=args.n,
        temperature=args.temperature,
        max_new_tokens=args.max_new_tokens,
        seed=args.seed,
    )
    print(summary(args.out, rows))


def read_instructions(path: str) -> list[LabelledList]:
    """The lists of a .jsonl file, packed or not, or the texts of another."""
    name = Path(path).name
    if ".jsonl" in Path(path).suffixes:
        return read_lists(path)
    from .texts import read

    texts = read(path, lambda value: value if isinstance(value, str) and value.strip() else None)
    return [LabelledList(text, (), f"{name}-{number}", name) for number, text in enumerate(texts)]


def summary(path: str, rows: Sequence[LabelledList]) -> str:
    """What a file holds, in one line."""
    labels = Counter(response.safe for row in rows for response in row.responses)
    return (
        f"{path}: {len(rows)} lists, {sum(row.mixed for row in rows)} mixed; {labels.total()} responses, "
        f"{labels[True]} safe, {labels[False]} unsafe, {labels[None]} neither"
    )
