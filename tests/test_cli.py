# SPDX-License-Identifier: Apache-2.0
"""The command line: what goes in, what comes out, and one line for every fault of the caller."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from srr_fast import BestOfN
from srr_fast.cli import texts
from srr_fast.cli.command import main
from srr_fast.ranker import Calibration

from .best_of_n import make_ranker
from .tiny_models import CHAT_TEMPLATE, tiny, tokenizer

TEXTS = ["w40 w41 w42", "w43", "w44 w45 w46"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model with its tokenizer, a ranker for it and one for another width."""
    folder = tmp_path_factory.mktemp("saved")
    tiny("llama").save_pretrained(folder / "model")
    tokenizer(CHAT_TEMPLATE).save_pretrained(folder / "model")
    make_ranker(calibration=Calibration(3.0, 0.5)).save_pretrained(folder / "ranker")
    return folder


@pytest.fixture
def command(folder, capsys, monkeypatch):
    def run(name, *arguments, stdin="", status=0):
        monkeypatch.setattr(sys, "stdin", io.StringIO(stdin))
        chosen = ["--model", str(folder / "model"), "--ranker", str(folder / "ranker")]
        try:
            got = main([name, *chosen, *map(str, arguments)])
        except SystemExit as stop:
            got = stop.code
        out, err = capsys.readouterr()
        assert got == status, err
        if status:
            assert out == "" and err.startswith(f"srr-fast {name}: ") and err.count("\n") == 1
            return err
        return out

    return run


@pytest.fixture
def file(tmp_path):
    def write(name, content):
        path = tmp_path / name
        path.write_text(content, encoding="utf-8")
        return path

    return write


def wanted():
    ranker = make_ranker(calibration=Calibration(3.0, 0.5))
    return ranker.rank(tiny("llama"), tokenizer(CHAT_TEMPLATE), "w30 w31", TEXTS)


INPUTS = {
    "answers.txt": "\n".join(TEXTS),
    "answers.json": json.dumps(TEXTS),
    "answers.jsonl": "\n".join(json.dumps({"text": text}) for text in TEXTS),
    "windows.txt": "\ufeff" + "\r\n\r\n".join(TEXTS) + "\r\n",
    "a list.txt": "\ufeff" + json.dumps(TEXTS),
    "a list": json.dumps(TEXTS, indent=1),
    "lines of strings": "\n".join(json.dumps(text) for text in TEXTS),
    "objects in a list": json.dumps([{"text": text} for text in TEXTS]),
}


@pytest.mark.parametrize("name", INPUTS)
def test_rank_reads(command, file, name):
    path = file(name, INPUTS[name])
    answer = json.loads(command("rank", "--instruction", "w30 w31", "--candidates", path, "--format", "json"))
    assert answer["query"] == "w30 w31"
    for got, want in zip(answer["results"], wanted(), strict=True):
        assert (got["index"], got["document"]) == (want.index, want.text)
        numbers = (got["relevance_score"], got["prob"], got["safety"])
        assert numbers == pytest.approx((want.score, want.prob, want.safety), abs=1e-5)


def test_rank_writes(command):
    arguments = ["rank", "--instruction", "w30 w31", "--candidates", "-"]
    lines = command(*arguments, "--format", "jsonl", stdin="\n".join(TEXTS)).splitlines()
    assert [json.loads(line)["index"] for line in lines] == [r.index for r in wanted()]
    table = command(*arguments, "--top-k", 2, stdin="\n".join(TEXTS)).splitlines()
    assert table[0].split() == ["index", "score", "prob", "safety", "text"]
    assert [int(line.split()[0]) for line in table[1:]] == [r.index for r in wanted()[:2]]
    assert table[1].endswith(wanted()[0].text)
    out = json.loads(command(*arguments, "--format", "json", stdin='["w40", ""]'))["results"][-1]
    assert (out["index"], out["relevance_score"], out["prob"], out["safety"]) == (1, None, 0.0, 0.0)
    assert "[half a list" in command(*arguments, stdin="[half a list\nw40")
    assert len(command(*arguments, stdin="\ufeff" + json.dumps(TEXTS)).splitlines()) == 1 + len(TEXTS)


