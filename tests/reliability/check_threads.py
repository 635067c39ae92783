# SPDX-License-Identifier: Apache-2.0
"""Many threads, other processes, a long life: the bits of one thread and no more memory than at first."""

from __future__ import annotations

import ctypes
import gc
import io
import multiprocessing
import os
import pickle
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import srr_fast
from srr_fast import PreparedScorer, ScoreOutput

from ..at_once import at_once
from ..cases import ScoreCase
from .row import Row

ROOT = Path(__file__).parents[2]
PAGE = os.sysconf("SC_PAGE_SIZE")
CASE = ScoreCase("", (8, 0, 3), 200, {"pooling": "gated"})
Call = Callable[[], tuple[Tensor, ...]]


class Calls:
    """Every way to compute, on inputs of its own."""

    def __init__(self, seed: int = 0, dtype: torch.dtype = torch.float32) -> None:
        ranker = CASE.build()
        self.scorer = ranker.prepare(dtype=dtype)
        inst, resp, offsets = CASE.inputs(seed, dtype)
        generator = torch.Generator().manual_seed(seed)
        states = torch.randn(len(resp), 6, CASE.d, generator=generator).to(dtype)
        spans = torch.tensor([[0, 6], [1, 3], [2, 2]] * len(resp))[: len(resp)]
        gate = self.scorer.gate
        out = ScoreOutput(torch.empty(len(resp)), torch.empty(len(resp)), torch.empty(len(inst), dtype=torch.int64))
        acc, weight = torch.zeros(len(resp), CASE.d), torch.zeros(len(resp))

        def update() -> tuple[Tensor, ...]:
            acc.zero_(), weight.zero_()
            srr_fast.pool_update_(acc, weight, states, spans, pooling="gated", gate=gate)
            return acc, weight

        def fault() -> tuple[Tensor, ...]:
            with suppress(ValueError):
                self.scorer(inst, resp[:, 1:], offsets)
            return ()

        self.ways: dict[str, Call] = {
            "scorer": lambda: self.scorer(inst, resp, offsets),
            "scorer, out=": lambda: self.scorer(inst, resp, offsets, out=out),
            "score": lambda: srr_fast.score(inst, resp, self.scorer, offsets),
            "from_hidden": lambda: self.scorer.from_hidden(states, spans, inst, offsets),
            "pool": lambda: (srr_fast.pool(states, spans, pooling="gated", gate=gate),),
            "pool_update_": update,
            "a refused call": fault,
        }

    def all(self) -> list[bytes]:
        return [bits(way()) for way in self.ways.values()]


def bits(tensors: tuple[Tensor, ...]) -> bytes:
    return b"".join(t.contiguous().numpy().tobytes() for t in tensors)


# ---- threads ------------------------------------------------------------------------------------------------------


def threads_that_differ(threads: int, calls: int) -> int:
    """Calls of so many threads at once whose bits are not those of one thread alone; each makes all ways in turn."""
    mine = [Calls(seed, (torch.float32, torch.bfloat16)[seed % 2]) for seed in range(threads)]
    want = [one.all() for one in mine]

    def work(i: int) -> int:
        ways = list(mine[i].ways.values())
        return sum(bits(ways[call % len(ways)]()) != want[i][call % len(ways)] for call in range(calls))

    return sum(at_once(work, range(threads)))


def one_scorer_differs(threads: int, calls: int) -> int:
    """The same with one scorer that all threads share, on long lists, while PyTorch has two workers."""
    case = ScoreCase("", (300,), 1024)
    scorer, inputs = case.build().prepare(), [case.inputs(seed)[:2] for seed in range(threads)]
    want = [bits(scorer(*pair)) for pair in inputs]

    def work(i: int) -> int:
        torch.set_num_threads(2)
        return sum(bits(scorer(*inputs[i])) != want[i] for _ in range(calls))

    return sum(at_once(work, range(threads)))


def check_threads() -> Iterator[Row]:
    wrong = threads_that_differ(8, 1000)
    yield Row(
        "8 threads x 1,000 calls, seven ways to call, against one thread", f"{wrong} differ", "0 differ", not wrong
    )
    wrong = one_scorer_differs(8, 100)
    yield Row("8 threads x 100 long lists, one scorer, two workers each", f"{wrong} differ", "0 differ", not wrong)


# ---- processes ----------------------------------------------------------------------------------------------------


