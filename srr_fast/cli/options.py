# SPDX-License-Identifier: Apache-2.0
"""Options that several subcommands have."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

SEEDS = 2**63  # what every generator takes; that of training takes fewer


def add_seed(parser: Any) -> None:
    """``--seed``; parser: an argument parser or a group of one."""
    parser.add_argument("--seed", type=_seed, default=0, metavar="K", help="of what is drawn (%(default)s)")


def whole(text: str, least: int, most: int | None = None) -> int:
    """A whole number from ``least`` to ``most``, for an argument's ``type=``."""
    try:
        value = int(text)
    except ValueError:
        value = least - 1
    if value < least or (most is not None and value > most):
        wanted = f"of at least {least}" if most is None else f"in {least} .. {most}"
        raise argparse.ArgumentTypeError(f"must be a whole number {wanted}, got {text}")
    return value


def check_out(folder: Path) -> None:
    """Raise OSError where nothing could be written to ``--out`` or the folder it is to lie in: before the work."""
    if folder.is_symlink() and not folder.exists():
        raise FileNotFoundError(f"--out: {folder} is a link to what is not there")
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    with tempfile.TemporaryDirectory(prefix=".srr_fast.", dir=there):
        pass


def _seed(text: str) -> int:
    return whole(text, 0, SEEDS - 1)
