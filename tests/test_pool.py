# SPDX-License-Identifier: Apache-2.0
"""Pooling on every path against the reference in float64."""

import pytest
import torch

import srr_fast
from srr_fast import _native, reference

from .cases import POOL_CASES, STATE_DTYPES
from .numerics import POOL_FLOOR, assert_within_budget

POOLINGS = reference.POOLINGS


def gate_for(pooling, d):
    return torch.randn(d + 1, generator=torch.Generator().manual_seed(9)) * 0.3 if pooling == "gated" else None


def check(got, states, spans, pooling, gate):
    exact = reference.pool(states.double(), spans, pooling, None if gate is None else gate.double())
    plain = reference.pool(states.float(), spans, pooling, gate)
    scale = states.abs().max().item() if states.numel() else 1.0
    assert got.dtype == torch.float32
    assert_within_budget(got, exact, plain, POOL_FLOOR * scale)


@pytest.mark.parametrize("dtype", STATE_DTYPES, ids=str)
@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("name", POOL_CASES)
def test_padded(isa, name, pooling, dtype):
    M, T, d, spans = POOL_CASES[name]
    states = torch.randn(M, T, d, generator=torch.Generator().manual_seed(0)).to(dtype)
    spans = torch.tensor(spans, dtype=torch.int64).view(M, 2)
    gate = gate_for(pooling, d)
    check(srr_fast.pool(states, spans, pooling=pooling, gate=gate), states, spans, pooling, gate)


@pytest.mark.parametrize("pooling", POOLINGS)
def test_packed_is_padded(isa, pooling):
    generator = torch.Generator().manual_seed(3)
    states = torch.randn(50, 33, generator=generator)
    offsets = torch.tensor([0, 7, 7, 8, 50])
    gate = gate_for(pooling, 33)
    got = srr_fast.pool(states, offsets=offsets, pooling=pooling, gate=gate)
    spans = torch.stack([offsets[:-1], offsets[1:]], 1)
    check(got, states, spans, pooling, gate)
    padded = torch.full((4, 50, 33), float("nan"))
    for m, (start, stop) in enumerate(spans.tolist()):
        padded[m, start:stop] = states[start:stop]
    again = srr_fast.pool(padded, spans, pooling=pooling, gate=gate)
    torch.testing.assert_close(got, again, equal_nan=True, **({} if isa == "reference" else {"rtol": 0, "atol": 0}))


@pytest.mark.parametrize("pooling", POOLINGS)
def test_tokens_outside_the_span_are_never_read(isa, pooling):
    states = torch.full((2, 10, 24), float("nan"))
    states[0, 2:5] = 1.0
    states[1, 9:] = 2.0
    gate = gate_for(pooling, 24)
    got = srr_fast.pool(states, torch.tensor([[2, 5], [9, 10]]), pooling=pooling, gate=gate)
    torch.testing.assert_close(got, torch.tensor([[1.0], [2.0]]).expand(2, 24))


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("view", ["strided tokens", "misaligned", "transposed", "negated", "expanded"])
def test_views(isa, pooling, view):
    generator = torch.Generator().manual_seed(4)
    M, T, d = 3, 12, 40
    if view == "strided tokens":
        states = torch.randn(M, 2 * T, 2 * d, generator=generator)[:, ::2, :d]
    elif view == "misaligned":  # one element off any vector boundary
        states = torch.randn(M * T * d + 1, generator=generator)[1:].view(M, T, d)
    elif view == "transposed":  # last dimension not contiguous
        states = torch.randn(M, d, T, generator=generator).transpose(1, 2)
    elif view == "negated":
        states = torch._neg_view(torch.randn(M, T, d, generator=generator))
    else:
        states = torch.randn(1, T, d, generator=generator).expand(M, T, d)
    spans = torch.tensor([[0, 12], [3, 7], [11, 12]])
    gate = gate_for(pooling, d)
    check(srr_fast.pool(states, spans, pooling=pooling, gate=gate), states, spans, pooling, gate)


@pytest.mark.parametrize("pooling", POOLINGS)
def test_streaming_equals_pooling_at_once(isa, pooling):
    generator = torch.Generator().manual_seed(5)
    M, T, d = 4, 23, 48
    states = torch.randn(M, T, d, generator=generator)
    lengths = torch.tensor([23, 5, 0, 17])
    spans = torch.stack([torch.zeros_like(lengths), lengths], 1)
    gate = gate_for(pooling, d)
    acc, weight = torch.zeros(M, d), torch.zeros(M)
    for begin, end in [(0, 9), (9, 10), (10, 11), (11, 23)]:  # a prompt's chunk, two single tokens, a chunk
        part = (spans - begin).clamp(0, end - begin)
        srr_fast.pool_update_(acc, weight, states[:, begin:end], part, pooling=pooling, gate=gate)
    check(acc / weight[:, None], states, spans, pooling, gate)


