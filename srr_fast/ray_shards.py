# SPDX-License-Identifier: Apache-2.0
"""Shards on Ray Data actors, a model in each. Paths, shard numbers and texts cross processes; states never do: they are
used, or written, where they are computed."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from tqdm import tqdm

from .shard_store import alone
from .shards import Job, Shard, Worker


class _Work(Protocol):
    """What an actor is made of: pickled, then asked once for a function of one shard, JSON values."""

    def worker(self) -> Callable[[Any], None]: ...


@dataclass(frozen=True)
class _Lines:
    job: Job

    def worker(self) -> Callable[[Any], None]:
        worker = Worker(self.job)
        return lambda shard: worker.run(Shard(*shard))


@dataclass(frozen=True)
class States:
    """What ``srr-fast extract`` computes, by its options: model a hub id or a folder, cache_dir a folder, both seen by
    every process; the rest as for :func:`srr_fast.extract.extract`."""

    model: str
    trust_remote_code: bool
    layers: list[int]
    poolings: list[str]
    cache_dir: str
    batch_tokens: int

    def worker(self) -> Callable[[Any], None]:
        from .backbone import load_backbone
        from .extract import ShardWriter

        model, tokenizer = load_backbone(self.model, trust_remote_code=self.trust_remote_code)
        write = ShardWriter(
            model,
            tokenizer,
            layers=self.layers,
            poolings=self.poolings,
            cache_dir=self.cache_dir,
            batch_tokens=self.batch_tokens,
        )
        return lambda texts: write([(instruction, response) for instruction, response in texts])


class _Actor:
    """A shard in; its size out, what the actor was warned of, as JSON, and what is wrong, empty where nothing is: Ray
    would make a trace of that, and keep warnings in the actor's log."""

    def __init__(self, work: _Work) -> None:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            self.run = work.worker()
        self.warned = json.dumps([str(one.message) for one in caught if one.category is UserWarning])

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        (shard,), fault = batch["shard"].tolist(), ""
        try:
            self.run(json.loads(shard))
        except (OSError, TypeError, ValueError) as error:
            fault = str(error) or type(error).__name__
        return {"size": batch["size"], "warned": [self.warned], "fault": [fault]}


def run(job: Job, actors: int, *, gpus: float = 0.0) -> None:
    """Run what is missing of a job on so many actors; 0: in this process, without Ray. Shows progress on a terminal.

    gpus: of each actor. An actor that dies is started again, and its shard given to another. Joins the Ray cluster
    that the environment names, or starts one on this machine. One process at a time works on a folder, others wait.
    """
    shards = job.open()
    with alone("srr_fast: shards", Path(job.out), ".*.json*.*"):
        missing = job.missing(shards)
        total = sum(shard.lines for shard in shards)
        done = total - sum(shard.lines for shard in missing)
        with tqdm(total=total, initial=done, desc="srr_fast: shards", unit="line", disable=None) as progress:
            if actors == 0:
                worker = Worker(job) if missing else None
                for shard in missing:
                    assert worker is not None
                    worker.run(shard)
                    progress.update(shard.lines)
            elif missing:
                for lines in _by_ray(_Lines(job), [(list(shard), shard.lines) for shard in missing], actors, gpus):
                    progress.update(lines)
        if left := job.missing(shards):
            raise RuntimeError(f"{job.out}: {len(left)} of {len(shards)} shards were not written")


def extract(states: States, shards: list[Any], actors: int, *, gpus: float = 0.0) -> None:
    """For ``elsewhere=`` of :func:`srr_fast.extract.extract`: its shards on actors, as :func:`run` has them."""
    total = sum(tokens for _, tokens in shards)
    with tqdm(total=total, desc="srr_fast: reading", unit="tok", unit_scale=True, disable=None) as progress:
        for tokens in _by_ray(states, shards, actors, gpus):
            progress.update(tokens)


def _by_ray(work: _Work, shards: list[Any], actors: int, gpus: float) -> Iterator[int]:
    """The size of each shard as it is done. shards: JSON values and sizes. Warns once of what actors were warned of.
    Raises ValueError for a shard at fault."""
    try:
        import ray
    except ModuleNotFoundError as error:
        raise ImportError("--ray: ray is not installed; pip install 'srr_fast[ray]'") from error
    if not ray.is_initialized():
        ray.init(log_to_driver=False)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False  # ours counts what is in the shards
    rows = [{"shard": json.dumps(shard), "size": size} for shard, size in shards]
    results = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
        _Actor,
        fn_constructor_args=(work,),
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(size=min(actors, len(rows))),
        num_cpus=1,
        num_gpus=gpus,
    )
    told: set[str] = set()
    for batch in results.iter_batches(batch_size=1):
        (size,), (warned,), (fault,) = (batch[name].tolist() for name in ("size", "warned", "fault"))
        for message in json.loads(warned):
            if message not in told:
                told.add(message)
                warnings.warn(message, UserWarning, stacklevel=3)
        if fault:
            raise ValueError(fault)
        yield size
