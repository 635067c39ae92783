# SPDX-License-Identifier: Apache-2.0
"""What stands in front of the replicas: its limits, and what it does when they die. No cluster here."""

from __future__ import annotations

import json
from importlib.util import find_spec

import pytest

pytestmark = [
    pytest.mark.filterwarnings("ignore"),  # ray's own, when it is imported
    pytest.mark.skipif(find_spec("ray") is None, reason="the extra srr_fast[ray] is not installed"),
]
TOKEN = {"Authorization": "Bearer secret"}


class Replicas:
    """A handle whose replicas raise what is in ``errors``, one after the other, then answer; keeps what they got."""

    def __init__(self):
        self.errors, self.asked, self.answer = [], [], self

    async def remote(self, method, path, headers, body):
        self.asked.append((method, path, body))
        if self.errors:
            raise self.errors.pop(0)
        return 201, [(b"content-type", b"application/json"), (b"x-replica", b"1")], b'{"a": 1}'


@pytest.fixture
def replicas():
    return Replicas()


@pytest.fixture
def client(replicas, monkeypatch):
    from fastapi.testclient import TestClient

    from srr_fast.serve.ray_app import Ingress

    monkeypatch.setenv("SRR_FAST_API_TOKEN", "secret")
    app = Ingress({"body_bytes": 100, "require_token": True}, replicas).__serve_build_asgi_app__()
    with TestClient(app, headers=TOKEN, raise_server_exceptions=False) as made:
        yield made


def test_an_answer_is_passed_on(client, replicas):
    answer = client.post("/v1/rerank", json={"query": "x"})
    assert answer.status_code == 201 and answer.json() == {"a": 1} and answer.headers["x-replica"] == "1"
    ((method, path, body),) = replicas.asked
    assert (method, path, json.loads(body)) == ("POST", "/v1/rerank", {"query": "x"})


def test_what_may_not_enter_reaches_no_replica(client, replicas):
    assert client.post("/v1/rerank", json={}, headers={"Authorization": "Bearer x"}).status_code == 401
    assert client.post("/v1/rerank", content=b"x" * 101).status_code == 413
    assert replicas.asked == []
    assert client.request("GET", "/healthz", content=b"x" * 1_000_000).status_code == 201
    assert replicas.asked == [("GET", "/healthz", b"")]


def test_another_replica_is_asked_when_one_dies(client, replicas):
    from ray.exceptions import ActorDiedError, ActorUnavailableError

    replicas.errors = [ActorDiedError(), ActorUnavailableError("away", None), ActorDiedError()]
    assert client.post("/v1/rerank", json={}).status_code == 201 and len(replicas.asked) == 4
    replicas.errors = [ActorDiedError() for _ in range(9)]
    answer = client.post("/v1/rerank", json={})
    assert answer.status_code == 503 and answer.json()["error"]["type"] == "server_error"
    assert len(replicas.asked) == 8


def test_a_failure_says_nothing_of_itself(client, replicas):
    replicas.errors = [RuntimeError("a secret")]
    answer = client.post("/v1/rerank", json={})
    assert answer.status_code == 500 and "secret" not in answer.text
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
