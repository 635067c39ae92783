# SPDX-License-Identifier: Apache-2.0
"""Run the checks one after another and print one table.

    python -m tests.reliability [--only TOPIC[.NAME] ...] [--report docs/reliability.md]

Rows are kept in build/reliability.json as they come; --only replaces those of the checks it runs. --report writes the
page from what the file then holds. The exit status is 1 when any row misses its goal.
"""

import argparse
import ast
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from .page import page, table
from .row import Row

ROOT = Path(__file__).parents[2]
STORE = ROOT / "build" / "reliability.json"
LIMIT_S = 900.0  # of a check whose module has no LIMIT_S of its own


def checks() -> dict[tuple[str, str], float]:
    """(topic, name) of every check, modules and functions in order, with its time limit in seconds."""
    found = {}
    for path in sorted(Path(__file__).parent.glob("check_*.py")):
        nodes = ast.parse(path.read_text()).body  # not imported here: that may crash
        limit = next((ast.literal_eval(n.value) for n in nodes if ast.unparse(n).startswith("LIMIT_S =")), LIMIT_S)
        for node in nodes:
            if isinstance(node, ast.FunctionDef) and node.name.startswith("check_"):
                found[path.stem.removeprefix("check_"), node.name.removeprefix("check_")] = limit
    return found


def rows(check: str, command: list[str], limit: float) -> Iterator[Row]:
    """The rows a command prints, a JSON line each; one more if it did not end as it should within ``limit`` seconds."""
    child = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, start_new_session=True)
    assert child.stdout is not None
    late = threading.Timer(limit, os.killpg, (child.pid, signal.SIGKILL))  # with whatever it started
    late.start()
    count = 0
    try:
        for line in child.stdout:
            count += 1
            yield Row(**json.loads(line))
        status = child.wait()
        overdue = not late.is_alive()
    finally:
        late.cancel()
        if child.poll() is None:
            os.killpg(child.pid, signal.SIGKILL)
            child.wait()
        child.stdout.close()
    if status or not count:
        how = f"signal {signal.Signals(-status).name}" if status < 0 else f"exit status {status}, {count} rows"
        yield Row(check, f"killed after {limit:.0f} s" if overdue else how, "the check ends", False)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.reliability", description="run the reliability checks")
    parser.add_argument("--only", nargs="+", metavar="TOPIC[.NAME]", help="these checks alone")
    parser.add_argument("--report", type=Path, help="write this page from all rows that are kept")
    arguments = parser.parse_args(argv)
    every = checks()
    only = arguments.only or [topic for topic, _ in every]
    chosen = [key for key in every if key[0] in only or ".".join(key) in only]
    unknown = set(only) - {topic for topic, _ in every} - {".".join(key) for key in every}
    if unknown:
        parser.error(f"--only: no check {', '.join(sorted(unknown))}; there are {', '.join(map('.'.join, every))}")
    if not arguments.only:
        STORE.unlink(missing_ok=True)
    for topic, name in chosen:
        key, begin = f"{topic}.{name}", time.monotonic()
        print(f"{key} ...", file=sys.stderr, flush=True)
        found: list[dict] = []
        keep(key, found, None)
        command = [sys.executable, "-m", f"{__package__}.child", topic, name]
        for row in rows(key, command, every[topic, name]):
            found.append(asdict(row))
            keep(key, found, None)
            print(f"  {'ok  ' if row.ok else 'MISS'} {row.check}: {row.figure}", file=sys.stderr, flush=True)
        keep(key, found, round(time.monotonic() - begin, 1))
    store = kept()
    in_order = {".".join(key): store[".".join(key)] for key in every if ".".join(key) in store}
    mine = [row for key in chosen for row in in_order[".".join(key)]["rows"]]
    print(table(mine))
    if arguments.report:
        arguments.report.write_text(page(in_order, map(".".join, every)))
    return int(not all(row["ok"] for row in mine))


def kept() -> dict:
    """Rows and seconds by check, of this run and, with --only, of earlier ones."""
    return json.loads(STORE.read_text()) if STORE.exists() else {}


def keep(key: str, found: list[dict], seconds: float | None) -> None:
    """seconds: None while the check runs."""
    STORE.parent.mkdir(exist_ok=True)
    part = STORE.with_suffix(".part")
    part.write_text(json.dumps(kept() | {key: {"seconds": seconds, "rows": found}}, indent=1))
    part.replace(STORE)


if __name__ == "__main__":
    sys.exit(main())