def test_generate_writes(command, file):
    bon = BestOfN(tiny("llama"), tokenizer(CHAT_TEMPLATE), make_ranker(calibration=Calibration(3.0, 0.5)))
    torch.manual_seed(7)
    want = [bon.generate(prompt, 4, max_new_tokens=5)[0] for prompt in ("w30", "w31 w32")]
    options = ["--n", 4, "--max-new-tokens", 5, "--seed", 7]
    assert command("generate", "w30", *options) == f"{want[0].text}\n"
    assert command("generate", "w30", "w31 w32", *options) == f"> w30\n{want[0].text}\n> w31 w32\n{want[1].text}\n"
    answer = json.loads(command("generate", "w30", "w31 w32", *options, "--format", "json"))
    for got, result in zip(answer["results"], want, strict=True):
        assert (got["text"], got["index"], got["abstained"]) == (result.text, result.index, None)
        assert got["relevance_score"] == pytest.approx(result.score, abs=1e-5)
        assert [c["document"] for c in got["candidates"]] == [c.text for c in result.candidates]
        assert set(got["timings"]) == set(result.timings._fields)
    for name, content in {
        "prompts.txt": "w30\nw31 w32\n",
        "prompts.jsonl": '{"prompt": "w30"}\n{"messages": [{"role": "user", "content": "w31 w32"}]}\n',
        "prompts.json": '["w30", [{"role": "user", "content": "w31 w32"}]]',
    }.items():
        lines = command("generate", "--input", file(name, content), *options, "--format", "jsonl").splitlines()
        assert [json.loads(line)["text"] for line in lines] == [result.text for result in want]


def test_generate_prunes(command):
    bon = BestOfN(tiny("llama"), tokenizer(CHAT_TEMPLATE), make_ranker(calibration=Calibration(3.0, 0.5)))
    torch.manual_seed(7)
    want = bon.generate("w30", 8, max_new_tokens=9, prune=[(2, 0.5), (4, 0.25)])[0]
    options = ["--n", 8, "--max-new-tokens", 9, "--seed", 7, "--prune", "2:0.5", "4:0.25", "--format", "jsonl"]
    answer = json.loads(command("generate", "w30", *options))
    assert answer["text"] == want.text
    assert [c["n_tokens"] for c in answer["candidates"]] == [c.n_tokens for c in want.candidates]
    assert [c["pruned"] for c in answer["candidates"]] == [c.pruned for c in want.candidates]
    assert sorted(c.n_tokens for c in want.candidates) == [2, 2, 2, 2, 4, 4, 4, 9]


def test_generate_abstains(folder, capsys):
    chosen = ["--model", str(folder / "model"), "--ranker", str(folder / "ranker")]
    options = ["--n", "2", "--max-new-tokens", "3", "--min-safety", "1", "--fallback", "no"]
    assert main(["generate", *chosen, *options, "w30"]) == 0
    out, err = capsys.readouterr()
    assert out == "no\n" and "below min_safety=1" in err and err.count("\n") == 1


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", '{"text": "w40"}', "must be a JSON list, got dict"),
        ("a.json", "[", "is not JSON"),
        ("a.jsonl", '"w40"\nw41', "line 2 is not JSON"),
        ("a.txt", '{"text": "w40"}\n\n{"text": "w41"', "line 3 is not JSON"),
        ("a.json", '["w40", 3]', "item 1 cannot be read: 3"),
        ("a.txt", '["w40", {"txt": "w41"}]', "item 1 cannot be read"),
        ("a.txt", "\n \n", "is empty"),
        ("a.json", "[]", "is empty"),
    ],
)
def test_files_that_cannot_be_read(command, file, name, content, message):
    arguments = ["rank", "--instruction", "w30", "--candidates", file(name, content)]
    assert message in command(*arguments, status=2)