def forked(answer: Callable[[], bytes], seconds: float = 60) -> bytes | None:
    """What a forked child answers; None if it does not in that time."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.write(writer, answer())
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        if not select.select([pipe], [], [], seconds)[0]:
            os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        return pipe.read() or None


def long_list() -> tuple[PreparedScorer, Tensor, Tensor]:
    case = ScoreCase("", (300,), 2048)
    return case.build().prepare(), *case.inputs()[:2]


def check_forks() -> Iterator[Row]:
    torch.set_num_threads(2)
    scorer, inst, resp = long_list()
    want = bits(scorer(inst, resp))  # with the parent's workers

    def child() -> bytes:
        return bits(scorer(inst, resp))

    answers = [forked(child) for _ in range(20)]
    answers += [forked(lambda: forked(child) or b"") for _ in range(5)]
    stop = threading.Event()

    def busy() -> None:
        while not stop.is_set():
            scorer(inst, resp)

    other = threading.Thread(target=busy)
    other.start()
    answers += [forked(child) for _ in range(20)]
    stop.set()
    other.join()
    right = sum(answer == want for answer in answers)
    figure = f"{right} of {len(answers)} answer with the parent's bits"
    yield Row("forked children, their children, and while another thread scores", figure, "all", right == len(answers))


def _answer(scorer: PreparedScorer, ranker: Any, inputs: tuple[Tensor, ...], queue: Any) -> None:
    queue.put([bits(scorer(*inputs)), bits(ranker.prepare()(*inputs))])


def pickled_differs() -> list[str]:
    """Which of the things that can be pickled do not come back with their bits."""
    wrong = []
    for scope in ("list", "pair"):
        case = ScoreCase("", CASE.sizes, CASE.d, {"scope": scope, "pooling": "gated"})
        inputs = case.inputs()
        for dtype in (torch.float32, torch.bfloat16):
            ranker = case.build()
            scorer = ranker.prepare(dtype=dtype)
            buffer = io.BytesIO()
            torch.save(scorer, buffer)
            buffer.seek(0)
            copies = {
                "scorer by pickle": pickle.loads(pickle.dumps(scorer)),
                "scorer by torch": torch.load(buffer, weights_only=False),
                "ranker by pickle": pickle.loads(pickle.dumps(ranker)).prepare(dtype=dtype),
            }
            wrong += [name for name, copy in copies.items() if bits(copy(*inputs)) != bits(scorer(*inputs))]
    return wrong


def check_pickle_and_spawn() -> Iterator[Row]:
    wrong = pickled_differs()
    yield Row("pickled and restored", ", ".join(wrong) or "same bits", "same bits", not wrong)
    ranker, inputs = CASE.build(), CASE.inputs()
    scorer = ranker.prepare()
    for method in ("spawn", "forkserver"):
        context = multiprocessing.get_context(method)
        queue = context.Queue()
        child = context.Process(target=_answer, args=(scorer, ranker, inputs, queue))
        child.start()
        ok = queue.get(timeout=300) == [bits(scorer(*inputs))] * 2
        child.join()
        yield Row(f"a child started by {method}", "same bits" if ok else "differs", "same bits", ok)


# ---- memory -------------------------------------------------------------------------------------------------------


def resident() -> int:
    """Bytes of this process in memory, without what malloc keeps of what was freed: as many arenas as threads had."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's
    if trim:
        trim(0)
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE


def growth(calls: int, warm: int) -> int:
    """Bytes the process grows by in so many calls after ``warm`` ones, all ways in turn."""
    ways = list(Calls().ways.values())
    for call in range(warm):
        ways[call % len(ways)]()
    before = resident()
    for call in range(calls):
        ways[call % len(ways)]()
    return resident() - before


def check_memory() -> Iterator[Row]:
    grown = growth(100_000, 20_000)
    yield Row("100,000 calls, seven ways to call", f"grow by {grown / 1024:.0f} KiB", "< 1 MiB", grown < 1 << 20)
    before = None
    for made in range(600):
        CASE.build().prepare()(*CASE.inputs())
        if made == 100:
            before = resident()
    grown = resident() - (before or 0)
    yield Row("500 rankers made, prepared and dropped", f"grow by {grown / 1024:.0f} KiB", "< 1 MiB", grown < 1 << 20)

    def in_a_thread() -> None:
        scorer, inst, resp = long_list()
        scorer(inst, resp)

    count, before = 200, 0
    for made in range(20 + count):
        if made == 20:
            before = resident()
        worker = threading.Thread(target=in_a_thread)
        worker.start()
        worker.join()
    # The C library keeps some stacks and arenas, now more, now fewer; each thread works in megabytes.
    each = (resident() - before) / count
    yield Row(
        f"{count} threads that scored and ended", f"grow by {each / 1024:.0f} KiB each", "< 256 KiB", each < 1 << 18
    )


# ---- Python without the GIL -----------------------------------------------------------------------------------------


def free_threaded_build() -> str:
    """What the build leaves as its note for an interpreter that says it has no GIL."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for file in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
            shutil.copy(ROOT / file, folder)
        (folder / "srr_fast").mkdir()
        shutil.copy(ROOT / "srr_fast" / "__init__.py", folder / "srr_fast")
        code = (
            "import runpy, sys, sysconfig\n"
            "sysconfig.get_config_vars()['Py_GIL_DISABLED'] = 1\n"
            "sys.argv = ['setup.py', '--name']; runpy.run_path('setup.py')"
        )
        subprocess.run([sys.executable, "-c", code], cwd=folder, check=True, capture_output=True)
        note = folder / "srr_fast" / "_build_note.txt"
        return note.read_text().strip() if note.exists() else ""


def check_free_threaded() -> Iterator[Row]:
    note = free_threaded_build()
    yield Row(
        "a build for Python without the GIL", note or "no word", "built, or left out with the reason", "GIL" in note
    )
