# SPDX-License-Identifier: Apache-2.0
"""``srr-fast extract``: the states of labelled lists, into a cache that training and evaluation read."""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import Any

from . import shards


def add(commands: Any) -> None:
    """Add it to the subcommands of an argument parser."""
    extract = commands.add_parser("extract", help="pooled states of labelled lists, kept for training and evaluation")
    extract.add_argument(
        "--model", required=True, metavar="HUB_ID_OR_FOLDER", help="a causal language model or an encoder"
    )
    extract.add_argument(
        "--data", required=True, nargs="+", metavar="FILE", help="lists, .jsonl, plain or packed (.gz, .xz)"
    )
    extract.add_argument(
        "--layers", required=True, nargs="+", type=_layer, metavar="K", help="hidden_states indices from 1, or all"
    )
    extract.add_argument("--poolings", nargs="+", default=["mean"], metavar="NAME", help="mean, last (mean)")
    extract.add_argument("--out", required=True, metavar="CACHE_DIR", help="what is there already is not read again")
    extract.add_argument("--batch-tokens", type=int, default=4096, metavar="T", help="in one forward (%(default)s)")
    extract.add_argument("--trust-remote-code", action="store_true", help="run code that comes with the model")
    extract.add_argument("--ray", action="store_true", help="read on Ray actors; a run that was killed goes on")
    shards.add_actors(extract)
    extract.set_defaults(run=_extract, parser=extract)


def _extract(args: argparse.Namespace) -> None:
    from rich.console import Console
    from rich.table import Table
    from transformers.utils import logging

    from ..backbone import load_backbone
    from ..decoder import decoder_layers
    from ..extract import cache_name, extract
    from ..lists import read_lists
    from ..shard_store import SUFFIX

    shards.check_actors(args)
    if "all" in args.layers and len(args.layers) > 1:
        args.parser.error("--layers wants either indices or all")
    logging.disable_progress_bar()
    lists = read_lists(*args.data)
    model, tokenizer = load_backbone(args.model, trust_remote_code=args.trust_remote_code)
    layers = range(1, len(decoder_layers(model)) + 1) if "all" in args.layers else args.layers
    folder = Path(args.out) / cache_name(model, tokenizer)
    elsewhere = None
    if args.ray and args.actors:
        from .. import ray_shards

        states = ray_shards.States(
            args.model, args.trust_remote_code, list(layers), args.poolings, str(Path(args.out)), args.batch_tokens
        )
        elsewhere = partial(ray_shards.extract, states, actors=args.actors, gpus=args.actor_gpus)
    before = {path.name for path in folder.glob(f"*{SUFFIX}")}
    features = extract(
        model,
        tokenizer,
        lists,
        layers=list(layers),
        poolings=args.poolings,
        cache_dir=args.out,
        batch_tokens=args.batch_tokens,
        elsewhere=elsewhere,
    )
    some = next(iter(features.values()))
    table = Table("source")
    for name in ("lists", "responses", "without tokens"):
        table.add_column(name, justify="right")
    for source in dict.fromkeys(row.source for row in lists):
        chosen = [b for b, row in enumerate(lists) if row.source == source]
        empty = sum(int(some.resp[some.offsets[b] : some.offsets[b + 1]].isnan().any(1).sum()) for b in chosen)
        table.add_row(source, str(len(chosen)), str(sum(len(lists[b].responses) for b in chosen)), str(empty))
    Console().print(table)
    files = list(folder.glob(f"*{SUFFIX}"))
    new = sum(path.name not in before for path in files)
    size = sum(path.stat().st_size for path in files) / 1e6
    print(
        f"{folder}: {len(files)} files, {new} of them new, {size:.1f} MB; layers {' '.join(map(str, layers))}, "
        f"poolings {' '.join(args.poolings)}, width {some.inst.shape[1]}"
    )


def _layer(text: str) -> int | str:
    if text != "all" and not text.isdecimal():
        raise argparse.ArgumentTypeError(f"must be an index or all, got {text!r}")
    return text if text == "all" else int(text)
