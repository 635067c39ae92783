# SPDX-License-Identifier: Apache-2.0
"""Argument checks of the Python entry points: before the reference, and after a native op refused, to say why."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise

import torch
from torch import Tensor

from .reference import POOLINGS

STATE_DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def describe(value: object) -> str:
    """``float32 [8, 64]``, or the type's name for anything that is not a tensor."""
    if not isinstance(value, Tensor):
        return type(value).__name__
    shape = "nested" if value.is_nested else list(value.shape)
    return f"{str(value.dtype).removeprefix('torch.')} {shape} on {value.device}"


def check_tensor(
    op: str, name: str, value: object, shape: tuple[int | str, ...], dtypes: tuple[torch.dtype, ...]
) -> None:
    """TypeError for another type or dtype, ValueError for another shape; a str in ``shape`` names a free dimension."""
    if not isinstance(value, Tensor) or value.dtype not in dtypes:
        raise TypeError(f"{op}: {name} must be {_wanted(shape, dtypes)}, got {describe(value)}")
    if value.is_nested:  # it has no shape to look at
        raise ValueError(f"{op}: {name} must be {_wanted(shape, dtypes)}, got a nested tensor")
    same = value.dim() == len(shape) and all(
        isinstance(want, str) or got == want for got, want in zip(value.shape, shape, strict=True)
    )
    if not same or value.layout != torch.strided:
        raise ValueError(f"{op}: {name} must be {_wanted(shape, dtypes)}, got {describe(value)}, {value.layout}")


def _wanted(shape: tuple[int | str, ...], dtypes: tuple[torch.dtype, ...]) -> str:
    return f"{'/'.join(str(t).removeprefix('torch.') for t in dtypes)} [{', '.join(map(str, shape))}]"


def check_device(op: str, name: str, value: Tensor, device: torch.device) -> None:
    if value.device != device:
        raise ValueError(f"{op}: {name} must be on {device}, got {describe(value)}")


def check_disjoint(op: str, name: str, outputs: Iterable[Tensor], inputs: Iterable[Tensor | None]) -> None:
    """ValueError where outputs lie in each other's memory, or in that of inputs."""
    written = [_memory(value) for value in outputs]
    read = [_memory(value) for value in inputs if value is not None]
    for i, (low, high) in enumerate(written):
        if any(low < end and begin < high for begin, end in written[i + 1 :] + read):
            raise ValueError(f"{op}: the tensors of {name} must not share memory, with each other or with the inputs")


def _memory(value: Tensor) -> tuple[int, int]:
    """First byte of a tensor, and the one after its last; nothing of one without data, such as those of a trace."""
    try:
        begin = value.data_ptr()
    except RuntimeError:
        begin = 0
    if begin == 0 or value.numel() == 0:
        return 0, 0
    last = sum((size - 1) * stride for size, stride in zip(value.shape, value.stride(), strict=True))
    return begin, begin + (last + 1) * value.element_size()


def check_offsets(op: str, offsets: Tensor, B: int, M: int) -> None:
    """ValueError unless offsets [B + 1] run from 0 to M without decreasing."""
    steps = offsets.tolist()
    if steps[0] != 0 or steps[-1] != M or any(a > b for a, b in pairwise(steps)):
        raise ValueError(f"{op}: offsets must run from 0 to M={M} without decreasing, got {steps[:8]}")


def check_lists(op: str, inst: Tensor, M: int, offsets: Tensor | None, d: int, device: torch.device) -> None:
    """Check the instructions [B, d] of B lists that share M candidates, and the lists."""
    check_tensor(op, "inst", inst, ("B", d), STATE_DTYPES)
    check_device(op, "inst", inst, device)
    B = len(inst)
    if offsets is None:
        if M % B if B else M:
            raise ValueError(f"{op}: offsets=None wants M divisible by B, got M={M}, B={B}")
        return
    check_tensor(op, "offsets", offsets, (B + 1,), (torch.int64,))
    check_device(op, "offsets", offsets, device)
    check_offsets(op, offsets, B, M)


def check_score_inputs(inst: Tensor, resp: Tensor, offsets: Tensor | None, d: int, device: torch.device) -> None:
    check_tensor("score", "resp", resp, ("M", d), STATE_DTYPES)
    check_device("score", "resp", resp, device)
    check_lists("score", inst, len(resp), offsets, d, device)


def check_pool_inputs(
    op: str,
    states: Tensor,
    spans: Tensor,
    pooling: str,
    gate: Tensor | None,
    *,
    d: int | str = "d",
    offsets: Tensor | None = None,
) -> int:
    """Check token states, their spans and the pooling; returns M. offsets: what the caller gave instead of spans."""
    padded = isinstance(states, Tensor) and states.dim() == 3
    check_tensor(op, "states", states, ("M", "T", d) if padded else ("T", d), STATE_DTYPES)
    check_tensor(op, "spans", spans, (states.shape[0] if padded else "M", 2), (torch.int64,))
    check_device(op, "spans", spans, states.device)
    if not isinstance(pooling, str):
        raise TypeError(f"{op}: pooling must be one of {POOLINGS}, got {pooling!r}")
    if pooling not in POOLINGS:
        raise ValueError(f"{op}: pooling must be one of {POOLINGS}, got {pooling!r}")
    if (gate is not None) != (pooling == "gated"):
        raise ValueError(f"{op}: gate goes with pooling='gated' and only with it, got pooling={pooling!r}")
    if gate is not None:
        check_tensor(op, "gate", gate, (states.shape[-1] + 1,), (torch.float32, torch.float64))
        check_device(op, "gate", gate, states.device)
    if states.device.type == "meta":
        raise ValueError(f"{op}: states must hold data for the reference, got {describe(states)}")
    if states.device.type == "cpu":
        if offsets is not None:
            check_steps(op, offsets, states.shape[-2])
        check_spans(op, spans, states.shape[-2])
    return len(spans)


def check_steps(op: str, offsets: Tensor, T: int) -> None:
    """ValueError unless offsets lie in [0, T] without decreasing."""
    steps = offsets.tolist()
    if steps[0] < 0 or steps[-1] > T or any(a > b for a, b in pairwise(steps)):
        raise ValueError(f"{op}: offsets must lie in 0 .. T={T} without decreasing, got {steps[:8]}")


def check_spans(op: str, spans: Tensor, T: int) -> None:
    """ValueError unless every span [start, stop) lies in [0, T]."""
    start, stop = spans.unbind(1)
    bad = ((start < 0) | (stop > T) | (start > stop)).nonzero()
    if len(bad):
        row = int(bad[0, 0])
        got = spans[row].tolist()
        raise ValueError(f"{op}: spans must satisfy 0 <= start <= stop <= T={T}, got {got} in row {row}")
