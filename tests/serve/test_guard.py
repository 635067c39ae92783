# SPDX-License-Identifier: Apache-2.0
"""Who gets in, how much of it, for how long; and that what got in is answered when the server ends."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from srr_fast.cli.command import main

LIST = {"query": "w30 w31", "documents": ["w40 w41", "w43"]}
TOKEN = "a-token-that-is-long-enough"


@pytest.fixture
def httpx():
    return pytest.importorskip("httpx")


@pytest.fixture
def gate(monkeypatch):
    """Ranking waits for this event; ``begun`` counts the runs that wait."""
    from srr_fast.serve.engine import Engine

    rank, gate = Engine._rank, threading.Event()
    gate.begun = threading.Semaphore(0)

    def waiting(self, items):
        gate.begun.release()
        assert gate.wait(30)
        return rank(self, items)

    monkeypatch.setattr(Engine, "_rank", waiting)
    yield gate
    gate.set()


def until(true, seconds=20.0):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)


def metric(httpx, address, line):
    return f"\n{line}\n" in httpx.get(address + "/metrics").text


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": ""},
        {"Authorization": TOKEN},
        {"Authorization": "Bearer"},
        {"Authorization": f"Bearer {TOKEN}x"},
        {"Authorization": f"Bearer {TOKEN[:-1]}"},
        {"Authorization": f"Bearer {TOKEN.upper()}"},
        {"Authorization": f"Basic {TOKEN}"},
        {"Authorization": "Bearer \xff"},
        [("Authorization", f"Bearer {TOKEN}"), ("Authorization", "Bearer x")],
    ],
    ids=str,
)
def test_a_wrong_token_never_gets_in(serve, httpx, headers, gate):
    _, _, address = serve(token=TOKEN)
    if isinstance(headers, dict):
        headers = {name: value.encode("latin-1") for name, value in headers.items()}
    for path in (
        "/v1/rerank",
        "/v1/chat/completions",
        "/v1/chat/candidates",
        "/v2/rerank",
        "//v1/rerank",
        "/V1/rerank",
    ):
        answer = httpx.post(address + path, json=LIST, headers=headers)
        assert answer.status_code == 401 and answer.headers["www-authenticate"] == "Bearer"
        assert answer.json()["error"]["type"] == "authentication_error"
    for path in ("/metrics", "/v1/models"):
        assert httpx.get(address + path, headers=headers).status_code == 401
    assert not gate.begun.acquire(blocking=False)
    for path in ("/", "/healthz", "/openapi.json"):  # nothing there is secret
        assert httpx.get(address + path).status_code == 200


def test_the_token_gets_in(serve, httpx):
    _, _, address = serve(token=TOKEN)
    for scheme in ("Bearer", "bearer"):
        answer = httpx.post(address + "/v1/rerank", json=LIST, headers={"Authorization": f"{scheme} {TOKEN}"})
        assert answer.status_code == 200
    assert httpx.get(address + "/metrics", headers={"Authorization": f"Bearer {TOKEN}"}).status_code == 200


def test_a_token_read_from_a_file_with_its_newline_gets_in(serve, httpx):
    _, _, address = serve(token=f"{TOKEN}\n")
    assert (
        httpx.post(address + "/v1/rerank", json=LIST, headers={"Authorization": f"Bearer {TOKEN}"}).status_code == 200
    )


def test_an_empty_token_is_no_token(make_engine):
    with pytest.raises(ValueError, match="SRR_FAST_API_TOKEN"):
        make_engine(token=" ")


@pytest.mark.parametrize("seconds", [0.0, float("inf"), float("nan")])
def test_the_time_of_a_request_is_bounded(make_engine, seconds):
    with pytest.raises(ValueError, match="timeout_s above 0 and finite"):
        make_engine(timeout_s=seconds)


def test_too_many_requests_are_told_to_come_again(serve, httpx, gate):
    _, _, address = serve(concurrency=2, timeout_s=30.0)
    with ThreadPoolExecutor(2) as pool:
        first = [pool.submit(httpx.post, address + "/v1/rerank", json=LIST, timeout=30) for _ in range(2)]
        until(lambda: metric(httpx, address, "srr_fast_in_flight 2.0"))
        refused = httpx.post(address + "/v1/rerank", json=LIST)
        assert refused.status_code == 429 and refused.headers["retry-after"] == "1"
        assert refused.json()["error"]["type"] == "rate_limit_error"
        assert httpx.get(address + "/healthz").status_code == 200
        gate.set()
        assert [one.result().status_code for one in first] == [200, 200]
    assert httpx.post(address + "/v1/rerank", json=LIST).status_code == 200


def test_large_bodies_are_refused_declared_or_not(serve, httpx, gate):
    _, _, address = serve(body_bytes=1000)
    big = b'{"query": "' + b"x" * 200_000 + b'"}'
    chunks = (big[i : i + 1000] for i in range(0, len(big), 1000))
    for content in (big, chunks):
        answer = httpx.post(address + "/v1/rerank", content=content, headers={"Content-Type": "application/json"})
        assert answer.status_code == 413 and "more than 1000 bytes" in answer.json()["error"]["message"]
    assert not gate.begun.acquire(blocking=False)


def test_a_request_that_takes_too_long_is_given_up(serve, httpx, gate):
    _, _, address = serve(timeout_s=0.5)
    answer = httpx.post(address + "/v1/rerank", json=LIST)
    assert answer.status_code == 504 and "0.5 s" in answer.json()["error"]["message"]
    gate.set()
    until(lambda: metric(httpx, address, "srr_fast_in_flight 0.0"))
    assert httpx.post(address + "/v1/rerank", json=LIST).status_code == 200


def test_a_body_that_does_not_come_is_given_up(serve):
    _, _, address = serve(timeout_s=0.5)
    host, port = address.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        head = b"POST /v1/rerank HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{"
        connection.sendall(head)
        assert connection.recv(1000).startswith(b"HTTP/1.1 408 ")


@pytest.mark.parametrize("route", ["/v1/chat/completions", "/v1/chat/candidates"])
def test_a_client_that_left_is_not_worked_for(serve, httpx, monkeypatch, route):
    """Its answer ends early in the middle of generation."""
    engine, _, address = serve(new_tokens=100, timeout_s=60.0)
    seen = []
    generate = engine.best_of_n.generate

    def slowly(*arguments, stopping_criteria, **options):
        def step(input_ids, scores, **more):
            time.sleep(0.02)
            return input_ids[:, 0] < 0

        result = generate(*arguments, stopping_criteria=[*stopping_criteria, step], **options)
        seen.append(result[0].candidates[0].n_tokens)
        return result

    monkeypatch.setattr(engine.best_of_n, "generate", slowly)
    body = {"messages": [{"role": "user", "content": "w30"}], "max_tokens": 100}
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(address + route, json=body, timeout=0.5)
    until(lambda: seen)
    assert seen[0] < 100
    until(lambda: metric(httpx, address, f'srr_fast_requests_total{{route="{route}",status="499"}} 1.0'))


@pytest.mark.parametrize("leaves", [True, False])
def test_a_stream_ends_when_its_client_leaves_or_its_time_is_up(serve, httpx, monkeypatch, leaves):
    """After its first line, with no answer; nothing is left behind."""
    engine, _, address = serve(new_tokens=8, timeout_s=60.0 if leaves else 1.0)
    ended = []

    def never(items, key, abandoned):
        items[0].heard(0, 1, "a candidate")
        until(abandoned)
        ended.append(True)
        return [None]

    monkeypatch.setattr(engine, "_generate", lambda key, items, abandoned: never(items, key, abandoned))
    body = {"messages": [{"role": "user", "content": "w30"}]}
    lines = []
    with httpx.stream("POST", address + "/v1/chat/candidates", json=body, timeout=20) as answer:
        assert answer.status_code == 200
        try:
            for line in answer.iter_lines():
                lines.append(line)
                if leaves:
                    break
        except httpx.RemoteProtocolError:  # it was cut off
            assert not leaves
    assert len(lines) == 1 and "a candidate" in lines[0]
    until(lambda: ended)
    until(lambda: metric(httpx, address, "srr_fast_in_flight 0.0"))


def test_requests_that_came_together_run_together(serve, httpx, gate):
    _, _, address = serve()
    with ThreadPoolExecutor(9) as pool:
        first = pool.submit(httpx.post, address + "/v1/rerank", json=LIST, timeout=30)
        assert gate.begun.acquire(timeout=20)
        lists = [{"query": f"w3{i}", "documents": [f"w4{j}" for j in range(i + 1)]} for i in range(8)]
        others = [pool.submit(httpx.post, address + "/v1/rerank", json=one, timeout=30) for one in lists]
        until(lambda: metric(httpx, address, "srr_fast_in_flight 9.0"))
        time.sleep(0.2)
        gate.set()
        assert first.result().json()["timings"]["joined"] == 1
        joined = [one.result().json() for one in others]
    assert max(one["timings"]["joined"] for one in joined) >= 4
    for request, together in zip(lists, joined, strict=True):
        alone = httpx.post(address + "/v1/rerank", json=request).json()["results"]
        assert [one["index"] for one in together["results"]] == [one["index"] for one in alone]
        scores = [one["relevance_score"] for one in together["results"]]
        assert scores == pytest.approx([one["relevance_score"] for one in alone], abs=1e-5)


def test_a_server_that_ends_answers_what_it_accepted(serve, httpx, gate):
    _, server, address = serve()
    with ThreadPoolExecutor(8) as pool:
        sent = [pool.submit(httpx.post, address + "/v1/rerank", json=LIST, timeout=30) for _ in range(8)]
        until(lambda: metric(httpx, address, "srr_fast_in_flight 8.0"))
        server.should_exit = True
        until(lambda: refuses(address))
        gate.set()
        assert [one.result().status_code for one in sent] == [200] * 8


def refuses(address):
    host, port = address.removeprefix("http://").split(":")
    try:
        socket.create_connection((host, int(port)), timeout=5).close()
    except OSError:
        return True
    return False


@pytest.fixture
def process():
    """``srr-fast serve`` on the bundled model: the process, its address, and a reader of its log. Ends by itself."""
    pytest.importorskip("uvicorn", reason="the extra srr_fast[serve] is not installed")
    command = ["timeout", "120", sys.executable, "-m", "srr_fast.cli", "serve", "--port", "0", "--new-tokens", "64"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as running:
        log = []
        reader = threading.Thread(target=lambda: log.extend(iter(running.stderr.readline, "")), daemon=True)
        reader.start()
        try:
            until(lambda: "running on" in "".join(log) or running.poll() is not None, 100)
            yield running, re.search(r"running on (http://\S+)", "".join(log)).group(1), log
        finally:
            running.terminate()
            running.wait(60)
            reader.join(10)


def test_the_command_serves_on_loopback_and_ends_on_sigterm_without_losing_a_request(process, httpx):
    running, address, log = process
    assert address.startswith("http://127.0.0.1:")
    body = {"messages": [{"role": "user", "content": "How do I open a jar?"}], "best_of": 8, "max_tokens": 48}
    with ThreadPoolExecutor(6) as pool:
        sent = [pool.submit(httpx.post, address + "/v1/chat/completions", json=body, timeout=60) for _ in range(6)]
        until(lambda: metric(httpx, address, "srr_fast_in_flight 6.0"))
        os.kill(running.pid, signal.SIGTERM)
        answers = [one.result() for one in sent]
    assert [one.status_code for one in answers] == [200] * 6
    assert all(one.json()["choices"][0]["message"]["content"] for one in answers)
    running.wait(60)
    assert "Traceback" not in "".join(log) and "Finished server process" in "".join(log)


@pytest.mark.parametrize(("given", "threads"), [(None, 2), ("3", 3)])
def test_the_command_leaves_a_core_to_those_who_carry_requests(monkeypatch, given, threads):
    pytest.importorskip("uvicorn", reason="the extra srr_fast[serve] is not installed")
    for name in ("OMP_NUM_THREADS", "TOKENIZERS_PARALLELISM"):
        monkeypatch.setenv(name, "")  # what the command sets is gone with the test
        monkeypatch.delenv(name)
    if given is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", given)
    before, seen = torch.get_num_threads(), []
    monkeypatch.setattr("uvicorn.run", lambda *_, **__: seen.append(torch.get_num_threads()))
    torch.set_num_threads(3)
    try:
        assert main(["serve"]) == 0
    finally:
        torch.set_num_threads(before)
    assert seen == [threads] and os.environ["TOKENIZERS_PARALLELISM"] == "false"
