# SPDX-License-Identifier: Apache-2.0
"""Entry point ``vllm.endpoint_plugins``: ``POST /v1/safe_best_of_n`` on a vLLM server that is a reader.

Candidates are sampled by another, plain vLLM server, the one that SRR_FAST_VLLM_SAMPLER names. It and this server take
the same key (VLLM_API_KEY).
"""

from __future__ import annotations

import asyncio
import os
import time
import uuid
from typing import Annotated, Any

import httpx
from fastapi import FastAPI, HTTPException, Request
from pydantic import BaseModel, ConfigDict, Field, model_validator

from .. import fingerprint, prompts
from ..answers import answer
from ..ranker import SafetyRanker
from ..results import Timings
from . import recipe, version

version.check()
SAMPLER_VARIABLE = "SRR_FAST_VLLM_SAMPLER"
MOST_CANDIDATES, TIMEOUT_S = 256, 600.0


class SafeRequest(BaseModel):
    """A prompt or a conversation; the rest as in ``BestOfN.generate`` and in vLLM's completions."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    prompt: str | None = None
    messages: list[dict[str, Any]] | None = None
    n: int = Field(16, ge=1, le=MOST_CANDIDATES)
    min_safety: float | None = Field(None, ge=0, le=1)
    fallback: str | None = None
    max_tokens: int = Field(256, ge=1)
    temperature: float | None = Field(None, gt=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    seed: int | None = Field(None, ge=-(2**63), le=2**63 - 1)
    stop: list[Annotated[str, Field(min_length=1)]] | None = None

    @model_validator(mode="after")
    def _one_prompt(self) -> SafeRequest:
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("wants either prompt or messages")
        return self


class SafeBestOfN:
    """What vLLM loads. The answer has the shape of ``srr-fast generate --format jsonl``."""

    name = "srr_fast"
    required_tasks = ("generate",)

    def attach_router(self, app: FastAPI) -> None:
        @app.post("/v1/safe_best_of_n")
        async def safe_best_of_n(body: SafeRequest, request: Request) -> dict[str, Any]:
            return await self.answer(body)

    async def init_state(self, engine_client: Any, state: Any, args: Any) -> None:
        """Raises ValueError for a server that is no reader, or that knows no sampler."""
        self.sampler = os.environ.get(SAMPLER_VARIABLE, "").rstrip("/")
        if not self.sampler:
            raise ValueError(
                f"srr_fast: {SAMPLER_VARIABLE} must name a plain vLLM server: an engine that extracts states while it "
                "decodes can repeat tokens"
            )
        config = engine_client.vllm_config
        connector = config.kv_transfer_config and config.kv_transfer_config.kv_connector
        if connector not in (recipe.CONNECTOR, recipe.CONNECTOR_CLASS):
            raise ValueError(f"srr_fast: this server reads no states, its connector is {connector}; see serving.md")
        ranker = SafetyRanker.from_pretrained(config.kv_transfer_config.kv_connector_extra_config["ranker"])
        self.calibration = ranker.calibration
        self.engine = engine_client
        self.tokenizer = engine_client.renderer.get_tokenizer()
        fingerprint.warn_if_other("srr_fast", ranker, None, self.tokenizer, stacklevel=1)
        self.most_tokens = config.model_config.max_model_len
        key = os.environ.get("VLLM_API_KEY")
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self.client = httpx.AsyncClient(base_url=self.sampler, headers=headers, timeout=TIMEOUT_S)

    async def answer(self, body: SafeRequest) -> dict[str, Any]:
        """Sample there, read and rank here, choose."""
        if body.min_safety is not None and self.calibration is None:
            raise HTTPException(400, "min_safety wants a calibrated ranker, this server's is not")
        asked: Any = body.prompt if body.prompt is not None else body.messages
        try:
            ids = prompts.encode("safe_best_of_n", self.tokenizer, asked)
        except Exception as error:
            raise HTTPException(400, f"the model's chat template refuses these messages: {error}") from error
        if not ids or len(ids) + body.max_tokens > self.most_tokens:
            raise HTTPException(400, f"{len(ids)} + {body.max_tokens} tokens, the model takes 1 to {self.most_tokens}")
        start = time.perf_counter()
        drawn = await self._sample(ids, body)
        sampled = time.perf_counter()
        ranked = await self._rank(ids, [recipe.pooled_tokens(tokens) for _, tokens in drawn])
        count = sum(len(tokens) for _, tokens in drawn)
        timings = Timings(sampled - start, 0.0, time.perf_counter() - sampled, count)
        (result,) = recipe.results([drawn], ranked, self.calibration, body.min_safety, body.fallback, timings)
        return answer(asked, result)

    async def _sample(self, ids: list[int], body: SafeRequest) -> list[tuple[str, list[int]]]:
        wanted = body.model_dump(include={"n", "max_tokens", "temperature", "top_p", "seed", "stop"}, exclude_none=True)
        try:
            reply = await self.client.post("/v1/completions", json={"prompt": ids, "return_token_ids": True, **wanted})
            reply.raise_for_status()
        except httpx.HTTPError as error:
            raise HTTPException(502, f"the sampler did not answer: {type(error).__name__}") from error
        choices = sorted(reply.json()["choices"], key=lambda one: one["index"])
        return [(one["text"], one["token_ids"]) for one in choices]

    async def _rank(self, ids: list[int], responses: list[list[int]]) -> list[list[list[float]]]:
        made = recipe.readings([ids], [responses])

        async def read(prompt: Any, options: Any) -> None:
            async for _ in self.engine.generate(prompt, options, f"srr_fast-{uuid.uuid4().hex}"):
                pass

        await asyncio.gather(*map(read, made.prompts, made.options))
        end = time.monotonic() + recipe.LONGEST_WAIT_S
        while time.monotonic() < end:
            found = (await self.engine.collective_rpc(recipe.RANK, args=(made.keys,)))[0]
            if found is not None:
                return found
            await asyncio.sleep(recipe.WAIT_S)
        raise HTTPException(504, "the states of the candidates did not come")
