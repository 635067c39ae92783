# SPDX-License-Identifier: Apache-2.0
"""The shards of a job on Ray Data actors. Only paths and shard numbers cross processes: texts, states and answers stay
where they are read, computed and written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tqdm import tqdm

from .shard_store import alone
from .shards import Job, Shard, Worker


class _Actor:
    """A batch of shards in, their numbers of lines out."""

    def __init__(self, job: Job) -> None:
        self.worker = Worker(job)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        for values in zip(*(batch[name].tolist() for name in Shard._fields), strict=True):
            self.worker.run(Shard(*values))
        return {"lines": batch["lines"]}


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
                for lines in _by_ray(job, missing, min(actors, len(missing)), gpus):
                    progress.update(lines)
        if left := job.missing(shards):
            raise RuntimeError(f"{job.out}: {len(left)} of {len(shards)} shards were not written")


def _by_ray(job: Job, missing: list[Shard], actors: int, gpus: float) -> Any:
    try:
        import ray
    except ModuleNotFoundError as error:
        raise ImportError("--ray: ray is not installed; pip install 'srr_fast[ray]'") from error
    if not ray.is_initialized():
        ray.init(log_to_driver=False)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False  # ours counts lines
    rows = [shard._asdict() for shard in missing]
    results = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
        _Actor,
        fn_constructor_args=(job,),
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(size=actors),
        num_cpus=1,
        num_gpus=gpus,
    )
    for batch in results.iter_batches(batch_size=1):
        yield int(batch["lines"].sum())
