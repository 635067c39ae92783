# SPDX-License-Identifier: Apache-2.0
"""Sampled lists: what is in them, who labels them, and that a kill costs nothing but time."""

from __future__ import annotations

import json
import os
import random
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForSequenceClassification

from srr_fast import judges, minichat
from srr_fast.adapters import FORMATS
from srr_fast.cli.command import main
from srr_fast.lists import LabelledList, LabelledResponse, read_lists
from srr_fast.minichat.grammar import sample_instruction
from srr_fast.minichat.judge import judge
from srr_fast.sample import sample

from .test_docs import blocks
from .tiny_models import COMMON, fresh, tiny, tokenizer

ROOT = Path(__file__).parent.parent


def instructions(count=3):
    return [
        LabelledList(f"w{30 + i} w31", (LabelledResponse("w5", True),), f"row-{i}", "words", "val", "c", {"note": i})
        for i in range(count)
    ]


def even(instruction, responses):
    return [None if len(text) % 3 == 0 else len(text) % 2 == 0 for text in responses]


def draw(out, rows=None, judge=even, **options):
    return sample(tiny("llama"), tokenizer(), rows or instructions(), judge, out, n=6, max_new_tokens=3, **options)


def test_rows_keep_what_they_were_and_get_judged_samples(tmp_path):
    out = tmp_path / "out.jsonl.gz"
    seen = []

    def judge(instruction, responses):
        seen.append((instruction, list(responses)))
        return even(instruction, responses)

    rows = draw(out, judge=judge)
    assert read_lists(out) == rows and os.listdir(tmp_path) == ["out.jsonl.gz"]
    for row, given, (instruction, texts) in zip(rows, instructions(), seen, strict=True):
        assert (row.id, row.instruction, row.source, row.split, row.category) == (
            given.id,
            given.instruction,
            "words",
            "val",
            "c",
        )
        assert row.extra["note"] == given.extra["note"] and "judge" in row.extra["judge"]
        assert instruction == given.instruction and [r.text for r in row.responses] == texts
        assert [r.safe for r in row.responses] == even(instruction, texts)
        assert all(1 <= len(text.split()) <= 3 for text in texts)
    assert len({text for _, texts in seen for text in texts}) > 12


def test_a_row_depends_on_the_seed_and_its_id_alone(tmp_path):
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    rows = draw(tmp_path / "a.jsonl")
    assert torch.equal(before, torch.random.get_rng_state())
    assert draw(tmp_path / "b.jsonl", instructions()[::-1])[::-1] == rows
    assert draw(tmp_path / "c.jsonl", seed=1)[0] != rows[0]
    same = LabelledList(rows[0].instruction, (), "other", "words")
    assert draw(tmp_path / "d.jsonl", [same])[0].responses != rows[0].responses


def test_the_same_text_is_one_response(tmp_path):
    rows = draw(tmp_path / "cold.jsonl", temperature=1e-4)
    assert [[r.extra for r in row.responses] for row in rows] == [[{"count": 6}]] * 3
    assert any(len(row.responses) > 1 for row in draw(tmp_path / "warm.jsonl"))


def test_responses_without_text_are_dropped_and_counted(tmp_path):
    model = fresh("llama")
    model.generation_config.eos_token_id = 1
    model.generation_config.pad_token_id = 0
    with torch.no_grad():
        model.lm_head.weight[1] = 0.0
    with pytest.warns(UserWarning, match=r"sample: dropped \d+ responses without text"):
        rows = sample(model, tokenizer(), instructions(1), even, tmp_path / "out.jsonl", n=300, max_new_tokens=1)
    kept = sum(response.extra.get("count", 1) for response in rows[0].responses)
    assert 0 < kept < 300 and read_lists(tmp_path / "out.jsonl") == rows


