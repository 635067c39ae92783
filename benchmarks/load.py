# SPDX-License-Identifier: Apache-2.0
"""Load on a server of the bundled model over loopback: ``python -m benchmarks.load``; prints a Markdown table.

Two servers, with micro-batching and without, answer in turn: a ratio is of one run. Every connection sends its next
request when the last one is answered; requests differ in instruction and lengths. The client shares the machine with
the server: a slow client shows as a slow server, never the reverse.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import statistics
import subprocess
import sys
import time
from contextlib import contextmanager
from itertools import cycle, islice
from pathlib import Path
from typing import NamedTuple

import uvloop

from srr_fast import env

HOST = "127.0.0.1"
PAGE = Path(__file__).parent.parent / "docs" / "serving.md"
BETWEEN = re.compile(r"(?<=<!-- load -->\n).*?(?=<!-- /load -->)", re.DOTALL)
QUERIES = (
    "How do I open a jar?",
    "Please tell me how I can bake bread without an oven.",
    "What is rain?",
    "How do I get into a concert without a ticket?",
    "Name three birds.",
)
DOCUMENTS = (
    "Twist the lid.",
    "Use a cloth, then twist. If that does not help, hold the lid under hot water for a minute.",
    "No.",
    "I will not help with that.",
    "Ask somebody who has done it before.",
    "First look around you, then begin slowly.",
    "Wait a day.",
)
SERVERS = {"alone": ["--batch-rows", "1"], "joined": ["--batch-rows", "512"]}


def bodies(kind: str) -> tuple[str, list[dict]]:
    """Path and bodies of one kind of request, each different."""
    if kind == "chat":
        messages = [[{"role": "user", "content": query}] for query in QUERIES]
        return "/v1/chat/completions", [{"messages": one, "best_of": 4, "max_tokens": 16} for one in messages]
    windows = [list(islice(cycle(DOCUMENTS), at, at + 4)) for at in range(len(DOCUMENTS))]
    return "/v1/rerank", [{"query": query, "documents": four} for query in QUERIES for four in windows]


def requests(kind: str) -> list[bytes]:
    path, made = bodies(kind)
    contents = [json.dumps(body).encode() for body in made]
    head = f"POST {path} HTTP/1.1\r\nHost: {HOST}\r\nContent-Type: application/json\r\nContent-Length: "
    return [f"{head}{len(content)}\r\n\r\n".encode() + content for content in contents]


class Server(NamedTuple):
    """One that is running. cpu(): seconds that it has computed so far."""

    port: int

    async def cpu(self) -> float:
        reader, writer = await asyncio.open_connection(HOST, self.port)
        text = await exchange(reader, writer, f"GET /metrics HTTP/1.1\r\nHost: {HOST}\r\n\r\n".encode())
        writer.close()
        found = re.search(rb"^process_cpu_seconds_total (\S+)$", text, re.MULTILINE)
        assert found is not None
        return float(found[1])


@contextmanager
def server(*options: str):
    """A server that runs while the context does, half an hour at most."""
    command = [sys.executable, "-m", "srr_fast.cli", "serve", "--host", HOST, "--port", "0", *options]
    with subprocess.Popen(["timeout", "1800", *command], stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            for line in process.stderr:
                if (found := re.search(r"running on http://[\d.]+:(\d+)", line)) is not None:
                    yield Server(int(found[1]))
                    break
            else:
                raise RuntimeError("load: the server did not start")
        finally:
            process.terminate()


async def exchange(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, sent: bytes) -> bytes:
    """The body of one answer; raises RuntimeError unless it is 200."""
    writer.write(sent)
    head = await reader.readuntil(b"\r\n\r\n")
    if not head.startswith(b"HTTP/1.1 200"):
        raise RuntimeError(f"load: {head.splitlines()[0].decode()}")
    found = re.search(rb"content-length: (\d+)", head, re.IGNORECASE)
    assert found is not None
    return await reader.readexactly(int(found[1]))


class Round(NamedTuple):
    """ms: of every request that ended in time. cpu_s: what the server computed for ``answered`` requests."""

    ms: list[float]
    answered: int
    cpu_s: float


async def load(server: Server, kind: str, connections: int, seconds: float) -> Round:
    """Requests are sent for so long."""
    sent, ms, answered = requests(kind), [], 0
    streams = [await asyncio.open_connection(HOST, server.port) for _ in range(connections)]
    before = await server.cpu()
    end = time.perf_counter() + seconds

    async def one(place: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal answered
        for request in islice(cycle(sent), place % len(sent), None):
            if (start := time.perf_counter()) >= end:
                break
            await exchange(reader, writer, request)
            answered += 1
            if (now := time.perf_counter()) <= end:
                ms.append(1e3 * (now - start))
        writer.close()

    await asyncio.gather(*(one(place, *stream) for place, stream in enumerate(streams)))
    return Round(ms, answered, await server.cpu() - before)


async def same_answers(servers: dict[str, Server]) -> None:
    """Both servers rank alike, before anything is timed."""
    orders = []
    for one in servers.values():
        reader, writer = await asyncio.open_connection(HOST, one.port)
        answers = [json.loads(await exchange(reader, writer, request)) for request in requests("rerank")]
        orders.append([[result["index"] for result in answer["results"]] for answer in answers])
        writer.close()
    assert orders[0] == orders[1], orders


async def sizes(server: Server) -> list[str]:
    """A sentence per kind of request: the bytes of one, and of its answer."""
    reader, writer = await asyncio.open_connection(HOST, server.port)
    said = []
    for kind in ("rerank", "chat"):
        request = requests(kind)[0]
        answer = await exchange(reader, writer, request)
        said.append(f"`{kind}`: {len(request)} bytes there, {len(answer)} bytes of body back.")
    writer.close()
    return said


def table(servers: dict[str, Server], connections: list[int], rounds: int, seconds: float) -> list[str]:
    """The lines of the table, printed as they come."""
    names = (
        "request",
        "connections",
        "micro-batching",
        "requests/s",
        "times without",
        "p50 ms",
        "p99 ms",
        "CPU ms each",
    )
    lines = []

    def say(*cells: object) -> None:
        lines.append("| " + " | ".join(map(str, cells)) + " |")
        print(lines[-1], flush=True)

    say(*names)
    say(*["---"] * len(names))
    for kind in ("rerank", "chat"):
        for count in connections:
            taken: dict[str, list[Round]] = {name: [] for name in servers}
            for one in servers.values():
                uvloop.run(load(one, kind, count, 1))
            for _ in range(rounds):
                for name, one in servers.items():
                    taken[name].append(uvloop.run(load(one, kind, count, seconds)))
            rates = {name: sum(len(one.ms) for one in found) / (rounds * seconds) for name, found in taken.items()}
            for name, found in taken.items():
                ms = [value for one in found for value in one.ms]
                cpu_ms = 1e3 * sum(one.cpu_s for one in found) / sum(one.answered for one in found)
                say(
                    kind,
                    count,
                    "yes" if name == "joined" else "no",
                    f"{rates[name]:.0f}",
                    f"x{rates[name] / rates['alone']:.2f}",
                    f"{statistics.median(ms):.1f}",
                    f"{statistics.quantiles(ms, n=100)[98]:.1f}",
                    f"{cpu_ms:.2f}",
                )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=5, help="of load per round (%(default)s)")
    parser.add_argument("--rounds", type=int, default=4, help="of each server in turn (%(default)s)")
    parser.add_argument("--connections", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--write", action="store_true", help="the table into docs/serving.md too")
    args = parser.parse_args()
    busy = os.getloadavg()[0]
    with server(*SERVERS["alone"]) as alone, server(*SERVERS["joined"]) as joined:
        servers = {"alone": alone, "joined": joined}
        uvloop.run(same_answers(servers))
        said = uvloop.run(sizes(alone))
        lines = table(servers, args.connections, args.rounds, args.seconds)
    options = " ".join(sys.argv[1:])
    said += [
        f"{env.cpu_name()}, {os.cpu_count()} cores, client and server on the same; load average before: {busy:.1f}.",
        f"`python -m benchmarks.load{' ' * bool(options)}{options}`",
    ]
    print("", *said, sep="\n")
    if args.write:
        text = PAGE.read_text("utf-8")
        assert BETWEEN.search(text), PAGE
        PAGE.write_text(BETWEEN.sub(lambda _: "\n".join([*lines, "", *said, ""]), text), "utf-8")


if __name__ == "__main__":
    main()
