# SPDX-License-Identifier: Apache-2.0
"""A long file is answered shard by shard, each once, whatever happens on the way. No Ray here."""

from __future__ import annotations

import json

import pytest
import torch

from srr_fast import BestOfN, minichat
from srr_fast.cli.command import main
from srr_fast.ray_shards import run
from srr_fast.shards import Job, Worker

TEXTS = ["Twist the lid.", "Use a cloth, then twist.", "No.", ""]
ROWS = [{"query": f"How do I open jar {i}?", "documents": TEXTS[: i % 5]} for i in range(10)]


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "in.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


def answers(out):
    return [json.loads(line) for path in sorted(out.glob("part-*")) for line in path.read_text().splitlines()]


def test_lists_rank_as_the_library_does(source, tmp_path):
    assert main(["rank", "--ray", str(source), str(tmp_path / "out"), "--actors", "0", "--top-k", "2"]) == 0
    model, tokenizer, ranker = minichat.load()
    for number, (row, got) in enumerate(zip(ROWS, answers(tmp_path / "out"), strict=True)):
        want = ranker.rank(model, tokenizer, row["query"], row["documents"], top_k=2)
        assert (got["line"], got["query"]) == (number, row["query"])
        assert [one["index"] for one in got["results"]] == [one.index for one in want]
        for one, other in zip(got["results"], want, strict=True):
            assert one["document"] == other.text and one["safety"] == pytest.approx(other.safety, abs=1e-5)


def test_both_names_of_a_list_and_blank_lines_and_texts_in_objects(tmp_path):
    rows = [
        {"query": "How?", "documents": TEXTS},
        {"instruction": "How?", "responses": [{"text": text, "safe": True} for text in TEXTS]},
    ]
    source = tmp_path / "in.jsonl"
    source.write_text(json.dumps(rows[0]) + "\n\n" + json.dumps(rows[1]))  # no newline at the end
    run(Job(str(source), str(tmp_path / "out")), 0)
    first, second = answers(tmp_path / "out")
    assert (first["line"], second["line"]) == (0, 2) and first["results"] == second["results"]


def test_a_prompt_draws_the_same_in_any_shard(tmp_path):
    source, prompts = tmp_path / "in.jsonl", ["How do I open a jar?", "How do I bake bread?", "What is rain?"]
    source.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts))
    whole = ["generate", "--ray", str(source), str(tmp_path / "whole"), "--actors", "0", "--n", "3"]
    assert main([*whole, "--max-new-tokens", "9", "--seed", "4"]) == 0
    job = Job(
        str(source),
        str(tmp_path / "parts"),
        sampling={"n": 3, "max_new_tokens": 9, "min_safety": None, "fallback": None},
        seed=4,
        shard_lines=1,
    )
    worker, shards = Worker(job), job.open()
    torch.manual_seed(0)
    for shard in reversed(shards):
        worker.run(shard)
    assert answers(tmp_path / "whole") == answers(tmp_path / "parts")
    drawn = answers(tmp_path / "whole")
    assert [one["prompt"] for one in drawn] == prompts and all(len(one["candidates"]) == 3 for one in drawn)
    assert isinstance(worker.best_of_n, BestOfN) and drawn[0]["candidates"] != drawn[1]["candidates"]


def test_a_job_that_died_goes_on_where_it_stopped(source, tmp_path, monkeypatch):
    job = Job(str(source), str(tmp_path / "out"), shard_lines=2)
    run_shard, seen = Worker.run, []

    def dies(self, shard):
        if shard.number == 3:
            (tmp_path / "out" / ".part-000003.jsonl.half").write_text("half a sh")  # what a killed process leaves
            raise KeyboardInterrupt
        run_shard(self, shard)

    monkeypatch.setattr(Worker, "run", dies)
    with pytest.raises(KeyboardInterrupt):
        run(job, 0)
    assert len(answers(tmp_path / "out")) == 6
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("part-*")}
    monkeypatch.setattr(Worker, "run", lambda self, shard: seen.append(shard.number) or run_shard(self, shard))
    run(job, 0)
    assert seen == [3, 4]
    assert before.items() <= {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("part-*")}.items()
    assert [one["line"] for one in answers(tmp_path / "out")] == list(range(10))
    run(job, 0)
    assert seen == [3, 4]  # nothing was left to do
    run(Job(str(source), str(tmp_path / "whole"), shard_lines=2), 0)
    assert answers(tmp_path / "whole") == answers(tmp_path / "out")


def test_a_folder_holds_one_job(source, tmp_path):
    out = str(tmp_path / "out")
    run(Job(str(source), out), 0)
    for other, name in (
        (Job(str(source), out, top_k=1), "top_k"),
        (Job(str(source), out, shard_lines=5), "shard_lines"),
        (Job(str(source), out, ranker=str(minichat.MODEL_FOLDER)), "ranker, ranker_sha256"),
    ):
        with pytest.raises(ValueError, match=f"is of another job: {name} differ"):
            run(other, 0)
    source.write_text(source.read_text() + json.dumps(ROWS[0]) + "\n")
    with pytest.raises(ValueError, match="source_sha256 differ"):
        run(Job(str(source), out), 0)
    (tmp_path / "out" / "job.json").unlink()
    with pytest.raises(ValueError, match="has part files and no job"):
        run(Job(str(source), out), 0)


def test_a_job_that_prunes_goes_on(tmp_path):
    source, out = tmp_path / "in.jsonl", tmp_path / "out"
    source.write_text('"What is rain?"\n')
    command = ["generate", "--ray", str(source), str(out), "--actors", "0", "--n", "4", "--max-new-tokens", "8"]
    for _ in range(2):
        assert main([*command, "--prune", "3:0.5"]) == 0
    assert [one["prompt"] for one in answers(out)] == ["What is rain?"]
    assert main([*command, "--prune", "3:0.25"]) == 2


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2 is not JSON"),
        ("[" * 100_000, "line 2 is not JSON"),
        ('{"query": "\\ud800", "documents": ["No."]}', "line 2 is not JSON"),
        ('{"query": "How?"}', "line 2 is no list of responses"),
        ('{"documents": ["No."]}', "line 2 is no list of responses"),
        ('{"query": "How?", "documents": [3]}', "line 2 is no list of responses"),
        ("3", "line 2 is no list of responses"),
    ],
    ids=lambda text: text[:40],
)
def test_lines_that_cannot_be_read(tmp_path, line, message, capsys):
    source = tmp_path / "in.jsonl"
    source.write_text(json.dumps(ROWS[1]) + "\n" + line + "\n")
    assert main(["rank", "--ray", str(source), str(tmp_path / "out"), "--actors", "0"]) == 2
    assert message in capsys.readouterr().err
    source.write_text("")
    assert main(["rank", "--ray", str(source), str(tmp_path / "empty"), "--actors", "0"]) == 2
    assert main(["generate", "--ray", str(source), str(tmp_path / "empty"), "--actors", "0"]) == 2
    capsys.readouterr()
    for arguments in (["--actors", "-1"], ["--instruction", "x"]):
        with pytest.raises(SystemExit):
            main(["rank", "--ray", str(source), "out", "--candidates", "-", *arguments])