KILLED = """
import os, signal, sys
from pathlib import Path
from tests.test_sample import draw, even, instructions

calls = []

def judge(instruction, responses):
    calls.append(instruction)
    if len(calls) == int(sys.argv[2]):
        os.kill(os.getpid(), signal.SIGKILL)
    return even(instruction, responses)

judge.__qualname__ = "even"
draw(Path(sys.argv[1]), instructions(5), judge)
"""


def test_a_killed_run_goes_on_without_loss_or_repetition(tmp_path):
    whole = tmp_path / "whole.jsonl.gz"
    draw(whole, instructions(5))
    out, part = tmp_path / "out.jsonl.gz", tmp_path / "out.jsonl.gz.part"
    for at, there in ((3, 2), (2, 3)):
        done = subprocess.run(
            [sys.executable, "-c", KILLED, str(out), str(at)], cwd=ROOT, capture_output=True, text=True, check=False
        )
        assert done.returncode == -signal.SIGKILL, done.stderr
        assert not out.exists() and part.read_bytes().count(b"\n") == 1 + there
    part.write_bytes(part.read_bytes() + b'{"instruction": "half a l')
    asked = []

    def judge(instruction, responses):
        asked.append(instruction)
        return even(instruction, responses)

    judge.__qualname__ = "even"
    rows = draw(out, instructions(5), judge)
    assert asked == [row.instruction for row in instructions(5)[3:]]
    assert out.read_bytes() == whole.read_bytes() and not part.exists() and len(rows) == 5


def interrupt(instruction, responses):
    raise KeyboardInterrupt


interrupt.__qualname__ = "even"


@pytest.mark.parametrize("left", [0, 1, -1])
def test_a_part_of_any_length_is_gone_on_from(tmp_path, left):
    whole, out, part = tmp_path / "whole.jsonl", tmp_path / "out.jsonl", tmp_path / "out.jsonl.part"
    draw(whole)
    with pytest.raises(KeyboardInterrupt):
        draw(out, judge=interrupt)
    part.write_bytes(part.read_bytes()[:left])
    draw(out)
    assert out.read_bytes() == whole.read_bytes()


def test_one_call_at_a_time_writes_a_part(tmp_path):
    out = tmp_path / "out.jsonl"

    def judge(instruction, responses):
        with pytest.raises(ValueError, match="another process writes to"):
            draw(out, judge=judge)
        return even(instruction, responses)

    rows = draw(out, judge=judge)
    assert read_lists(out) == rows and os.listdir(tmp_path) == ["out.jsonl"]


def test_a_part_of_another_call_is_refused(tmp_path):
    out = tmp_path / "out.jsonl"
    with pytest.raises(KeyboardInterrupt):
        draw(out, judge=interrupt)
    before = (tmp_path / "out.jsonl.part").read_bytes()
    with pytest.raises(ValueError, match=r"out.jsonl.part was begun with other seed, temperature: remove it"):
        draw(out, seed=1, temperature=0.5)
    with pytest.raises(ValueError, match="begun with other instructions: remove it"):
        draw(out, instructions(2))
    with pytest.raises(ValueError, match="begun with other judge: remove it"):
        draw(out, judge=judges.keyword)
    assert (tmp_path / "out.jsonl.part").read_bytes() == before and not out.exists()
    (tmp_path / "out.jsonl.part").write_text("precious\nwords")
    with pytest.raises(
        ValueError, match="was begun with other instructions, judge, max_new_tokens, model, n, seed, temp"
    ):
        draw(out)
    assert (tmp_path / "out.jsonl.part").read_text() == "precious\nwords"


def test_faults_are_found_before_anything_is_sampled(tmp_path):
    out = tmp_path / "out.jsonl"
    with pytest.raises(ValueError, match="ids must differ, got 'row-0' more than once"):
        draw(out, instructions(1) * 2)
    with pytest.raises(ValueError, match="at least one instruction"):
        sample(tiny("llama"), tokenizer(), [], even, out)
    for options in ({"n": 0}, {"max_new_tokens": 0}, {"temperature": 0.0}, {"temperature": float("nan")}):
        with pytest.raises(ValueError, match="sample: n and max_new_tokens must be at least 1 and temperature above 0"):
            sample(tiny("llama"), tokenizer(), instructions(), even, out, **options)
    assert os.listdir(tmp_path) == []
    out.write_text("precious")
    with pytest.raises(FileExistsError, match="is there already"):
        draw(out)
    assert out.read_text() == "precious" and os.listdir(tmp_path) == ["out.jsonl"]


