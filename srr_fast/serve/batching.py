# SPDX-License-Identifier: Apache-2.0
"""Requests that wait while the one worker thread is busy run together. Knows neither models nor HTTP."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, NamedTuple

# run(key, items, abandoned) -> one result per item; abandoned() is True once nobody waits for any of them.
Run = Callable[[Any, list[Any], Callable[[], bool]], Sequence[Any]]


class Outcome(NamedTuple):
    """result: of one item. queue_s: seconds it waited. run_s: of the run it was in. joined: items of that run."""

    result: Any
    queue_s: float
    run_s: float
    joined: int


@dataclass(eq=False)
class _Job:
    key: Hashable
    item: Any
    rows: int
    future: asyncio.Future[Outcome]
    arrived: float = field(default_factory=time.perf_counter)


class Batcher:
    """A queue in front of one thread.

    run:      called in that thread with items of equal key, in the order they came.
    max_rows: rows run together; an item with more runs alone.

    An idle thread waits for nothing: what has queued by the time it is free is what it takes. When a joined run raises,
    each of its items runs alone, so that only the one at fault fails.
    """

    def __init__(self, run: Run, *, max_rows: int) -> None:
        self._run, self._max_rows = run, max_rows
        self._queue: deque[_Job] = deque()
        self._changed = asyncio.Event()
        self._closing = False
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="srr_fast-worker")
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to work, in the running event loop."""
        self._task = asyncio.create_task(self._work())

    async def submit(self, key: Hashable, item: Any, rows: int) -> Outcome:
        """The outcome of one item; raises what its run raised. Cancelled while it waits, the item is not run."""
        if self._closing:
            raise RuntimeError("Batcher: is closed")
        job = _Job(key, item, rows, asyncio.get_running_loop().create_future())
        self._queue.append(job)
        self._changed.set()
        try:
            return await job.future
        except asyncio.CancelledError:
            if job in self._queue:  # else it would stay there, and hold its item, as long as the worker is busy
                self._queue.remove(job)
            raise

    async def close(self) -> None:
        """Take nothing more; returns when all that was taken has run."""
        self._closing = True
        self._changed.set()
        if self._task is not None:
            await self._task
        self._thread.shutdown()

    async def _work(self) -> None:
        while not (self._closing and not self._queue):
            if not self._queue:
                self._changed.clear()
                await self._changed.wait()
                continue
            batch = self._take()
            if batch:
                await self._serve(batch)

    def _take(self) -> list[_Job]:
        """The next jobs of one key that somebody still waits for, out of the queue."""
        batch: list[_Job] = []
        rest: deque[_Job] = deque()
        rows = 0
        for job in self._queue:
            if job.future.done():
                continue
            if not batch or (job.key == batch[0].key and rows + job.rows <= self._max_rows):
                batch.append(job)
                rows += job.rows
            else:
                rest.append(job)
        self._queue = rest
        return batch

    def _call(self, *arguments: Any) -> Sequence[Any]:
        """What run answers. A future cannot carry every exception: a panic of Rust is no Exception and would end the
        worker, a StopIteration would never arrive."""
        try:
            return self._run(*arguments)
        except BaseException as error:
            if isinstance(error, Exception) and not isinstance(error, StopIteration):
                raise
            raise RuntimeError(f"Batcher: run raised {error!r}") from error

    async def _serve(self, batch: list[_Job]) -> None:
        loop = asyncio.get_running_loop()
        start = time.perf_counter()
        try:
            results = await loop.run_in_executor(
                self._thread,
                self._call,
                batch[0].key,
                [job.item for job in batch],
                lambda: all(job.future.done() for job in batch),
            )
            if len(results) != len(batch):
                raise RuntimeError(f"Batcher: run must return {len(batch)} results, got {len(results)}")
        except Exception as error:
            if len(batch) > 1:
                for job in batch:
                    if not job.future.done():
                        await self._serve([job])
            elif not batch[0].future.done():
                batch[0].future.set_exception(error)
            return
        run_s = time.perf_counter() - start
        for job, result in zip(batch, results, strict=True):
            if not job.future.done():
                job.future.set_result(Outcome(result, start - job.arrived, run_s, len(batch)))
