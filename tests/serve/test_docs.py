# SPDX-License-Identifier: Apache-2.0
"""``docs/serving.md`` says what works: its Python runs against a server, its commands are understood."""

from __future__ import annotations

import gc
import shlex

import pytest

from srr_fast.cli.command import build_parser

from ..test_docs import blocks
from .conftest import listening


@pytest.mark.filterwarnings("ignore")
def test_the_python_of_serving_md(capsys):
    for library in ("fastapi", "openai", "cohere"):
        pytest.importorskip(library)
    from srr_fast.serve.app import create_app
    from srr_fast.serve.loading import load_engine

    code, scope = blocks("docs/serving.md", "python"), {}
    code = [block for block in code if "vllm" not in block]  # see tests/vllm
    assert len(code) == 2
    with listening(create_app(load_engine())) as (_, address):
        for block in code:
            assert "http://127.0.0.1:8000" in block
            exec(compile(block.replace("http://127.0.0.1:8000", address), "serving.md", "exec"), scope)
        scope.clear()  # the clients, while their warnings about open sockets are ignored
        gc.collect()
    text, timings, best = capsys.readouterr().out.splitlines()
    assert text and "generate_s" in timings and best.split()[0] in "01"


def test_the_commands_of_serving_md():
    lines = [line for block in blocks("docs/serving.md", "bash") for line in block.splitlines()]
    commands = [shlex.split(line, comments=True)[1:] for line in lines if line.startswith("srr-fast")]
    assert {command[0] for command in commands} == {"serve", "rank", "generate", "extract"}
    for command in commands:
        build_parser().parse_args(command)
