# SPDX-License-Identifier: Apache-2.0
"""Argument checks of the Python entry points that do not reach the native ops, which check for themselves."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

STATE_DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def describe(value: object) -> str:
    """``float32 [8, 64]``, or the type's name for anything that is not a tensor."""
    if not isinstance(value, Tensor):
        return type(value).__name__
    return f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)} on {value.device}"


def check_tensor(
    op: str, name: str, value: object, shape: tuple[int | str, ...], dtypes: tuple[torch.dtype, ...]
) -> None:
    """TypeError for another type or dtype, ValueError for another shape; a str in ``shape`` names a free dimension."""
    wanted = f"{'/'.join(str(t).removeprefix('torch.') for t in dtypes)} [{', '.join(map(str, shape))}]"
    if not isinstance(value, Tensor) or value.dtype not in dtypes:
        raise TypeError(f"{op}: {name} must be {wanted}, got {describe(value)}")
    same = value.dim() == len(shape) and all(
        isinstance(want, str) or got == want for got, want in zip(value.shape, shape, strict=True)
    )
    if not same or value.layout != torch.strided:
        raise ValueError(f"{op}: {name} must be {wanted}, got {describe(value)}, {value.layout}")


def check_device(op: str, name: str, value: Tensor, device: torch.device) -> None:
    if value.device != device:
        raise ValueError(f"{op}: {name} must be on {device}, got {describe(value)}")


def check_offsets(op: str, offsets: Tensor, B: int, M: int) -> None:
    """ValueError unless offsets [B + 1] run from 0 to M without decreasing."""
    steps = offsets.tolist()
    if steps[0] != 0 or steps[-1] != M or any(a > b for a, b in pairwise(steps)):
        raise ValueError(f"{op}: offsets must run from 0 to M={M} without decreasing, got {steps[:8]}")


def check_score_inputs(inst: Tensor, resp: Tensor, offsets: Tensor | None, d: int) -> None:
    check_tensor("score", "inst", inst, ("B", d), STATE_DTYPES)
    check_tensor("score", "resp", resp, ("M", d), STATE_DTYPES)
    check_device("score", "resp", resp, inst.device)
    B, M = len(inst), len(resp)
    if offsets is None:
        if M % B if B else M:
            raise ValueError(f"score: offsets=None wants M divisible by B, got M={M}, B={B}")
        return
    check_tensor("score", "offsets", offsets, (B + 1,), (torch.int64,))
    check_device("score", "offsets", offsets, inst.device)
    check_offsets("score", offsets, B, M)


def check_spans(op: str, spans: Tensor, T: int) -> None:
    """ValueError unless every span [start, stop) lies in [0, T]."""
    start, stop = spans.unbind(1)
    bad = ((start < 0) | (stop > T) | (start > stop)).nonzero()
    if len(bad):
        row = int(bad[0, 0])
        got = spans[row].tolist()
        raise ValueError(f"{op}: spans must satisfy 0 <= start <= stop <= T={T}, got {got} in row {row}")
