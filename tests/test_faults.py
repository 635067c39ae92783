# SPDX-License-Identifier: Apache-2.0
"""A fast part of tests/reliability/check_faults.py: no space, exceptions in the middle, an ASCII locale, leftovers."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from srr_fast import checkpoint, minichat
from srr_fast.cli.command import main
from srr_fast.ray_shards import run
from srr_fast.shards import Job

from .reliability import raising
from .test_project import ROOT


def test_files_take_their_places_together_or_not_at_all(tmp_path, monkeypatch):
    first, second = tmp_path / "a", tmp_path / "b"
    checkpoint.replace_all({first: b"old", second: b"old"})
    fsync, left = os.fsync, [1]

    def full(descriptor):
        if not left:
            raise OSError(28, "No space left on device")
        left.pop()
        fsync(descriptor)

    monkeypatch.setattr(checkpoint.os, "fsync", full)
    with pytest.raises(OSError, match=rf"No space left on device: '{second}'"):
        checkpoint.replace_all({first: b"new", second: b"new"})
    assert sorted(tmp_path.iterdir()) == [first, second]
    assert first.read_bytes() == second.read_bytes() == b"old"


@pytest.mark.parametrize("name", ["save_pretrained", "write_lists"])
def test_files_that_cannot_grow(name, tmp_path):
    command = [sys.executable, "-m", "tests.reliability.disk_full", str(tmp_path), name]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    assert found["times"] > 2 and not found["wrong"]


def test_an_exception_anywhere_in_generate_leaves_nothing_behind():
    found = raising.sweep(tokens=3)
    assert found.raised > 10 and not found.wrong


def test_what_a_killed_job_left_is_cleared(tmp_path):
    source, out = tmp_path / "in.jsonl", tmp_path / "out"
    source.write_text('{"query": "How do I open a jar?", "documents": ["Twist the lid."]}\n')
    out.mkdir()
    (out / ".part-000000.jsonl.0123456789abcdef0123456789abcdef").write_text("half")
    run(Job(str(source), str(out)), 0)
    assert sorted(path.name for path in out.iterdir()) == [".lock", "job.json", "part-000000.jsonl"]


@pytest.mark.parametrize("content", ["junk", "[1]"])
def test_a_damaged_job_is_named(tmp_path, content):
    source, out = tmp_path / "in.jsonl", tmp_path / "out"
    source.write_text('{"query": "How do I open a jar?", "documents": ["Twist the lid."]}\n{"query": 3}\n')
    out.mkdir()
    (out / "job.json").write_text(content)
    with pytest.raises(ValueError, match=r"out/job\.json is damaged"):
        run(Job(str(source), str(out)), 0)
    (out / "job.json").unlink()
    with pytest.raises(ValueError, match="line 2 is no list of responses"):
        run(Job(str(source), str(out)), 0)


def test_an_ascii_locale_reads_and_writes_utf8():
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("LC_", "LANG", "PYTHON"))}
    environment |= {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONPATH": str(ROOT)}
    texts = ["Ich öffne das Glas.", "瓶を開ける。"]
    arguments = ["rank", "--instruction", "Wie öffne ich es?", "--candidates", "-", "--format", "json"]
    result = subprocess.run(
        [sys.executable, "-m", "srr_fast.cli", *(part.encode() for part in arguments)],
        input="\n".join(texts).encode(),
        env=environment,
        capture_output=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    answer = json.loads(result.stdout)
    assert answer["query"] == "Wie öffne ich es?"
    model, tokenizer, ranker = minichat.load()
    want = ranker.rank(model, tokenizer, answer["query"], texts)
    assert [row["document"] for row in answer["results"]] == [one.text for one in want]
    assert [row["relevance_score"] for row in answer["results"]] == pytest.approx([one.score for one in want], abs=1e-5)


def test_an_argument_that_is_not_utf8(capsys):
    with pytest.raises(SystemExit):
        main(["rank", "--instruction", "\udcff", "--candidates", "-"])
    assert "argument --instruction: must be UTF-8" in capsys.readouterr().err
