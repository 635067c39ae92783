# SPDX-License-Identifier: Apache-2.0
"""The same work in several threads."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def at_once(work: Callable[[T], R], items: Sequence[T]) -> list[R]:
    """``work(item)`` of every item, each in a thread of its own, begun together. Raises what one of them raised."""
    barrier = threading.Barrier(len(items))

    def begun(item: T) -> R:
        barrier.wait()
        return work(item)

    with ThreadPoolExecutor(len(items)) as pool:
        return list(pool.map(begun, items))
