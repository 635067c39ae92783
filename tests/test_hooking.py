# SPDX-License-Identifier: Apache-2.0
"""No hook comes or goes while a forward that may be traced runs."""

import threading

import pytest
import torch

from srr_fast import hooking


def in_a_thread(job):
    thread = threading.Thread(target=job, daemon=True)
    thread.start()
    return thread


def test_hooks_wait_for_the_forward():
    layer, handles = torch.nn.Linear(2, 2), []
    with hooking.steady(), hooking.steady():
        adding = in_a_thread(lambda: handles.extend(hooking.add_hooks([layer], lambda slot: lambda *given: None)))
        adding.join(0.2)
        assert adding.is_alive() and not layer._forward_hooks
    adding.join(10)
    assert len(layer._forward_hooks) == 1
    with hooking.steady():
        removing = in_a_thread(lambda: hooking.remove_hooks(handles))
        removing.join(0.2)
        assert removing.is_alive() and len(layer._forward_hooks) == 1
    removing.join(10)
    assert not layer._forward_hooks
    hooking.remove_hooks(handles)


def test_a_forward_waits_for_hooks_that_wait():
    layer, order = torch.nn.Linear(2, 2), []

    def forward():
        with hooking.steady():
            order.append("forward")

    def add():
        hooking.add_hooks([layer], lambda slot: lambda *given: None)
        order.append("hooks")

    with hooking.steady():
        adding = in_a_thread(add)
        adding.join(0.2)
        after = in_a_thread(forward)
        after.join(0.2)
        assert order == []
    adding.join(10)
    after.join(10)
    assert sorted(order) == ["forward", "hooks"]


def test_an_error_ends_the_turn():
    for _ in range(2):
        with pytest.raises(KeyError), hooking.steady():
            raise KeyError
        with pytest.raises(KeyError):
            hooking.add_hooks([torch.nn.Linear(1, 1)], lambda slot: {}[slot])
    with hooking.steady():
        pass
    hooking.remove_hooks(hooking.add_hooks([torch.nn.Linear(1, 1)], lambda slot: lambda *given: None))
