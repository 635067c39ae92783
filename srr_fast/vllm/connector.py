# SPDX-License-Identifier: Apache-2.0
"""In vLLM's workers: pool a finished request's states where they lie, score whole lists, hand out floats.

The connector goes with the method ``extract_hidden_states``, which keeps states of chosen layers in a cache of their
own. A request takes part when its ``kv_transfer_params`` hold ``{"srr_fast": {"key", "prompt"}}``: what to call its
pooled states, and how many of its tokens are the instruction; the others are the response.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor
from vllm.distributed.kv_transfer import get_kv_transfer_group
from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorMetadata
from vllm.distributed.kv_transfer.kv_connector.v1.example_hidden_states_connector import (
    ExampleHiddenStatesConnector,
    extract_from_kv_cache,
)

from .. import functional
from ..prepared import PreparedScorer
from ..ranker import SafetyRanker
from . import version

version.check()
MOST_KEPT = 1 << 16  # pooled candidates that nobody has asked for; beyond it the oldest go


class _Finished(NamedTuple):
    request: str
    key: str
    prompt: int
    tokens: int
    blocks: list[int]


@dataclass
class _Metadata(KVConnectorMetadata):
    finished: list[_Finished] = field(default_factory=list)


class PoolingConnector(ExampleHiddenStatesConnector):
    """Keeps one pooled row of instruction and response per request, nothing on disk. ``kv_connector_extra_config``
    holds ``ranker``, a hub id or folder."""

    def __init__(self, vllm_config: Any, role: Any, kv_cache_config: Any) -> None:
        super().__init__(vllm_config, role, kv_cache_config)
        self._finished: list[_Finished] = []  # scheduler side
        self._pooled: dict[str, Tensor] = {}  # worker side: key -> [2, d], instruction and response
        self._scorer: PreparedScorer | None = None

    def _prepared(self, device: torch.device) -> PreparedScorer:
        """Loaded where it is used, in the worker, which has one device."""
        if self._scorer is None:
            ranker = SafetyRanker.from_pretrained(self._kv_transfer_config.get_from_extra_config("ranker", ""))
            self._scorer = ranker.prepare(device)
        return self._scorer

    # Scheduler side.

    def request_finished(self, request: Any, block_ids: list[int]) -> tuple[bool, dict[str, Any] | None]:
        """Holds the blocks of a request that takes part until its states are pooled."""
        ours = (request.kv_transfer_params or {}).get("srr_fast")
        if ours is None or request.prompt_token_ids is None:
            return False, None
        tokens = len(request.prompt_token_ids)
        self._finished.append(_Finished(request.request_id, ours["key"], ours["prompt"], tokens, list(block_ids)))
        return True, None

    def build_connector_meta(self, scheduler_output: Any) -> KVConnectorMetadata:
        finished, self._finished = self._finished, []
        return _Metadata(finished)

    # Worker side.

    def wait_for_save(self) -> None:
        pass

    def get_finished(self, finished_req_ids: set[str]) -> tuple[set[str] | None, set[str] | None]:
        """Pools what has finished; its blocks may go then."""
        metadata = self._get_connector_metadata() if self.has_connector_metadata() else None
        if not isinstance(metadata, _Metadata) or not self._is_tp_rank_zero:
            return None, None
        for one in metadata.finished:
            while len(self._pooled) >= MOST_KEPT:
                del self._pooled[next(iter(self._pooled))]
            self._pooled[one.key] = self._pool(one)
        return {one.request for one in metadata.finished} or None, None

    def _pool(self, one: _Finished) -> Tensor:
        assert self._kv_cache is not None
        device, size = self._kv_cache.device, self._block_size
        blocks = torch.tensor(one.blocks, device=device)
        slots = (blocks[:, None] * size + torch.arange(size, device=device)).flatten()
        states = extract_from_kv_cache(self._kv_cache, slots, one.tokens).flatten(1)  # [T, layers * d]
        spans = torch.tensor([[0, one.prompt], [one.prompt, one.tokens]], device=device)
        scorer = self._prepared(device)
        return functional.pool(states, spans, pooling=scorer.config.pooling, gate=scorer.gate).float()

    def rank(self, lists: list[list[str]]) -> list[list[tuple[float, float]]] | None:
        """Score and probability of every key of every list, and forget them; None while some have not come."""
        if any(key not in self._pooled for keys in lists for key in keys):
            return None
        rows = [[self._pooled.pop(key) for key in keys] for keys in lists]
        inst = torch.stack([row[0][0] for row in rows])
        resp = torch.stack([one[1] for row in rows for one in row])
        ends = list(accumulate(map(len, rows), initial=0))
        out = self._prepared(inst.device)(inst, resp, torch.tensor(ends, device=inst.device))
        pairs = list(zip(out.scores.tolist(), out.probs.tolist(), strict=True))
        return [pairs[low:high] for low, high in pairwise(ends)]


class RankWorker:
    """``worker_extension_cls``: what ``collective_rpc`` may call."""

    def srr_fast_rank(self, lists: list[list[str]]) -> list[list[tuple[float, float]]] | None:
        """:meth:`PoolingConnector.rank` of this worker; [] in workers that hold no states."""
        connector = get_kv_transfer_group()
        assert isinstance(connector, PoolingConnector)
        return connector.rank(lists) if connector._is_tp_rank_zero else []
