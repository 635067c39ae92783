# SPDX-License-Identifier: Apache-2.0
"""The documents say what works: their Python blocks and commands run, in order, with a small model."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from pathlib import Path

import pytest
import torch
import transformers
from transformers import dynamic_module_utils

from srr_fast import continuous
from srr_fast.cli.command import build_parser, main
from srr_fast.lists import read_lists
from srr_fast.ranker import Calibration

from .best_of_n import make_ranker
from .tiny_models import fresh, tokenizer

ROOT = Path(__file__).parent.parent


def blocks(document: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", (ROOT / document).read_text(), re.MULTILINE | re.DOTALL)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    model = fresh("llama")
    model.generation_config.pad_token_id = 0
    model.save_pretrained("my-model")
    tokenizer().save_pretrained("my-model")
    make_ranker(calibration=Calibration(3.0, 0.5)).save_pretrained("my-ranker")
    shutil.copytree(ROOT / "custom_generate", "custom-generate-repo/custom_generate")
    Path("answers.txt").write_text("Twist the lid.\nUse a cloth.\n")
    Path("prompts.txt").write_text("How do I open a jar?\nHow do I bake bread?\n")
    torch.manual_seed(0)
    return tmp_path


def test_the_python_of_generation_md(folder, capsys):
    code, scope = blocks("docs/generation.md", "python"), {}
    assert len(code) >= 9
    for block in code:
        if "ContinuousBestOfN" in block and not continuous.tried(transformers.__version__):
            continue
        exec(compile(block, block.splitlines()[0], "exec"), scope)
    assert "Mix flour and water." in capsys.readouterr().out


def test_the_commands_of_generation_md(folder, capsys):
    commands = [line for block in blocks("docs/generation.md", "bash") for line in block.splitlines()]
    assert len(commands) >= 4
    for command in commands:
        program, *arguments = shlex.split(command)
        assert program == "srr-fast" and main(arguments) == 0
        assert capsys.readouterr().out


def test_the_python_of_the_readme(folder, capsys):
    code = [block for block in blocks("README.md", "python") if "import torch" not in block]
    assert len(code) == 2
    named = {"Qwen/Qwen2.5-7B-Instruct": "my-model", "path/to/a/ranker/for/it": "my-ranker", "n=16": "n=3"}
    for name, here in {**named, ', device_map="auto"': "", "max_new_tokens=256": "max_new_tokens=8"}.items():
        assert name in code[0]
        code[0] = code[0].replace(name, here)
    scope = {"torch": torch}
    exec(compile(code[0], "README.md", "exec"), scope)
    d = scope["ranker"].config.state_size
    scope |= {"inst": torch.randn(2, d), "resp": torch.randn(5, d), "offsets": torch.tensor([0, 2, 5])}
    scope |= {"states": torch.randn(5, 3, d), "spans": torch.tensor([[0, 3]] * 5)}
    exec(compile(code[1], "README.md", "exec"), scope)
    assert scope["scores"].shape == (5,) and scope["best"].shape == (2,)
    assert "generate_s" in capsys.readouterr().out


def test_data_md(folder, capsys):
    (rows,) = blocks("docs/data.md", "json")
    Path("rows.jsonl").write_text(rows)
    assert [len(row.responses) for row in read_lists("rows.jsonl")] == [2, 1]
    beaver = {"prompt": "How do I open a jar?", "response": "Twist.", "is_safe": True, "category": {}}
    Path("train.jsonl").write_text(json.dumps(beaver) + "\n")
    commands = [line for block in blocks("docs/data.md", "bash") for line in block.splitlines()]
    assert len(commands) == 2
    for command in commands:
        program, *arguments = shlex.split(command)
        assert program == "srr-fast" and main(arguments) == 0
    scope = {}
    for block in blocks("docs/data.md", "python"):
        exec(compile(block, "data.md", "exec"), scope)
    assert Path("short.jsonl").exists()


DOCUMENTS = [str(path.relative_to(ROOT)) for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")]]


@pytest.mark.parametrize("document", DOCUMENTS)
def test_what_a_document_names_is_there(document):
    """Files that are linked, targets of make, and srr-fast's options in blocks."""
    text = (ROOT / document).read_text()
    for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text):
        assert (ROOT / document).parent.joinpath(link).exists(), link
    targets = set(re.findall(r"^([a-z][\w-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"(?:`|^)make ([a-z][\w-]*)", text, re.MULTILINE)) <= targets
    for block in re.findall(r"^```(?:bash)?\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        for line in block.replace("...", "").splitlines():
            if line.startswith("srr-fast "):
                build_parser().parse_args(shlex.split(line, comments=True)[1:])
