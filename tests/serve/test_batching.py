# SPDX-License-Identifier: Apache-2.0
"""What waits together runs together; nothing that was taken is lost."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref

import pytest

from srr_fast.serve.batching import Batcher


class Panic(BaseException):
    """What a tokenizer's Rust code raises when it panics."""


class Runs:
    """A run function that stops at a gate and keeps what it was called with."""

    def __init__(self):
        self.seen = []
        self.gate = threading.Event()
        self.begun = threading.Event()
        self.abandoned = []

    def __call__(self, key, items, abandoned):
        self.seen.append((key, list(items)))
        self.begun.set()
        assert self.gate.wait(10)
        self.abandoned.append(abandoned())
        if isinstance(items[0], type):
            raise items[0]
        if "bad" in items:
            raise ValueError("bad")
        return [item * 2 for item in items if item != "few"]


def run(scenario, **options):
    """Runs scenario(batcher, runs) in a loop of its own; returns what it returned, and the runs."""
    runs = Runs()

    async def main():
        batcher = Batcher(runs, **({"max_rows": 8} | options))
        batcher.start()
        try:
            return await asyncio.wait_for(scenario(batcher, runs), 20)
        finally:
            runs.gate.set()
            await batcher.close()

    return asyncio.run(main()), runs


async def submit(batcher, *items, key="k", rows=1):
    """Tasks that wait for these items, queued in this order."""
    tasks = [asyncio.create_task(batcher.submit(key, item, rows)) for item in items]
    await asyncio.sleep(0)
    return tasks


async def busy(batcher, runs):
    """A task whose item occupies the worker."""
    (first,) = await submit(batcher, "first")
    await asyncio.to_thread(runs.begun.wait, 10)
    return first


def test_what_waits_is_joined_by_key_in_order_up_to_the_rows():
    async def scenario(batcher, runs):
        tasks = [await busy(batcher, runs)]
        tasks += await submit(batcher, "a", "b", rows=3)
        tasks += await submit(batcher, "x", key="other")
        tasks += await submit(batcher, "c", rows=3)
        tasks += await submit(batcher, "d", "e")
        tasks += await submit(batcher, "big", rows=100)
        runs.gate.set()
        return await asyncio.gather(*tasks)

    outcomes, runs = run(scenario)
    assert runs.seen == [
        ("k", ["first"]),
        ("k", ["a", "b", "d", "e"]),  # 3 + 3 + 1 + 1 rows; another 3 would be too many
        ("other", ["x"]),
        ("k", ["c"]),
        ("k", ["big"]),
    ]
    assert [one.result for one in outcomes] == [2 * t for t in ("first", "a", "b", "x", "c", "d", "e", "big")]
    assert [one.joined for one in outcomes] == [1, 4, 4, 1, 1, 4, 4, 1]
    assert all(one.queue_s >= 0 and one.run_s >= 0 for one in outcomes)


def test_one_row_joins_nothing():
    async def scenario(batcher, runs):
        tasks = [await busy(batcher, runs), *await submit(batcher, "a", "b")]
        runs.gate.set()
        await asyncio.gather(*tasks)

    _, runs = run(scenario, max_rows=1)
    assert [items for _, items in runs.seen] == [["first"], ["a"], ["b"]]


def test_only_the_item_at_fault_fails():
    async def scenario(batcher, runs):
        tasks = [await busy(batcher, runs), *await submit(batcher, "a", "bad", "b")]
        runs.gate.set()
        return await asyncio.gather(*tasks, return_exceptions=True)

    (first, a, bad, b), runs = run(scenario)
    assert [items for _, items in runs.seen] == [["first"], ["a", "bad", "b"], ["a"], ["bad"], ["b"]]
    assert (first.result, a.result, b.result) == ("firstfirst", "aa", "bb") and a.joined == 1
    assert isinstance(bad, ValueError)


@pytest.mark.parametrize("fault", [Panic, StopIteration])
def test_what_no_future_carries_fails_its_item_and_the_next_one_is_served(fault):
    async def scenario(batcher, runs):
        runs.gate.set()
        (task,) = await submit(batcher, fault)
        with pytest.raises(RuntimeError, match=f"Batcher: run raised {fault.__name__}"):
            await task
        (task,) = await submit(batcher, "a")
        return (await task).result

    assert run(scenario)[0] == "aa"


def test_what_nobody_waits_for_does_not_run():
    async def scenario(batcher, runs):
        first = await busy(batcher, runs)
        left, stays = await submit(batcher, "left", "stays")
        left.cancel()
        first.cancel()  # it is running: told so, and its result goes nowhere
        await asyncio.sleep(0)
        runs.gate.set()
        return await stays

    outcome, runs = run(scenario)
    assert outcome.result == "staysstays"
    assert [items for _, items in runs.seen] == [["first"], ["stays"]]
    assert runs.abandoned == [True, False]


def test_closing_runs_what_was_taken_and_takes_no_more():
    async def scenario(batcher, runs):
        tasks = [await busy(batcher, runs), *await submit(batcher, "a", "b", key="other")]
        closing = asyncio.create_task(batcher.close())
        await asyncio.sleep(0)
        with pytest.raises(RuntimeError, match="closed"):
            await batcher.submit("k", "late", 1)
        assert not closing.done()
        runs.gate.set()
        await closing
        return [task.result().result for task in tasks]

    results, _ = run(scenario)
    assert results == ["firstfirst", "aa", "bb"]


def test_what_nobody_waits_for_is_not_kept_while_the_worker_is_busy():
    class Item:
        pass

    async def scenario(batcher, runs):
        first, left = await busy(batcher, runs), Item()
        kept = weakref.ref(left)
        (task,) = await submit(batcher, left)
        del left
        task.cancel()
        await asyncio.wait([task])
        del task
        gc.collect()
        assert kept() is None and not first.done()
        runs.gate.set()
        await first

    run(scenario)


def test_a_run_that_answers_too_few_fails_and_the_next_one_is_served():
    async def scenario(batcher, runs):
        runs.gate.set()
        (task,) = await submit(batcher, "few")
        with pytest.raises(RuntimeError, match="1 results, got 0"):
            await task
        (task,) = await submit(batcher, "a")
        return (await task).result

    assert run(scenario)[0] == "aa"
