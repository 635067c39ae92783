# SPDX-License-Identifier: Apache-2.0
"""A long file of lists or prompts, answered shard by shard: each shard once, in any process, in any order.

A shard's output depends on the shard alone and its file appears whole or not at all, so a shard that ran twice leaves
one file, and a job that was killed goes on with the shards whose file is missing. Knows nothing of Ray.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch

from . import checkpoint, minichat
from .answers import answer, prompt_of, result_rows, text_of
from .generation import BestOfN
from .loading import load
from .text import TextRanker

MANIFEST = "job.json"


class Shard(NamedTuple):
    """Consecutive lines of a file. start: byte offset; first: number of the first line; lines: how many."""

    number: int
    start: int
    first: int
    lines: int


@dataclass(frozen=True)
class Job:
    """What is done to every line of ``source``, and where the answers go. Paths are seen by every process.

    model, ranker: hub ids or folders, None for minichat's.
    sampling: keywords of :meth:`BestOfN.generate` for lines that are prompts; None: lines are lists of given responses,
              ``{"instruction", "responses"}`` or ``{"query", "documents"}``, responses strings or ``{"text"}``.
    top_k:    results per list. seed: with a line's number it fixes what is sampled for it.
    """

    source: str
    out: str
    model: str | None = None
    ranker: str | None = None
    top_k: int | None = None
    sampling: dict[str, Any] | None = None
    seed: int = 0
    shard_lines: int = field(default=64, kw_only=True)

    def path(self, shard: Shard) -> Path:
        """Where the answers to a shard go: names sort as the lines do."""
        return Path(self.out) / f"part-{shard.number:06d}.jsonl"

    def open(self) -> list[Shard]:
        """All shards of the source; begins the job, or goes on with it.

        Raises ValueError when the folder holds another job, or other files of its name.
        """
        digest, shards = _split(Path(self.source), self.shard_lines)
        ranker = checkpoint.locate(self.ranker or minichat.RANKER_FOLDER, None) / checkpoint.CONFIG_FILE
        manifest = {**asdict(self), "source_sha256": digest, "ranker_sha256": _sha256(ranker.read_bytes())}
        for name in ("source", "out"):
            del manifest[name]  # a job may be moved
        Path(self.out).mkdir(parents=True, exist_ok=True)
        path = Path(self.out) / MANIFEST
        if path.exists():
            found = _manifest(path)
            manifest = json.loads(json.dumps(manifest))  # as it was written: lists, not tuples
            differs = sorted(name for name in manifest | found if manifest.get(name) != found.get(name))
            if differs:
                raise ValueError(f"{path} is of another job: {', '.join(differs)} differ; choose another folder")
        elif any(Path(self.out).glob("part-*.jsonl")):
            raise ValueError(f"{self.out} has part files and no {MANIFEST}; choose another folder")
        else:
            checkpoint.replace(path, json.dumps(manifest, indent=1).encode())
        return shards

    def missing(self, shards: list[Shard]) -> list[Shard]:
        """The shards that have no output yet."""
        return [shard for shard in shards if not self.path(shard).exists()]


class Worker:
    """Model, tokenizer and ranker of a job, loaded once per process."""

    def __init__(self, job: Job) -> None:
        self.job = job
        parts = load(job.model, job.ranker)
        self.reader = TextRanker(*parts) if job.sampling is None else None
        self.best_of_n = None if job.sampling is None else BestOfN(*parts)

    def run(self, shard: Shard) -> None:
        """Answer a shard and write its file. Raises ValueError naming the line that cannot be read."""
        lines = list(_lines(self.job, shard))
        rows = self._rank(lines) if self.reader is not None else self._sample(lines)
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        checkpoint.replace(self.job.path(shard), text.encode())

    def _rank(self, lines: list[tuple[int, Any]]) -> list[dict[str, Any]]:
        assert self.reader is not None
        lists = [_list_of(self.job, number, value) for number, value in lines]
        ranked = self.reader.rank_many([q for q, _ in lists], [texts for _, texts in lists], top_k=self.job.top_k)
        return [
            {"line": number, "query": query, "results": result_rows(results)}
            for (number, _), (query, _), results in zip(lines, lists, ranked, strict=True)
        ]

    def _sample(self, lines: list[tuple[int, Any]]) -> Iterator[dict[str, Any]]:
        assert self.best_of_n is not None and self.job.sampling is not None
        for number, value in lines:
            prompt = prompt_of(value)
            if prompt is None:
                raise ValueError(f"{self.job.source}: line {number + 1} is no prompt: {json.dumps(value)[:80]}")
            torch.manual_seed(int(_sha256(f"{self.job.seed} {number}".encode())[:15], 16))
            row = answer(prompt, self.best_of_n.generate(prompt, **self.job.sampling)[0])
            del row["timings"]  # all else is the same whoever computes it
            yield {"line": number, **row}


def _manifest(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged: {error}; choose another folder") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path} is damaged: it holds no JSON object; choose another folder")
    return found


def _split(source: Path, shard_lines: int) -> tuple[str, list[Shard]]:
    """sha256 of a file and its shards."""
    digest, at, number = hashlib.sha256(), 0, 0
    shards: list[Shard] = []
    with source.open("rb") as file:
        for number, line in enumerate(file):
            if number % shard_lines == 0:
                shards.append(Shard(len(shards), at, number, shard_lines))
            digest.update(line)
            at += len(line)
    if not shards:
        raise ValueError(f"{source}: is empty")
    shards[-1] = shards[-1]._replace(lines=number + 1 - shards[-1].first)
    return digest.hexdigest(), shards


def _lines(job: Job, shard: Shard) -> Iterator[tuple[int, Any]]:
    """Number and value of each line that is not blank."""
    with Path(job.source).open("rb") as file:
        file.seek(shard.start)
        for number in range(shard.first, shard.first + shard.lines):
            line = file.readline()
            if not line.strip():
                continue
            try:
                value = json.loads(line)
                json.dumps(value, ensure_ascii=False).encode()  # half a character cannot be written again
            except (ValueError, RecursionError) as error:
                raise ValueError(f"{job.source}: line {number + 1} is not JSON: {error}") from error
            yield number, value


def _list_of(job: Job, number: int, value: Any) -> tuple[str, list[str]]:
    row = value if isinstance(value, dict) else {}
    query, given = row.get("instruction", row.get("query")), row.get("responses", row.get("documents"))
    texts = [text_of(one) for one in given] if isinstance(given, list) else [None]
    if not isinstance(query, str) or None in texts:
        raise ValueError(f"{job.source}: line {number + 1} is no list of responses: {json.dumps(value)[:80]}")
    return query, [text for text in texts if text is not None]


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