def test_an_empty_span_leaves_the_running_pool_alone(isa):
    acc, weight = torch.full((2, 8), 3.0), torch.full((2,), 2.0)
    srr_fast.pool_update_(acc, weight, torch.full((2, 1, 8), float("nan")), torch.zeros(2, 2, dtype=torch.int64))
    assert torch.equal(acc, torch.full((2, 8), 3.0))
    assert torch.equal(weight, torch.full((2,), 2.0))


def test_rows_next_to_the_output_are_not_written(isa):
    buffer = torch.full((4, 32), 7.0)
    acc, weight = buffer[1:3, 5:22], torch.zeros(2)
    acc.zero_()
    srr_fast.pool_update_(acc, weight, torch.ones(2, 3, 17), torch.tensor([[0, 3], [1, 2]]))
    assert torch.equal(acc, torch.tensor([[3.0], [1.0]]).expand(2, 17))
    acc.fill_(7.0)
    assert (buffer == 7.0).all()


def test_bits_do_not_depend_on_threads_or_neighbours(isa, two_threads):
    states = torch.randn(40, 64, 2048, generator=torch.Generator().manual_seed(6))
    spans = torch.tensor([[0, 64]] * 40)
    together = srr_fast.pool(states, spans)
    torch.set_num_threads(1)
    assert torch.equal(together, srr_fast.pool(states, spans))
    assert torch.equal(together[7:8], srr_fast.pool(states[7:8].clone(), spans[:1]))


GOOD = {"states": torch.randn(2, 4, 8), "spans": torch.tensor([[0, 4], [1, 2]])}


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"states": torch.zeros(2, 4, 8, dtype=torch.int32)}, TypeError, ["states", "float32", "int32"]),
        ({"states": torch.zeros(8)}, ValueError, ["states", "[8]"]),
        ({"states": None}, TypeError, ["states", "NoneType"]),
        ({"spans": torch.tensor([[0, 4]])}, ValueError, ["spans", "2", "[1, 2]"]),
        ({"spans": torch.tensor([[0, 4], [1, 2]], dtype=torch.int32)}, TypeError, ["spans", "int64", "int32"]),
        ({"spans": torch.tensor([[0, 5], [1, 2]])}, ValueError, ["spans", "T=4", "5", "row 0"]),
        ({"spans": torch.tensor([[0, 4], [2, 1]])}, ValueError, ["spans", "row 1"]),
        ({"spans": torch.tensor([[0, 4], [-1, 1]])}, ValueError, ["spans", "-1"]),
        ({"spans": [[0, 4], [1, 2]]}, TypeError, ["spans", "int64", "list"]),
        ({"spans": GOOD["spans"].numpy()}, TypeError, ["spans", "int64", "ndarray"]),
        ({"spans": GOOD["spans"].to_sparse()}, ValueError, ["spans", "sparse"]),
        ({"gate": [0.0] * 9, "pooling": "gated"}, TypeError, ["gate", "list"]),
        ({"pooling": "max"}, ValueError, ["pooling", "max"]),
        ({"pooling": None}, TypeError, ["pooling", "mean", "None"]),
        ({"pooling": 3}, TypeError, ["pooling", "mean", "3"]),
        ({"pooling": ["mean"]}, TypeError, ["pooling", "['mean']"]),
        ({"pooling": "gated"}, ValueError, ["gate"]),
        ({"gate": torch.zeros(9)}, ValueError, ["gate", "mean"]),
        ({"pooling": "gated", "gate": torch.zeros(8)}, ValueError, ["gate", "9", "[8]"]),
        ({"offsets": torch.tensor([0, 1])}, TypeError, ["offsets"]),
        ({"spans": None}, TypeError, ["spans", "offsets"]),
        ({"spans": GOOD["spans"].to("meta")}, ValueError, ["spans", "meta"]),
        ({"states": GOOD["states"].to_sparse()}, ValueError, ["states", "sparse"]),
    ],
)
def test_errors_name_the_argument(change, error, words):
    with pytest.raises(error) as caught:
        srr_fast.pool(**{**GOOD, **change})
    assert str(caught.value).startswith("pool: ")
    for word in words:
        assert word.lower() in str(caught.value).lower()
    if "offsets" not in change and change.get("spans", ()) is not None:
        with pytest.raises(error, match=r"^pool_update_: "):
            srr_fast.pool_update_(torch.zeros(2, 8), torch.zeros(2), **{**GOOD, **change})


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"states": None}, TypeError, ["states", "NoneType"]),
        ({"states": torch.zeros(2, 4, 8)}, ValueError, ["states", "[T, d]", "[2, 4, 8]"]),
        ({"offsets": [0, 3]}, TypeError, ["offsets", "list"]),
        ({"offsets": torch.tensor([], dtype=torch.int64)}, ValueError, ["offsets", "[0]"]),
        ({"offsets": torch.tensor([3, 1])}, ValueError, ["offsets", "decreasing", "[3, 1]"]),
        ({"offsets": torch.tensor([-1, 1])}, ValueError, ["offsets", "-1"]),
        ({"offsets": torch.tensor([0, 5])}, ValueError, ["offsets", "T=4", "5"]),
        ({"offsets": torch.tensor([0, 1]).to("meta")}, ValueError, ["offsets", "meta"]),
    ],
)
def test_errors_of_packed_states_name_offsets(change, error, words):
    with pytest.raises(error) as caught:
        srr_fast.pool(**{"states": torch.zeros(4, 8), "offsets": torch.tensor([0, 1, 4]), **change})
    assert "spans" not in str(caught.value)
    for word in ["pool: ", *words]:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("acc", "weight", "error"),
    [
        (torch.zeros(2, 7), torch.zeros(2), ValueError),
        (torch.zeros(2, 8), torch.zeros(3), ValueError),
        (torch.zeros(2, 8, dtype=torch.float16), torch.zeros(2), TypeError),
        (torch.zeros(8, 2).t(), torch.zeros(2), ValueError),
        (torch.zeros(2, 8), torch.zeros(4)[::2], ValueError),
        (torch.zeros(1, 8).expand(2, 8), torch.zeros(2), ValueError),
    ],
)
def test_update_refuses_what_it_cannot_write(acc, weight, error):
    with pytest.raises(error, match=r"pool_update_: (acc|weight)"):
        srr_fast.pool_update_(acc, weight, **GOOD)


