# SPDX-License-Identifier: Apache-2.0
"""Ray's workers are killed in the middle: nothing is lost, nothing is there twice. Two cores, a small object store."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib.util import find_spec
from itertools import takewhile
from pathlib import Path

import pytest

from srr_fast import SafetyRanker, minichat
from srr_fast.cli.command import main
from srr_fast.lists import LabelledList, LabelledResponse, write_lists
from srr_fast.ray_shards import run
from srr_fast.shards import Job

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_spec("ray") is None, reason="the extra srr_fast[ray] is not installed"),
]
ROOT = Path(__file__).parents[2]
INIT = """
import ray, sys
ray.init(num_cpus=2, include_dashboard=False, object_store_memory=80 * 2**20, log_to_driver=False)
"""
RANK = INIT + "from srr_fast.cli.command import main; sys.exit(main(sys.argv[1:]))"
EXTRACT = "import srr_fast.extract; srr_fast.extract.SHARD_TOKENS = 4096\n" + RANK
SERVE = INIT + (
    "from ray import serve; from srr_fast.serve import ray_app\n"
    "serve.start(http_options={'host': '127.0.0.1', 'port': int(sys.argv[1])})\n"
    "options = {'replicas': 2, 'best_of': 4, 'new_tokens': 32, 'require_token': True}\n"
    "serve.run(ray_app.build(options), name='srr_fast')\n"
    "print('ready', flush=True); sys.stdin.read(); serve.shutdown()"
)


@contextmanager
def driver(code, *arguments, **environment):
    """A process with a Ray of its own; five minutes at most."""
    command = ["timeout", "--kill-after=10", "300", sys.executable, "-c", code, *arguments]
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **environment},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    with process:
        try:
            yield process
        finally:
            process.terminate()


def workers(process, name):
    """Processes below this one whose title starts so."""
    parents, titles = {}, {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parents[int(entry.name)] = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
                titles[int(entry.name)] = (entry / "cmdline").read_bytes().decode(errors="replace")
            except OSError:  # it has ended
                continue

    def below(pid):
        while pid in parents and pid != process.pid:
            pid = parents[pid]
        return pid == process.pid

    return [pid for pid, title in titles.items() if title.startswith(name) and below(pid)]


def until(true, seconds=200.0):
    end = time.monotonic() + seconds
    while not (found := true()):
        assert time.monotonic() < end
        time.sleep(0.02)
    return found


def test_an_actor_killed_in_the_middle_loses_nothing(tmp_path):
    source, out = tmp_path / "in.jsonl", tmp_path / "out"
    texts = ["Twist the lid.", "Use a cloth, then twist.", "No.", "I will not help.", ""]
    with source.open("w") as file:
        for i in range(2000):
            row = {"query": f"How do I open the jar of number {i}?", "documents": texts[i % 3 : 3 + i % 3]}
            file.write(json.dumps(row) + "\n")
    with driver(RANK, "rank", "--ray", str(source), str(out), "--actors", "2") as process:
        until(lambda: len(list(out.glob("part-*"))) >= 3 or process.poll() is not None)
        actors = workers(process, "ray::MapWorker")
        assert len(actors) == 2 and process.poll() is None
        os.kill(actors[0], signal.SIGKILL)
        printed, _ = process.communicate(timeout=250)
    assert process.returncode == 0, printed
    here = tmp_path / "here"
    run(Job(str(source), str(here)), 0)
    names = sorted(path.name for path in here.glob("part-*"))
    assert len(names) == 32 and names == sorted(path.name for path in out.glob("part-*"))
    for name in [*names, "job.json"]:
        assert (out / name).read_bytes() == (here / name).read_bytes(), name
    numbers = [json.loads(line)["line"] for name in names for line in (out / name).read_text().splitlines()]
    assert numbers == list(range(2000))


def test_a_line_at_fault_is_said_in_one_line(tmp_path):
    source = tmp_path / "in.jsonl"
    source.write_text('{"query": "How?", "documents": ["No."]}\n{"query": 3}\n')
    with driver(RANK, "rank", "--ray", str(source), str(tmp_path / "out"), "--actors", "1") as process:
        printed, _ = process.communicate(timeout=250)
    assert process.returncode == 2 and "Traceback" not in printed
    assert printed.splitlines()[-1].startswith(f"srr-fast rank: {source}: line 2 is no list of responses")


def test_what_two_actors_are_warned_of_is_said_once(tmp_path):
    ranker = SafetyRanker.from_pretrained(minichat.RANKER_FOLDER)
    ranker.reading_fingerprint = "0" * 16
    ranker.save_pretrained(tmp_path / "ranker")
    source = tmp_path / "in.jsonl"
    source.write_text('{"query": "How?", "documents": ["No.", "Yes."]}\n' * 200)
    options = ["--model", str(minichat.MODEL_FOLDER), "--ranker", str(tmp_path / "ranker"), "--actors", "2"]
    with driver(RANK, "rank", "--ray", str(source), str(tmp_path / "out"), *options) as process:
        printed, _ = process.communicate(timeout=250)
    assert process.returncode == 0, printed
    assert printed.count("other tokenizer or chat template, fingerprint 0000000000000000") == 1, printed


def test_an_actor_killed_while_states_are_extracted_loses_nothing(tmp_path, monkeypatch):
    lists = []
    for i in range(700):
        responses = [LabelledResponse(f"Look around you {j} times. " * (1 + (i + j) % 5)) for j in range(5)]
        lists.append(LabelledList(f"How do I open the jar of number {i}?", tuple(responses), f"lists-{i}", "lists"))
    source, out, here = tmp_path / "lists.jsonl", tmp_path / "out", tmp_path / "here"
    write_lists(source, lists)
    options = ["extract", "--model", str(minichat.MODEL_FOLDER), "--data", str(source), "--layers", "all"]
    with driver(EXTRACT, *options, "--out", str(out), "--ray", "--actors", "2") as process:
        until(lambda: len(list(out.rglob("*.safetensors"))) >= 2 or process.poll() is not None)
        actors = workers(process, "ray::MapWorker")
        assert len(actors) == 2 and process.poll() is None
        os.kill(actors[0], signal.SIGKILL)
        printed, _ = process.communicate(timeout=250)
    assert process.returncode == 0, printed
    monkeypatch.setattr("srr_fast.extract.SHARD_TOKENS", 4096)
    assert main([*options, "--out", str(here)]) == 0
    files = {path.name: path.read_bytes() for path in here.rglob("*.safetensors")}
    assert len(files) > 20 and files == {path.name: path.read_bytes() for path in out.rglob("*.safetensors")}


def test_a_replica_killed_under_load_loses_no_request():
    httpx = pytest.importorskip("httpx")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address, token = f"http://127.0.0.1:{port}", {"Authorization": "Bearer secret"}
    lists = {"query": "How do I open a jar?", "documents": ["Twist the lid.", "No.", "Use a cloth."]}
    chat = {"messages": [{"role": "user", "content": "How do I open a jar?"}], "max_tokens": 24}
    with driver(SERVE, str(port), SRR_FAST_API_TOKEN="secret") as process:
        printed = list(takewhile(lambda line: line not in ("ready\n", ""), iter(process.stdout.readline, None)))
        assert process.poll() is None, printed
        assert httpx.post(address + "/v1/rerank", json=lists).status_code == 401
        replicas = workers(process, "ray::ServeReplica:srr_fast:replica")
        assert len(replicas) == 2

        done, killed = threading.Semaphore(0), threading.Event()

        def ask(i):
            path, body = ("/v1/rerank", lists) if i % 2 else ("/v1/chat/completions", chat)
            answer = httpx.post(address + path, json=body, headers=token, timeout=120)
            done.release()
            return answer

        def kill():
            for _ in range(40):
                done.acquire()
            os.kill(replicas[0], signal.SIGKILL)
            killed.set()

        with ThreadPoolExecutor(9) as pool:
            killing = pool.submit(kill)
            sent = [pool.submit(ask, i) for i in range(200)]
            codes = [one.result().status_code for one in sent]
            killing.result()
        assert killed.is_set() and codes == [200] * 200
        until(lambda: len(alive := workers(process, "ray::ServeReplica:srr_fast:replica")) == 2 and alive != replicas)
        assert httpx.post(address + "/v1/rerank", json=lists, headers=token, timeout=60).status_code == 200
        process.communicate("", timeout=100)


def test_the_config_for_serve_deploy_names_what_exists():
    code = (
        "import yaml; from ray.serve.schema import ServeDeploySchema; from ray._common.utils import import_attr\n"
        "config = ServeDeploySchema(**yaml.safe_load(open('docs/ray-serve.yaml')))\n"
        "app = config.applications[0]\n"
        "print(type(import_attr(app.import_path)(app.args)).__name__)"
    )
    with driver(code) as process:
        printed, _ = process.communicate(timeout=100)
    assert printed.splitlines()[-1] == "Application", printed
