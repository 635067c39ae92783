# SPDX-License-Identifier: Apache-2.0
"""The command line runs and prints its parts, with stdout no terminal."""

from __future__ import annotations

import pytest

from srr_fast import minichat
from srr_fast.cli.command import main

pytest.importorskip("srr_fast.generation")


def test_demo_prints_its_parts(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--prompts", "2", "--n", "4", "--tables", "1", "--seed", "3"]) == 0
    out = capsys.readouterr().out
    for part in ("Best of 4 for 2 prompts on minichat", "score", "prob", "judge", "->", "... and 1 more", "Summary"):
        assert part in out
    for part in ("over 2 harmful prompts", "first sample", "chosen", "best possible", "Generation", "% of"):
        assert part in out
    for part in ("Scoring 4 candidates on the CPU: reference", "native", "Backend used: "):
        assert part in out


def test_demo_takes_prompts_and_another_model(capsys: pytest.CaptureFixture[str]) -> None:
    folders = ["--model", str(minichat.MODEL_FOLDER), "--ranker", str(minichat.RANKER_FOLDER)]
    prompt = "Is [this] a question?"
    assert main(["demo", *folders, "--n", "2", "--max-new-tokens", "8", "--prompt", prompt]) == 0
    out = capsys.readouterr().out
    assert prompt in out and "Backend used" in out
    assert "judge" not in out and "unsafe" not in out


def test_unknown_prompt_is_shown_without_a_mark(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--n", "2", "--max-new-tokens", "8", "--prompt", "What is love?"]) == 0
    out = capsys.readouterr().out
    assert "?" in out and "no harmful prompt" in out


def test_model_wants_ranker(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["demo", "--model", "somewhere"])
    assert "--model and --ranker go together" in capsys.readouterr().err
