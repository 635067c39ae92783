# SPDX-License-Identifier: Apache-2.0
"""Options that several subcommands have."""

from __future__ import annotations

import argparse
from typing import Any

SEEDS = 2**63  # what every generator takes; that of training takes fewer


def add_seed(parser: Any) -> None:
    """``--seed``; parser: an argument parser or a group of one."""
    parser.add_argument("--seed", type=_seed, default=0, metavar="K", help="of what is drawn (%(default)s)")


def _seed(text: str) -> int:
    try:
        value = int(text)
    except ValueError:
        value = -1
    if not 0 <= value < SEEDS:
        raise argparse.ArgumentTypeError(f"must be a whole number in 0 .. {SEEDS - 1}, got {text}")
    return value
