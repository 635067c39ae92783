# SPDX-License-Identifier: Apache-2.0
"""Forward hooks come and go in one thread while another compiles a forward of the same model: they take turns.

A compiler that traces a forward notes the hooks it finds and looks them up again when it is done; one that has gone by
then is an error of that forward.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from torch import nn

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch.utils.hooks import RemovableHandle

_turn = threading.Condition()
_steady = 0  # forwards that may be traced now
_changes = 0  # that wait or are made; new forwards wait for them


def add_hooks(layers: Sequence[nn.Module], hook: Callable[[int], Callable[..., None]]) -> list[RemovableHandle]:
    """Registers ``hook(slot)`` as forward hook of each layer."""
    with _change():
        return [layer.register_forward_hook(hook(slot)) for slot, layer in enumerate(layers)]


def remove_hooks(handles: Sequence[RemovableHandle]) -> None:
    """Removes them; those that are gone already are passed over."""
    with _change():
        for handle in handles:
            handle.remove()


@contextmanager
def steady() -> Iterator[None]:
    """While a forward runs that may be traced: no hook is added or removed by this module. Several at once may run."""
    global _steady
    with _turn:
        _turn.wait_for(lambda: _changes == 0)
        _steady += 1
    try:
        yield
    finally:
        with _turn:
            _steady -= 1
            _turn.notify_all()


@contextmanager
def _change() -> Iterator[None]:
    global _changes
    with _turn:
        _changes += 1
        try:
            _turn.wait_for(lambda: _steady == 0)
            yield  # under the lock: one at a time, and no forward starts
        finally:
            _changes -= 1
            _turn.notify_all()