def test_last_reads_the_last_token_alone(isa):
    states = torch.randn(2, 3, 4)
    states[0, 0], states[0, 1] = float("inf"), float("nan")
    got = srr_fast.pool(states, torch.tensor([[0, 3], [0, 2]]), pooling="last")
    assert torch.equal(got, torch.stack([states[0, 2], states[1, 1]]))


@pytest.mark.parametrize("bias", [-1000.0, -100.0, -80.0, 80.0, 1000.0])
def test_a_gate_that_is_shut_still_weighs(isa, bias):
    """Far out, all tokens weigh the same; nearer, a difference of 10 between two logits is e^10."""
    states = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])
    gate = torch.tensor([0.0, 10.0, bias])
    got = srr_fast.pool(states, torch.tensor([[0, 2]]), pooling="gated", gate=gate)
    exact = reference.pool(states.double(), torch.tensor([[0, 2]]), "gated", gate.double())
    torch.testing.assert_close(got.double(), exact, rtol=1e-5, atol=1e-6)
    assert got.isfinite().all()


@pytest.mark.parametrize(
    "share", ["acc in states", "acc in spans", "acc in gate", "weight in acc", "rows of acc overlap"]
)
def test_update_refuses_tensors_that_share_memory(share):
    if _native.extension is None and share != "rows of acc overlap":
        pytest.skip("the reference computes before it writes")
    states, spans = torch.ones(3, 2, 8), torch.tensor([[0, 2]] * 3)
    acc, weight = torch.zeros(3, 8), torch.zeros(3)
    gate = torch.zeros(24)[:9] if share == "acc in gate" else None
    if share == "acc in states":
        acc = states[:, 1]
    elif share == "acc in spans":
        spans = torch.zeros(12, dtype=torch.int64)[:6].view(3, 2)
        acc = torch.as_strided(spans.view(torch.float32), (3, 8), (8, 1))
    elif share == "acc in gate":
        acc = gate.as_strided((3, 8), (8, 1))
    elif share == "weight in acc":
        weight = acc.view(-1)[:3]
    else:
        acc = torch.zeros(24).as_strided((3, 8), (4, 1))
    with pytest.raises(ValueError, match=r"pool_update_: acc.*(share|overlap)"):
        srr_fast.pool_update_(acc, weight, states, spans, pooling="mean" if gate is None else "gated", gate=gate)
