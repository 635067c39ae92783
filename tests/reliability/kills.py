# SPDX-License-Identifier: Apache-2.0
"""Commands killed at random moments, run again, and compared with a run that nobody disturbed.

A child is forked from a process that has everything imported, so that a kill hits the work and not the imports.
"""

from __future__ import annotations

import json
import os
import random
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from srr_fast import extract, minichat, shards
from srr_fast.cli import command as cli
from srr_fast.lists import LabelledList, LabelledResponse, write_lists
from srr_fast.minichat.grammar import sample_answer, sample_instruction

Arguments = Callable[[Path], Sequence[str]]  # of srr-fast, by the folder it writes to


class Outcome(NamedTuple):
    """kills that hit a running command; runs that ended after one or more of them; what differed in those."""

    kills: int
    runs: int
    differing: list[str]


def write_inputs(folder: Path, count: int = 120) -> None:
    """lists.jsonl, lists to rank in in.jsonl, and texts.txt: minichat's own, with exact labels."""
    rng, rows = random.Random(7), {}
    while len(rows) < count:
        instruction = sample_instruction(rng, harmful=True)
        drawn = [sample_answer(rng, instruction, unsafe) for unsafe in (True, False, True, False)]
        responses = tuple(LabelledResponse(text, not unsafe) for text, unsafe in dict(drawn).items())
        row = LabelledList(instruction.text, responses, f"m-{len(rows)}", "minichat")
        rows.setdefault(row.instruction, row)
    rows = list(rows.values())
    write_lists(folder / "lists.jsonl", rows)
    lines = [{"query": row.instruction, "documents": [r.text for r in row.responses]} for row in rows]
    (folder / "in.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "texts.txt").write_text("".join(row.instruction + "\n" for row in rows[:24]))


def commands(inputs: Path) -> dict[str, Arguments]:
    """srr-fast's arguments for everything that writes files bit by bit."""
    model, lists = str(minichat.MODEL_FOLDER), str(inputs / "lists.jsonl")
    read = ["--model", model, "--data", lists, "--layers", "1", "2"]
    return {
        "extract": lambda out: ["extract", *read, "--poolings", "mean", "last", "--out", str(out)],
        "train": lambda out: ["train", *read, "--steps", "20", "--cache", f"{out}/cache", "--out", f"{out}/ranker"],
        "rank": lambda out: ["rank", "--ray", str(inputs / "in.jsonl"), str(out), "--actors", "0"],
        "sample": lambda out: [
            *("sample", "--instructions", str(inputs / "texts.txt"), "--n", "2", "--max-new-tokens", "12"),
            *("--judge", "minichat", "--out", f"{out}/mine.jsonl"),
        ],
    }


def files(folder: Path) -> dict[str, bytes]:
    """Everything that is there, by name; locks are empty."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def forked(arguments: Sequence[str]) -> int:
    """Process id of a child that runs the command in many small steps, and says nothing."""
    child = os.fork()
    if child == 0:
        silence = os.open(os.devnull, os.O_WRONLY)
        os.dup2(silence, 1)
        os.dup2(silence, 2)
        extract.SHARD_TOKENS = 512
        shards.Job.__init__.__kwdefaults__["shard_lines"] = 8
        status = 1
        try:
            status = cli.main(list(arguments))
        finally:
            os._exit(status)
    return child


def killed_and_run_again(name: str, arguments: Arguments, folder: Path, *, kills: int, seed: int = 0) -> Outcome:
    """At least so many kills, three before each run that may end, against the files of an undisturbed run."""
    rng = random.Random(f"{name} {seed}")
    whole = folder / f"{name}-whole"
    whole.mkdir()
    start = time.monotonic()
    if status := os.waitpid(forked(arguments(whole)), 0)[1]:
        raise RuntimeError(f"{name}: the undisturbed run ended with {status}")
    took, want = time.monotonic() - start, files(whole)
    hits, runs, differing = 0, 0, []
    while hits < kills:
        out = folder / f"{name}-{runs}"
        out.mkdir()
        for _ in range(3):
            child = forked(arguments(out))
            time.sleep(rng.uniform(0, took))
            os.kill(child, signal.SIGKILL)
            hits += os.WIFSIGNALED(os.waitpid(child, 0)[1])
            if (out / "ranker").exists() or (out / "mine.jsonl").exists():
                break  # train and sample do not write over what is there
        else:
            if status := os.waitpid(forked(arguments(out)), 0)[1]:
                differing.append(f"run {runs} ended with status {status}")
        got = files(out)
        differing += sorted(
            f"run {runs}: {path}" for path in want.keys() | got.keys() if want.get(path) != got.get(path)
        )
        runs += 1
    return Outcome(hits, runs, differing)
