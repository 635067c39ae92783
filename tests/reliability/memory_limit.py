# SPDX-License-Identifier: Apache-2.0
"""Calls under ever larger limits of address space: `python -m tests.reliability.memory_limit STEPS`, JSON.

A call either gives the bits it gives without a limit, or raises MemoryError or torch's RuntimeError that says so;
afterwards, without the limit, it gives those bits again; a process that dies is a fault.

Only calls that allocate through torch and Python: where memory ends inside safetensors' or tokenizers' Rust, that
aborts, and torch may multiply large matrices another way, with other last bits, when it gets no buffer.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import mmap
import os
import resource
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from srr_fast import BestOfN, minichat

MESSAGES = ("allocate memory", "MemoryError", "bad_alloc", "out of memory")


def calls() -> dict[str, tuple[int, Callable[[], object]]]:
    """Bytes to go up to, and a call that gives something to compare."""
    model, tokenizer, ranker = minichat.load()
    d, scorer = ranker.config.state_size, ranker.prepare()
    generator = torch.Generator().manual_seed(0)
    inst, resp = torch.randn(64, d, generator=generator), torch.randn(1 << 14, d, generator=generator)
    hidden = torch.randn(512, 16, d, generator=generator)
    spans = torch.tensor([[0, 16]] * 512)
    bon = BestOfN(model, tokenizer, ranker)

    def score() -> object:
        return [part.tolist() for part in scorer(inst, resp)]

    def pool_and_score() -> object:
        return [part.tolist() for part in scorer.from_hidden(hidden, spans, inst)]

    def generate() -> object:
        torch.manual_seed(0)
        result = bon.generate("How do I open a jar?", n=8, max_new_tokens=8)[0]
        assert not any(module._forward_hooks for module in model.modules())
        return result.candidates

    return {
        "a prepared scorer": (4 << 20, score),
        "pooling and scoring": (4 << 20, pool_and_score),
        "BestOfN.generate": (16 << 20, generate),
    }


def size() -> int:
    """Bytes of address space in use."""
    return int(Path("/proc/self/statm").read_text().split()[0]) * mmap.PAGESIZE


def digest(value: object) -> str:
    return hashlib.sha256(repr(value).encode()).hexdigest()


def limited(call: Callable[[], object], extra: int) -> dict[str, str]:
    """What a call gives with so many more bytes than there are now, and then without a limit."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    now = size()
    resource.setrlimit(resource.RLIMIT_AS, (now, before[1]))
    held = list(holes())
    resource.setrlimit(resource.RLIMIT_AS, (now + extra, before[1]))
    try:
        first = digest(call())
    except Exception as error:
        first = f"{type(error).__name__}: {error}"
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
    del held
    return {"first": first, "then": digest(call())}


def holes() -> Iterator[bytearray]:
    """Whatever the heap has left."""
    for bytes_ in (1 << 20, 1 << 16, 1 << 12):
        with contextlib.suppress(MemoryError):
            while True:
                yield bytearray(bytes_)


def in_child(work: Callable[[], dict[str, str]]) -> dict[str, str] | None:
    """What ``work`` gives in a forked child, whose heap has not grown yet; None where the child died."""
    end, start = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.write(start, json.dumps(work()).encode())
        finally:
            os._exit(0)
    os.close(start)
    with os.fdopen(end) as file:
        said = file.read()
    return json.loads(said) if os.waitpid(child, 0)[1] == 0 and said else None


def main(steps: str) -> None:
    for name, (most, call) in calls().items():
        failed, wrong = 0, []
        want = in_child(lambda call=call: limited(call, 1 << 40))  # type: ignore[misc]
        assert want and want["first"] == want["then"], (name, want)
        for step in range(int(steps)):
            extra = most * step**2 // int(steps) ** 2
            got = in_child(lambda call=call, extra=extra: limited(call, extra))  # type: ignore[misc]
            if got is None:
                wrong.append(f"{extra} bytes: the process died")
                continue
            if got["first"] != want["first"]:
                failed += 1
                if not any(message in got["first"] for message in MESSAGES):
                    wrong.append(f"{extra} bytes: {got['first'][:200]}")
            if got["then"] != want["then"]:
                wrong.append(f"{extra} bytes: other bits once there was memory")
        print(json.dumps({"name": name, "limits": int(steps), "failed": failed, "wrong": wrong}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
