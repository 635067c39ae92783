# SPDX-License-Identifier: Apache-2.0
"""Threads, copies and a long life; `make reliability` runs the same at length, and forks and spawns more."""

from .conftest import native_only
from .reliability import check_threads as threads

pytestmark = native_only


def test_threads_agree_with_one():
    assert threads.threads_that_differ(8, 42) == 0


def test_copies_have_the_same_bits():
    assert threads.pickled_differs() == []


def test_many_calls_leave_nothing_behind():
    assert threads.growth(10_000, 3_000) < 1 << 20


def test_what_is_left_behind_would_be_seen(monkeypatch):
    kept = []

    class Leaking(threads.Calls):
        def __init__(self):
            super().__init__()
            self.ways = {"leak": lambda: kept.append(b"x" * (100_000 + len(kept)))}

    monkeypatch.setattr(threads, "Calls", Leaking)
    assert threads.growth(1_000, 10) > 1 << 20


def test_python_without_the_gil_is_refused_with_the_reason():
    assert "without the GIL" in threads.free_threaded_build()
