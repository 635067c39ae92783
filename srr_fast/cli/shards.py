# SPDX-License-Identifier: Apache-2.0
"""``--ray`` of ``srr-fast rank``, ``generate`` and ``extract``: files of any length, shard by shard."""

from __future__ import annotations

import argparse
from typing import Any


def add_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("a long file instead")
    group.add_argument(
        "--ray",
        nargs=2,
        metavar=("IN.jsonl", "OUT/"),
        help="answer every line on Ray actors, into part files; a run that was killed goes on where it stopped",
    )
    add_actors(group)


def add_actors(group: Any) -> None:
    """How ``--ray`` is spread; group: of options, or a parser."""
    group.add_argument("--actors", type=int, default=2, metavar="K", help="0: in this process (%(default)s)")
    group.add_argument("--actor-gpus", type=float, default=0.0, metavar="G", help="of each actor (%(default)s)")


def run(args: argparse.Namespace, **options: Any) -> None:
    """options: of :class:`srr_fast.shards.Job`."""
    check_actors(args)
    from ..ray_shards import run
    from ..shards import Job

    source, out = args.ray
    run(Job(source, out, args.model, args.ranker, **options), args.actors, gpus=args.actor_gpus)


def check_actors(args: argparse.Namespace) -> None:
    if args.actors < 0 or args.actor_gpus < 0:
        args.parser.error("--actors and --actor-gpus must be at least 0")
