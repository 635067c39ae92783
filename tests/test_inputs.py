# SPDX-License-Identifier: Apache-2.0
"""Right answers or refusals by name for whatever is passed in; `make reliability` tries many times as much."""

import math

import pytest
import torch

import srr_fast
from srr_fast import RankerConfig, SafetyRanker, _native

from .conftest import native_only
from .reliability import check_inputs, trials

ENTRIES = check_inputs.entries(None).keys()
ALL_NATIVE = (
    _native._forced == "native"
)  # then what the native ops do not take is refused, which the trials take as wrong


@pytest.mark.skipif(ALL_NATIVE, reason="SRR_FAST_BACKEND=native refuses more")
@pytest.mark.filterwarnings("ignore:.*(Sparse CSR|quantize_per_tensor|nested tensors)")
@pytest.mark.parametrize("entry", ENTRIES)
def test_entry_points(tmp_path, monkeypatch, entry):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    found = trials.trials(check_inputs.entries(tmp_path)[entry], 30)
    assert found.total() >= 30


@pytest.mark.parametrize(
    ("call", "wanted", "words"),
    [
        (lambda: 1, None, "accepted"),
        (lambda: 1, lambda got: got == 2, "wrong answer"),
        (lambda: int("x"), None, "says only"),
        (lambda: math.sqrt(-1), lambda got: True, "refused what is right"),
    ],
)
def test_what_is_neither_right_nor_refused_is_seen(call, wanted, words):
    with pytest.raises(AssertionError, match=words):
        trials.judge(trials.Trial(call, wanted, "op: ", ("x",), "note"))


def test_a_crash_is_not_a_refusal():
    with pytest.raises(ZeroDivisionError):
        trials.judge(trials.Trial(lambda: 1 // 0, None, "", ("",), ""))


@native_only
def test_negated_views_are_not_written_to():
    for acc, weight in ((torch._neg_view(torch.zeros(2, 8)), torch.zeros(2)), (torch.zeros(2, 8), torch.zeros(2)[:])):
        weight = weight if acc.is_neg() else torch._neg_view(weight)
        with pytest.raises(ValueError, match=r"pool_update_: (acc|weight) must be written to as it is"):
            srr_fast.pool_update_(acc, weight, torch.ones(2, 3, 8), torch.tensor([[0, 3], [1, 2]]))


@native_only
def test_meta_tensors_pool_to_meta_tensors():
    got = srr_fast.pool(torch.empty(3, 5, 8, device="meta"), torch.empty(3, 2, dtype=torch.int64, device="meta"))
    assert got.is_meta and got.shape == (3, 8)


def test_offsets_of_no_candidate():
    assert srr_fast.pool(torch.ones(4, 8), offsets=torch.tensor([0])).shape == (0, 8)


def test_values_of_another_type_are_named():
    for name in ("pooling", "scope"):
        with pytest.raises(TypeError, match=f"RankerConfig: {name} must be a str, got"):
            RankerConfig(8, **{name: torch.zeros(2)})
    with pytest.raises(TypeError, match="from_pretrained: revision must be a str or None, got int"):
        SafetyRanker.from_pretrained("a/b", revision=3)
