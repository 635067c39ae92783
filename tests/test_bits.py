# SPDX-License-Identifier: Apache-2.0
"""A list has the same bits in any company; `make reliability` runs the same at length."""

import pytest
import torch

from srr_fast.reference import POOLINGS

from .conftest import native_only
from .reliability import check_bits as bits

pytestmark = native_only
CASES = [case for case in bits.CASES if case.d < 2000]


@pytest.fixture
def one_thread_after():
    yield
    torch.set_num_threads(1)


@pytest.mark.usefixtures("one_thread_after")
@pytest.mark.parametrize("dtype", bits.DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_lists(isa, case, dtype):
    scorer = bits.prepared(case, dtype)
    assert all(bits.compositions(scorer, dtype, isa, (1, 3, 17, 33)))
    assert all(bits.needles(scorer, dtype, isa, 10))
    assert all(bits.absences(scorer, dtype, isa, 10))


@pytest.mark.usefixtures("one_thread_after")
@pytest.mark.parametrize("pooling", POOLINGS)
def test_pooling(isa, pooling):
    assert all(bits.pooled_needles(pooling, torch.bfloat16, isa, 20))


def test_a_changed_bit_would_be_seen():
    case = CASES[0]
    scorer, batch = bits.prepared(case, torch.float32), bits.Batch(bits.random.Random(0), 3, case.d)
    want = scorer(*batch.alone(batch.inst, batch.resp))
    got = batch.needle(scorer(*batch.to(torch.float32)))
    assert bits.same(got, want)
    got.scores[0] = got.scores[0].nextafter(torch.tensor(2.0))
    assert not bits.same(got, want)
    got.scores[0], want.scores[0] = 0.0, -0.0
    assert not bits.same(got, want)
