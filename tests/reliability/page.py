# SPDX-License-Identifier: Apache-2.0
"""The table, and docs/reliability.md around it."""

import os
import platform
from collections.abc import Iterable
from importlib import metadata
from typing import Any

from srr_fast import env

HEAD = """\
# Reliability

Written by `make reliability`, which runs every check below, each in a process of its own, and fails on any miss. The
checks are `tests/reliability/check_*.py`; `make test` runs a fast part of each.
"""


def table(rows: list[dict[str, Any]]) -> str:
    lines = [["check", "figure", "goal", "verdict"], ["---"] * 4]
    lines += [[row["check"], row["figure"], row["goal"], verdict(row)] for row in rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def verdict(row: dict[str, Any]) -> str:
    """A check that wants what is not here has proved nothing."""
    if not row["ok"]:
        return "**MISS**"
    return "not run" if row["figure"].startswith("not run") else "ok"


def page(store: dict[str, Any], every: Iterable[str]) -> str:
    """store: of each check that ran, by name, its rows and its seconds. every: the names of all there are."""
    parts = [HEAD]
    rows = [row for check in store.values() for row in check["rows"]]
    minutes = sum(check["seconds"] or 0 for check in store.values()) / 60
    missed = sum(not row["ok"] for row in rows)
    parts.append(
        f"{len(rows)} rows, {missed} missed, {minutes:.0f} minutes on {env.cpu_name()}, {os.cpu_count()} cores; "
        f"Python {platform.python_version()}, torch {metadata.version('torch')}.\n"
    )
    if absent := [name for name in every if name not in store]:
        parts.append(f"Did not run: {', '.join(absent)}.\n")
    for topic in dict.fromkeys(name.split(".")[0] for name in store):
        mine = [check for name, check in store.items() if name.split(".")[0] == topic]
        parts.append(f"## {topic.capitalize()}\n\n" + table([row for check in mine for row in check["rows"]]) + "\n")
    return "\n".join(parts)