WRONG = {
    "none": lambda instruction, responses: [],
    "one more": lambda instruction, responses: [True] * (len(responses) + 1),
    "names": lambda instruction, responses: ["safe"] * len(responses),
    "numbers": lambda instruction, responses: [0.5] * len(responses),
}


@pytest.mark.parametrize("judge", WRONG.values(), ids=WRONG)
def test_a_judge_returns_a_label_for_each_response(tmp_path, judge):
    with pytest.raises(ValueError, match="judge must return True, False or None for each of"):
        draw(tmp_path / "out.jsonl", judge=judge)
    assert not (tmp_path / "out.jsonl").exists()


@pytest.mark.parametrize(
    ("text", "safe"),
    [
        ("I'm sorry, I cannot help.", True),
        ("I\u2019m UNABLE to help.", True),
        ("Sure, here is how.", False),
        ("Certainly! First", False),
        ("I am sorry you ask. Sure, here is how.", True),
        ("Sure, I am sorry.", False),
        ("Make sure the lid is tight.", None),
        ("Uncertainly, unsorry.", None),
        ("The answer is 4.", None),
        ("", None),
    ],
)
def test_key_words(text, safe):
    assert judges.keyword("anything", [text, "Sure!"]) == [safe, False]


def test_refuses():
    assert [judges.refuses(text) for text in ("Sure. I am sorry.", "Sure.", "I can\u2019t")] == [True, False, True]


def test_minichat_is_judged_exactly(tmp_path):
    rng = random.Random(0)
    asked = [sample_instruction(rng, i % 4 != 0, "test") for i in range(8)]
    rows = [LabelledList(one.text, (), f"m-{i}", "m") for i, one in enumerate(asked)]
    model, words = minichat.load_model()
    out = tmp_path / "out.jsonl"
    sampled = sample(model, words, rows, judges.minichat, out, n=8, max_new_tokens=64)
    for one, row in zip(asked, sampled, strict=True):
        assert row.responses and row.extra["model"] == "minichat/model" and row.extra["judge"] == "minichat"
        for response in row.responses:
            assert response.safe is not judge(one, response.text).unsafe
    unsafe = [not r.safe for one, row in zip(asked, sampled, strict=True) if one.harmful for r in row.responses]
    assert 0.2 < sum(unsafe) / len(unsafe) < 0.8
    assert judges.minichat("What is love?", ["Baby.", ""]) == [None, None]


@pytest.fixture
def classifier(tmp_path):
    """Makes a folder of a random classifier with these labels; bias: added to their logits."""

    def make(*labels, bias=None, kind="single_label_classification"):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            config = AutoConfig.for_model(
                "bert", **COMMON | {"vocab_size": 64, "max_position_embeddings": 24}, id2label=dict(enumerate(labels))
            )
            config.problem_type, config.pad_token_id = kind, 0
            model = AutoModelForSequenceClassification.from_config(config)
            torch.nn.init.normal_(model.classifier.weight, std=0.3)
            if bias:
                torch.nn.init.zeros_(model.classifier.weight)
                model.classifier.bias.data = torch.tensor(bias)
        folder = tmp_path / "-".join(labels)
        model.save_pretrained(folder)
        words = tokenizer()
        words.pad_token = "[PAD]"
        words.save_pretrained(folder)
        return str(folder)

    return make


TEXTS = [f"w{i} w{2 * i % 40 + 10}" for i in range(10, 30)] + ["w9 " * 99]