def test_faults_of_the_caller(command, folder, tmp_path):
    rank = ["rank", "--instruction", "w30", "--candidates", "-"]
    assert "No such file" in command(*rank[:-1], tmp_path / "none.txt", status=2)
    assert "top-k" in command(*rank, "--top-k", 0, status=2)
    assert "--candidates" in command("rank", "--instruction", "w30", status=2)
    (tmp_path / "latin.txt").write_bytes("w30 é".encode("latin-1"))
    assert "latin.txt: is not UTF-8" in command(*rank[:-1], tmp_path / "latin.txt", status=2)
    assert "must be a whole number in 0 .. 65535, got 99999" in command("serve", "--port", 99999, status=2)
    assert "rank: text must be Unicode, got the lone surrogate" in command(*rank, stdin='["\\ud800"]', status=2)
    assert "must be Unicode" in command("generate", "--input", "-", stdin='{"prompt": "\\ud800"}', status=2)
    assert "PROMPT" in command("generate", status=2)
    assert "PROMPT" in command("generate", "w30", "--input", "-", status=2)
    assert "must be TOKENS:SHARE, like 32:0.5, got 'half'" in command("generate", "w30", "--prune", "half", status=2)
    assert "prune must keep a share" in command("generate", "w30", "--prune", "8:2", status=2)
    assert "min_safety must be in [0, 1]" in command("generate", "w30", "--min-safety", 2, status=2)
    assert "top-k: must be a whole number of at least 1, got x" in command(*rank, "--top-k", "x", status=2)
    assert "go together" in run_alone("rank", "--model", folder / "model", "--instruction", "x", "--candidates", "-")
    assert "invalid choice" in run_alone("rerank")


@pytest.mark.parametrize("seed", [-1, 2**63, 2**80, "1.5", "x"])
@pytest.mark.parametrize("name", ["demo", "generate", "sample", "train", "eval"])
def test_a_seed_is_a_number_of_64_bits(capsys, name, seed):
    with pytest.raises(SystemExit, match="2"):
        main([name, "--seed", str(seed)])
    message = f"argument --seed: must be a whole number in 0 .. 9223372036854775807, got {seed}\n"
    assert capsys.readouterr().err == f"srr-fast {name}: {message}"


def test_the_largest_seed_draws(command):
    options = ["w30", "--n", 2, "--max-new-tokens", 2, "--seed", 2**63 - 1]
    assert command("generate", *options) == command("generate", *options)


def run_alone(*arguments):
    done = subprocess.run(
        [sys.executable, "-m", "srr_fast.cli", *map(str, arguments)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2 and done.stdout == "" and done.stderr.count("\n") == 1
    return done.stderr


def test_a_model_that_is_not_there_is_one_line(folder, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "answers.txt").write_text("w40\n")
    given = ["--instruction", "w30", "--candidates", tmp_path / "answers.txt", "--model"]
    assert "empty" in run_alone("rank", *given, tmp_path / "empty", "--ranker", folder / "ranker")
    assert "config.json" in run_alone("rank", *given, folder / "model", "--ranker", tmp_path / "empty")


def test_no_stdin_is_said(command, monkeypatch):
    monkeypatch.setattr(texts, "sys", SimpleNamespace(stdin=None))
    assert "there is no stdin" in command("rank", "--instruction", "w30", "--candidates", "-", status=2)


def test_an_interrupt_is_no_traceback(command, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(texts, "read", interrupted)
    assert main(["rank", "--instruction", "w30", "--candidates", "-"]) == 130


def test_a_reader_that_leaves_is_no_fault(folder):
    """What is printed goes to a process that has closed its end."""
    given = ["--model", folder / "model", "--ranker", folder / "ranker", "--instruction", "w30", "--candidates", "-"]
    command = [sys.executable, "-m", "srr_fast.cli", "rank", *map(str, given)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        process.stdin.write(b"w40 w41\n" * 8)
        process.stdin.close()
        assert process.wait(120) == 141 and process.stderr.read() == b""


def test_a_closed_stdout_is_no_fault(monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    assert main(["env"]) in (0, 1)


@pytest.mark.parametrize("name", ["train", "eval"])
def test_an_out_that_cannot_be_written_is_found_first(folder, capsys, name, tmp_path):
    (tmp_path / "a.txt").write_text("")
    given = ["--data", "none.jsonl", "--out", str(tmp_path / "a.txt" / "x")]
    given += ["--model", str(folder / "model")] if name == "train" else ["--ranker", str(folder / "ranker")]
    assert main([name, *given]) == 2
    assert "a.txt" in capsys.readouterr().err
