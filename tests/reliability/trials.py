# SPDX-License-Identifier: Apache-2.0
"""A trial: a call that is right, often through a view, or one with a single fault, which has to be refused."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from ..cases import STATE_DTYPES


class Trial(NamedTuple):
    """call: what is tried. wanted: judges its answer; None: it must be refused by ``op``, naming one of ``names``."""

    call: Callable[[], Any]
    wanted: Callable[[Any], bool] | None
    op: str
    names: tuple[str, ...]
    note: str


def judge(trial: Trial) -> str:
    try:
        got = trial.call()
    except (TypeError, ValueError, FileNotFoundError) as error:
        said = str(error)
        assert trial.wanted is None, f"{trial.note}: refused what is right: {said}"
        assert trial.op in said and any(name in said for name in trial.names), f"{trial.note}: says only: {said}"
        return "refused"
    assert trial.wanted is not None, f"{trial.note}: accepted, answered {got!r}"
    assert trial.wanted(got), f"{trial.note}: wrong answer {got!r}"
    return "right"


def trials(strategy: st.SearchStrategy[Trial], examples: int) -> Counter[str]:
    """How many were answered rightly, how many refused; raises for the first that was neither."""
    found = Counter[str]()

    @settings(
        max_examples=examples,
        database=None,
        deadline=None,
        derandomize=True,
        report_multiple_bugs=False,
        suppress_health_check=list(HealthCheck),
    )
    @given(strategy)
    def every(trial: Trial) -> None:
        found[judge(trial)] += 1

    every()
    return found


class Subclass(torch.Tensor):
    pass


def view(kind: str, x: Tensor) -> Tensor:
    """The same values in another guise."""
    if kind == "strided":
        wide = x.new_zeros(*x.shape[:-1], 2 * x.shape[-1] + 1)[..., 1::2]
        return wide.copy_(x)
    if kind == "misaligned":
        return x.new_zeros(x.numel() + 1)[1:].view(x.shape).copy_(x)
    if kind == "transposed":
        return x.t().contiguous().t() if x.dim() == 2 else x
    if kind == "negated":
        return torch._neg_view(-x)
    if kind == "part of a conjugate" and x.dtype in (torch.float32, torch.float64):
        return torch.complex(x, -x).conj().imag
    if kind == "subclass":
        return x.as_subclass(Subclass)
    if kind == "inference":
        with torch.inference_mode():
            return x.clone()
    if kind == "requires_grad" and x.is_floating_point():
        return x.clone().requires_grad_()
    if kind == "parameter" and x.is_floating_point():
        return torch.nn.Parameter(x.clone())
    return x


VIEWS = (
    *("plain", "strided", "misaligned", "transposed", "negated", "part of a conjugate"),
    *("subclass", "inference", "requires_grad", "parameter"),
)
FAULTS: dict[str, Callable[[Tensor], Any]] = {
    "None": lambda x: None,
    "a list": lambda x: x.tolist(),
    "a string": lambda x: "tensor",
    "an array": lambda x: x.double().numpy(),
    "int32": lambda x: x.int(),
    "bool": lambda x: x.bool(),
    "complex": lambda x: x.to(torch.complex64).conj(),
    "float8": lambda x: x.to(torch.float8_e4m3fn),
    "sparse": lambda x: x.to_sparse(),
    "compressed": lambda x: torch.eye(3, dtype=x.dtype).to_sparse_csr(),
    "nested": lambda x: torch.nested.nested_tensor([x.new_zeros(2), x.new_zeros(3)]),
    "quantized": lambda x: torch.quantize_per_tensor(x.float(), 0.1, 0, torch.qint8),
    "meta": lambda x: x.to("meta"),
    "no dimensions": lambda x: x.new_zeros(()),
    "five dimensions": lambda x: x.new_zeros(1, 1, 1, 1, 1),
}
WIDTH_FAULT = {"another width": lambda x: torch.cat([x, x[..., :1]], -1)}


def random_tensor(draw: Any, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(draw(st.integers(0, 1 << 40)))
    x = torch.randn(*shape, generator=generator)
    if x.numel() and draw(st.integers(0, 5)) == 0:
        x.view(-1)[draw(st.integers(0, x.numel() - 1))] = draw(st.sampled_from((math.nan, math.inf, -math.inf, 1e30)))
    return x.to(dtype)


def spoil(draw: Any, tensors: dict[str, Any], faults: dict[str, dict[str, Callable[[Any], Any]]]) -> tuple[str, str]:
    """Puts one fault into one of the arguments, or views into all of them. Returns the argument and the fault."""
    if draw(st.booleans()):
        for name, value in tensors.items():
            if isinstance(value, Tensor):
                tensors[name] = view(draw(st.sampled_from(VIEWS)), value)
        return "", "right"
    name = draw(st.sampled_from(sorted(faults)))
    fault = draw(st.sampled_from(sorted(faults[name])))
    tensors[name] = faults[name][fault](tensors[name])
    return name, fault


def near(got: Tensor, want: Tensor, tolerance: float) -> bool:
    got, want = got.detach().double(), want.detach().double()
    return torch.allclose(got, want, rtol=tolerance, atol=tolerance, equal_nan=True)


DTYPES = (*STATE_DTYPES, torch.float64)