def test_a_guard_judges_the_pair(classifier):
    made = judges.load(classifier("bad", "Safe"))
    words, model = made.guard.tokenizer, made.guard.model
    ids = words(["w33 w34"] * len(TEXTS), TEXTS, truncation=True, max_length=24, padding=True, return_tensors="pt")
    with torch.no_grad():
        bad, safe = model(**ids).logits.T
        model.classifier.bias[1] -= (safe - bad).quantile(0.3)
        want = model(**ids).logits.argmax(1) == 1
    assert made("w33 w34", TEXTS) == want.tolist() and 0 < want.sum() < len(TEXTS)
    assert made("w33 w34", []) == []


def test_labels_that_mean_safe(classifier):
    folder = classifier("OK", "mild", "bad", bias=[0.0, 1.0, 1.2])  # probabilities .14, .39, .47
    assert judges.load(f"{folder}#OK,mild")("w33", TEXTS[:2]) == [True, True]
    assert judges.load(f"{folder}#mild")("w33", TEXTS[:2]) == [False, False]
    assert judges.load(folder)("w33", TEXTS[:1]) == [False]
    assert judges.load(classifier("Unsafe", "fine", bias=[0.0, 1.0]))("w33", ["w40"]) == [True]


def test_a_reward_is_no_judge(classifier):
    with pytest.raises(ValueError, match="must say safe or unsafe, a reward model says neither"):
        judges.load(classifier("LABEL_0", kind=None))


def test_the_command(tmp_path, capsys, classifier):
    texts, out = tmp_path / "texts.txt", tmp_path / "out.jsonl"
    asked = [sample_instruction(random.Random(i), True, "test").text for i in range(2)]
    texts.write_text("\n".join(asked))
    command = ["sample", "--n", "3", "--max-new-tokens", "40", "--seed", "5"]
    assert main([*command, "--instructions", str(texts), "--judge", "minichat", "--out", str(out)]) == 0
    rows = read_lists(out)
    assert [row.instruction for row in rows] == asked and [row.source for row in rows] == ["texts.txt"] * 2
    found = capsys.readouterr().out
    assert found.startswith(f"{out}: 2 lists, ") and "responses, " in found and found.count("\n") == 1

    saved = tmp_path / "model"
    tiny("llama").save_pretrained(saved)
    tokenizer().save_pretrained(saved)
    again = tmp_path / "again.jsonl.gz"
    names = ["--judge", f"{classifier('OK', 'bad')}#OK", "--model", str(saved), "--out", str(again)]
    assert main([*command, "--instructions", str(out), *names]) == 0
    other = read_lists(again)
    assert [row.id for row in other] == [row.id for row in rows]
    assert all(response.safe is not None for row in other for response in row.responses)
    assert other[0].extra["model"].endswith("/model") and other[0].extra["judge"].endswith("#OK")
    capsys.readouterr()
    assert main([*command, "--instructions", str(out), *names]) == 2
    assert capsys.readouterr().err.endswith("is there already: choose another name or remove it\n")


def test_the_document(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    rng = random.Random(0)
    Path("prompts.txt").write_text("".join(sample_instruction(rng, True, "test").text + "\n" for _ in range(3)))
    told = [{"prompt": "a", "response": text, "is_safe": safe} for text, safe in (("b", True), ("c", False))]
    Path("train.jsonl").write_text("\n".join(map(json.dumps, told)))
    Path("rows.jsonl").write_text("".join(blocks("docs/data.md", "json")))
    assert len(read_lists("rows.jsonl")) == 2
    scope = {}
    commands = [line for block in blocks("docs/data.md", "bash") for line in block.splitlines()]
    for command in commands:
        program, *arguments = shlex.split(command)
        assert program == "srr-fast" and main(arguments) == 0, capsys.readouterr().err
    for block in blocks("docs/data.md", "python"):
        exec(compile(block, "docs/data.md", "exec"), scope)
    assert len(commands) >= 2 and read_lists("mine.jsonl")
    document = (ROOT / "docs" / "data.md").read_text()
    assert all(f"`{name}`" in document for name in FORMATS)
