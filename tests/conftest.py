# SPDX-License-Identifier: Apache-2.0
"""Fixtures shared by all tests."""

import os

# One thread per test process: tests run side by side. Set before torch is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch

from srr_fast import _native

ISAS = _native.extension.build_info()["cpu_isas"] if _native.extension else ["reference"]
native_only = pytest.mark.skipif(_native.extension is None, reason=f"no native extension: {_native.missing_reason}")


@pytest.fixture(params=ISAS)
def isa(request):
    """Runs the test once per instruction set that this build and machine have; once on the reference otherwise."""
    if _native.extension is None:
        yield request.param
        return
    before = _native.extension.build_info()["cpu_isa"]
    _native.extension.select_cpu_isa(request.param)
    yield request.param
    _native.extension.select_cpu_isa(before)


@pytest.fixture
def two_threads():
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(1)
