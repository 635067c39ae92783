# SPDX-License-Identifier: Apache-2.0
"""Servers of a tiny random model, on loopback, on a port of their own; they end with their test."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch

from srr_fast.ranker import Calibration

from ..best_of_n import make_ranker
from ..tiny_models import CHAT_TEMPLATE, tiny, tokenizer


@pytest.fixture(autouse=True)
def no_token(monkeypatch):
    monkeypatch.delenv("SRR_FAST_API_TOKEN", raising=False)
    torch.manual_seed(0)


def ranker():
    return make_ranker(calibration=Calibration(3.0, 0.5))


@pytest.fixture
def make_engine():
    """An engine of the tiny model; settings: of Settings. Skips where the extra is not installed."""
    pytest.importorskip("fastapi", reason="the extra srr_fast[serve] is not installed")
    from srr_fast.serve.engine import Engine
    from srr_fast.serve.settings import Settings

    def make(scorer=None, **settings):
        chosen = replace(Settings("tiny", best_of=4, new_tokens=8), **settings)
        return Engine(tiny("llama"), tokenizer(CHAT_TEMPLATE), scorer or ranker(), chosen)

    return make


@pytest.fixture
def client(make_engine):
    """A client that talks to the app without a socket, and gets an answer where the app fails."""
    from fastapi.testclient import TestClient

    from srr_fast.serve.app import create_app

    with TestClient(create_app(make_engine()), raise_server_exceptions=False) as made:
        yield made


@contextmanager
def listening(app):
    """The app behind uvicorn in a thread: its server, and its address."""
    uvicorn = pytest.importorskip("uvicorn")
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_level="error", lifespan="on"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    for _ in range(1000):
        if server.started:
            break
        thread.join(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield server, f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(30)
        assert not thread.is_alive()


@pytest.fixture
def serve(make_engine):
    """A function that starts a server of an engine, the engine too; all stop with the test."""
    from contextlib import ExitStack

    from srr_fast.serve.app import create_app

    with ExitStack() as stack:

        def start(**settings):
            engine = make_engine(**settings)
            server, address = stack.enter_context(listening(create_app(engine)))
            return engine, server, address

        yield start
