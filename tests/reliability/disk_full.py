# SPDX-License-Identifier: Apache-2.0
"""What commands leave behind when the disk is full: `python -m tests.reliability.disk_full FOLDER`, a row of JSON each.

FOLDER is the root of a small tmpfs of its own, which is filled up to so many free bytes; where it is none, no file may
grow beyond that instead (RLIMIT_FSIZE).
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import resource
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from srr_fast import RankerConfig, SafetyRanker, extract, shards
from srr_fast.cli import command as cli
from srr_fast.lists import read_lists, write_lists

from . import kills

MESSAGES = ("No space left on device", "File too large")


@contextlib.contextmanager
def full(root: Path, free: int) -> Iterator[None]:
    """No more than ``free`` bytes can be written below ``root``."""
    if not root.is_mount():
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (free, before[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        return
    filler = root / "filler"
    with filler.open("wb") as file:
        space = os.statvfs(root)
        most = space.f_bavail * space.f_frsize - free
        for size in (1 << 16, 1 << 12):
            while file.tell() + size <= most:
                file.write(bytes(size))
    try:
        yield
    finally:
        filler.unlink()


def works(root: Path) -> dict[str, Callable[[Path, int], int]]:
    """What writes: (folder, version of its input) -> exit status; a version leads to other bytes."""
    inputs = Path(tempfile.mkdtemp())
    kills.write_inputs(inputs, 60)
    commands = kills.commands(inputs)

    def save(out: Path, version: int) -> int:
        torch.manual_seed(version)
        ranker = SafetyRanker(RankerConfig(64, layer=1, proj_dim=32))
        try:
            ranker.save_pretrained(out / "ranker")
        except OSError as error:
            print(error, file=sys.stderr)
            return 2
        return 0

    def write(out: Path, version: int) -> int:
        try:
            write_lists(out / "lists.jsonl", read_lists(inputs / "lists.jsonl")[version:])
        except OSError as error:
            print(error, file=sys.stderr)
            return 2
        return 0

    def command(name: str) -> Callable[[Path, int], int]:
        return lambda out, version: cli.main(commands[name](out))

    return {"save_pretrained": save, "write_lists": write} | {name: command(name) for name in commands}


def halves(work: Callable[[Path, int], int], out: Path, root: Path, frees: list[int]) -> tuple[int, list[str]]:
    """How often the disk was full, and what was wrong then or after it had space again."""
    wrong, times = [], 0
    whole = [Path(tempfile.mkdtemp()) for _ in range(2)]
    for version in (0, 1):
        assert quiet(work, whole[version], version)[0] == 0
    old, new = map(kills.files, whole)
    for free in frees:
        for had in ({}, old) if old != new else ({},):  # there is nothing before, or what another run left
            if out.exists():
                shutil.rmtree(out)
            out.mkdir()
            for name, data in had.items():
                (out / name).parent.mkdir(parents=True, exist_ok=True)
                (out / name).write_bytes(data)
            with full(root, free):
                status, said = quiet(work, out, 1)
            if status == 0:
                continue
            times += 1
            where = f"{free} bytes free"
            if status != 2 or not any(message in said for message in MESSAGES) or "Traceback" in said:
                wrong.append(f"{where}: status {status}: {said[-200:]}")
            got = kills.files(out)
            for name, data in got.items():
                if name.endswith(".part"):
                    continue  # sample's log, which the next run goes on with
                if data not in (had.get(name), new.get(name)):
                    wrong.append(f"{where}: {name} has {len(data)} bytes of neither run")
            if had and any(name not in got for name in had):
                wrong.append(f"{where}: a file of the run before is gone")
            if had and got != had:
                wrong.append(f"{where}: the run before is changed: {sorted(n for n in got if got[n] != had.get(n))}")
            if quiet(work, out, 1)[0] or kills.files(out) != new:
                wrong.append(f"{where}: with space again it does not end as an undisturbed run")
    return times, wrong


def quiet(work: Callable[[Path, int], int], out: Path, version: int) -> tuple[int, str]:
    """Exit status, 1 for an exception that came out, and what was said on stderr."""
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
        try:
            status = work(out, version)
        except Exception as error:
            return 1, f"{type(error).__name__}: {error}"
    return status, said.getvalue()


def main(folder: str, *only: str) -> None:
    root = Path(folder)
    extract.SHARD_TOKENS = 512
    shards.Job.__init__.__kwdefaults__["shard_lines"] = 8  # type: ignore[index]
    for name, work in works(root).items():
        if only and name not in only:
            continue
        frees = [0, 1 << 12, 3 << 12, 1 << 14, 5 << 14] if name in ("save_pretrained", "write_lists") else [0, 5 << 12]
        times, wrong = halves(work, root / "out", root, frees)
        print(json.dumps({"name": name, "mount": root.is_mount(), "times": times, "wrong": wrong}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
