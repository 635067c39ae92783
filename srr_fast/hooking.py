# SPDX-License-Identifier: Apache-2.0
"""Forward hooks: what some layers of a model gave, told to whoever asked in this thread, and to nobody else.

Hooks come and go in one thread while another compiles a forward of the same model: they take turns. A compiler that
traces a forward notes the hooks it finds and looks them up again when it is done; one that has gone by then is an error
of that forward.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch.utils.hooks import RemovableHandle

Listener = TypeVar("Listener", bound="LayerListener")
_listening: ContextVar[LayerListener | None] = ContextVar("srr_fast_listening", default=None)
_turn = threading.Condition()
_steady = 0  # forwards that may be traced now
_changes = 0  # that wait or are made; new forwards wait for them


class LayerListener(ABC):
    """Hears what some layers give; a context manager.

    layers: whose outputs :meth:`heard` gets, in this order, as soon as a forward has called all of them.

    The hooks answer only in the thread (context) that entered, and there only to who entered last. They do nothing in a
    compiled forward.
    """

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        self.layers = layers
        self._parts: dict[int, Tensor] = {}
        self._handles: list[RemovableHandle] = []

    def __enter__(self: Listener) -> Listener:
        self._token = _listening.set(self)
        self._handles = add_hooks(self.layers, lambda slot: partial(self._observe, slot))
        return self

    def __exit__(self, *exception: object) -> None:
        self.unhook()
        self._parts = {}
        _listening.reset(self._token)

    def unhook(self) -> None:
        """Hear no more."""
        remove_hooks(self._handles)

    @abstractmethod
    def heard(self, parts: list[Tensor]) -> None:
        """States [rows, T, d] of each layer."""

    def _observe(self, slot: int, module: nn.Module, args: Any, output: Any) -> None:
        if torch.compiler.is_dynamo_compiling() or _listening.get() is not self:
            return
        self._parts[slot] = output if isinstance(output, Tensor) else output[0]
        if len(self._parts) == len(self.layers):
            parts, self._parts = self._parts, {}
            self.heard([parts[i] for i in range(len(self.layers))])


def joined(parts: Sequence[Tensor]) -> Tensor:
    """The states of several layers concatenated, on the device of the first."""
    moved = [part.to(parts[0].device) for part in parts]
    return moved[0] if len(moved) == 1 else torch.cat(moved, -1)


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
