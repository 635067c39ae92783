# SPDX-License-Identifier: Apache-2.0
"""Mutated checkpoints and code that comes with a model; `make reliability` runs the same at length."""

from .reliability import check_checkpoints as checkpoints


def test_mutated_files_load_as_they_were_or_not_at_all(tmp_path):
    found = checkpoints.mutated(600, tmp_path, seed=1)
    assert found.keys() <= checkpoints.HARMLESS
    assert found["refused"] > 300 and found["loaded as forged"] > 0


def test_a_change_that_loads_would_be_seen(tmp_path):
    ranker = checkpoints.build()
    ranker.save_pretrained(tmp_path)
    files = (tmp_path / "config.json").read_bytes(), (tmp_path / "model.safetensors").read_bytes()
    assert checkpoints.faithful(ranker, *files)
    ranker.projection.bias.data[0] += 1
    assert not checkpoints.faithful(ranker, *files)


def test_no_call_leaves_it_to_the_terminal_whether_to_trust_code():
    assert checkpoints.untrusted_calls() == []


def test_code_of_a_model_runs_only_when_asked_for(tmp_path):
    assert not checkpoints.remote_code_runs(tmp_path, checkpoints.LOADERS["guards.load_guard"])
    told = "from srr_fast.backbone import load_backbone as f; f(m, trust_remote_code=True)"
    assert checkpoints.remote_code_runs(tmp_path, told)
