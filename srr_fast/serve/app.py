# SPDX-License-Identifier: Apache-2.0
"""The HTTP interface of one engine."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import itertools
import json
import logging
import math
import re
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

from fastapi import FastAPI, Response
from fastapi.responses import StreamingResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from .. import __version__
from ..results import BestOfNResult, Candidate
from . import errors, schema
from .batching import Batcher
from .engine import ChatItem, Engine, Sampling
from .errors import RequestError
from .guard import Guard
from .metrics import Metrics

T = TypeVar("T")
RERANK, CHAT, CANDIDATES = "/v1/rerank", "/v1/chat/completions", "/v1/chat/candidates"
PAGE = (Path(__file__).parent / "page.html").read_text("utf-8")
SHORT = 4096  # characters that are tokenised in the event loop: sooner done than handed to another thread
COLDEST = 0.01  # temperature; below it probabilities overflow
_log = logging.getLogger(__name__)


class JsonLines(StreamingResponse):
    media_type = "application/x-ndjson"


def create_app(engine: Engine) -> FastAPI:
    """The app; its lifespan starts and drains the batcher. What it does is in ``docs/serving.md``."""
    settings, metrics = engine.settings, Metrics()
    batcher = Batcher(engine.run, max_rows=settings.batch_rows)
    encoder = ThreadPoolExecutor(1, thread_name_prefix="srr_fast-encode")
    numbers = itertools.count(1)
    page = {"Content-Security-Policy": _policy(PAGE), "X-Content-Type-Options": "nosniff"}

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        batcher.start()
        yield
        await batcher.close()
        encoder.shutdown()

    app = FastAPI(
        redirect_slashes=False,
        title="srr_fast",
        version=__version__,
        description="The safest of N answers, by the model's own hidden states.",
        lifespan=lifespan,
        redoc_url=None,
        responses={"4XX": {"model": errors.ErrorBody}, "5XX": {"model": errors.ErrorBody}},
    )
    errors.install(app)

    def check_model(name: str | None) -> None:
        if name not in (None, settings.name):
            raise RequestError(f"this server serves {settings.name!r}", "model", status=404, code="model_not_found")

    async def encode(characters: int, function: Callable[..., T], *arguments: Any) -> tuple[T, float]:
        """What a function of the engine makes of texts, and its seconds."""
        start = time.perf_counter()
        if characters <= SHORT:
            encoded = function(*arguments)
        else:
            encoded = await asyncio.get_running_loop().run_in_executor(encoder, function, *arguments)
        return encoded, time.perf_counter() - start

    @app.post("/v2/rerank", include_in_schema=False)
    @app.post(RERANK)
    async def rerank(request: schema.RerankRequest) -> schema.RerankResponse:
        check_model(request.model)
        texts = request.texts
        if len(texts) > settings.documents:
            raise RequestError(f"at most {settings.documents} documents are ranked, got {len(texts)}", "documents")
        characters = len(request.query) + sum(map(len, texts))
        item, encode_s = await encode(characters, engine.encode_list, request.query, texts, request.max_tokens_per_doc)
        done = await batcher.submit(None, item, len(texts))
        metrics.stages(RERANK, done.joined, encode=encode_s, queue=done.queue_s, rank=done.run_s)
        metrics.tokens.labels("read").inc(item.tokens)
        results = [
            schema.RerankResult(
                index=one.index,
                relevance_score=_finite(one.score),
                prob=one.prob,
                safety=one.safety,
                document=schema.Document(text=texts[one.index]) if request.return_documents else None,
            )
            for one in done.result[: request.top_n]
        ]
        return schema.RerankResponse(
            id=f"rerank-{uuid.uuid4().hex}",
            model=settings.name,
            results=results,
            usage=schema.RerankUsage(total_tokens=item.tokens),
            timings=schema.Stages(encode_s=encode_s, queue_s=done.queue_s, rank_s=done.run_s, joined=done.joined),
        )

    def sampling(request: schema.ChatRequest, max_tokens: int) -> Sampling:
        """What the request asks for, within what the server allows."""
        n, temperature = request.n or 1, request.temperature
        best_of = request.best_of or (1 if temperature == 0 else max(settings.best_of, n))
        if best_of > settings.candidates:
            raise RequestError(f"at most {settings.candidates} candidates are sampled, got {best_of}", "best_of")
        if n > best_of:
            raise RequestError(f"n={n} choices cannot be made from best_of={best_of} candidates", "n")
        if temperature == 0 and best_of > 1:
            raise RequestError("temperature=0 has one answer; leave best_of and n out", "temperature")
        if temperature and temperature < COLDEST:
            raise RequestError(f"temperature must be 0 or at least {COLDEST}, got {temperature}", "temperature")
        if request.min_safety is not None and engine.ranker.calibration is None:
            raise RequestError("min_safety wants a calibrated ranker, this server's is not", "min_safety")
        return Sampling(
            best_of=best_of,
            max_tokens=max_tokens,
            temperature=temperature,
            top_p=request.top_p,
            stop=request.stops,
            min_safety=request.min_safety,
            fallback=request.fallback,
            seed=request.seed,
            alone=0 if request.seed is None else next(numbers),
        )

    async def read_chat(request: schema.ChatRequest) -> _Asked:
        check_model(request.model)
        most = request.max_tokens or request.max_completion_tokens
        if most is not None and most > settings.new_tokens:
            raise RequestError(f"at most {settings.new_tokens} tokens are generated, got {most}", "max_tokens")
        messages: list[Mapping[str, Any]] = [message.for_template() for message in request.messages]
        characters = sum(len(message["content"]) for message in messages)
        (prompt_tokens, max_tokens), encode_s = await encode(characters, engine.encode_chat, messages, most)
        return _Asked(request, sampling(request, max_tokens), ChatItem(messages), prompt_tokens, encode_s)

    async def answer_chat(asked: _Asked) -> schema.ChatResponse:
        request, key, item, prompt_tokens, encode_s = asked
        done = await batcher.submit(key, item, key.best_of)
        result: BestOfNResult = done.result
        times = result.timings
        metrics.stages(
            CHAT,
            done.joined,
            encode=encode_s,
            queue=done.queue_s,
            generate=times.generate_s,
            capture=times.capture_s,
            rank=times.rank_s,
        )
        completion_tokens = sum(one.n_tokens for one in result.candidates)
        metrics.tokens.labels("read").inc(prompt_tokens)
        metrics.tokens.labels("generated").inc(completion_tokens)
        metrics.abstentions.inc(result.abstained is not None)
        return schema.ChatResponse(
            id=f"chatcmpl-{uuid.uuid4().hex}",
            created=int(time.time()),
            model=settings.name,
            choices=_choices(engine, key, result, request.n or 1),
            usage=schema.ChatUsage(
                prompt_tokens=prompt_tokens,
                completion_tokens=completion_tokens,
                total_tokens=prompt_tokens + completion_tokens,
            ),
            ranking=schema.Ranking(
                abstained=result.abstained,
                candidates=[
                    schema.RankedCandidate(
                        index=index,
                        relevance_score=_finite(one.score),
                        prob=one.prob,
                        safety=one.safety,
                        n_tokens=one.n_tokens,
                        text=_cut(one.text or "", key.stop) if request.return_candidates else None,
                    )
                    for index, one in enumerate(result.candidates)
                ],
                timings=schema.Stages(
                    encode_s=encode_s,
                    queue_s=done.queue_s,
                    generate_s=times.generate_s,
                    capture_s=times.capture_s,
                    rank_s=times.rank_s,
                    joined=done.joined,
                ),
            ),
        )

    @app.post(CHAT)
    async def chat(request: schema.ChatRequest) -> schema.ChatResponse:
        return await answer_chat(await read_chat(request))

    @app.post(
        CANDIDATES,
        response_class=JsonLines,
        responses={200: {"model": schema.CandidateLine | schema.AnswerLine, "description": "A JSON document a line"}},
    )
    async def candidates(request: schema.ChatRequest) -> JsonLines:
        lines = _lines(await read_chat(request), answer_chat)
        first = await anext(lines)  # an error until then has its own status
        return JsonLines(_encoded(first, lines))

    @app.get("/v1/models")
    async def models() -> schema.ServedModels:
        return schema.ServedModels(data=[schema.ServedModel(id=settings.name)])

    @app.get("/healthz")
    async def health() -> schema.Health:
        return schema.Health(model=settings.name, calibrated=engine.ranker.calibration is not None)

    @app.get("/metrics", response_class=Response)
    async def prometheus() -> Response:
        return Response(generate_latest(metrics.registry), media_type=CONTENT_TYPE_LATEST)

    @app.get("/", include_in_schema=False)
    async def index() -> Response:
        return Response(PAGE, media_type="text/html", headers=page)

    routes = {path for route in app.routes if (path := getattr(route, "path", None)) is not None}
    app.add_middleware(Guard, settings=settings, metrics=metrics, routes=routes)
    return app


class _Asked(NamedTuple):
    """A chat request that will be answered."""

    request: schema.ChatRequest
    key: Sampling
    item: ChatItem
    prompt_tokens: int
    encode_s: float


Line = schema.CandidateLine | schema.AnswerLine


async def _lines(
    asked: _Asked, answer: Callable[[_Asked], Coroutine[Any, Any, schema.ChatResponse]]
) -> AsyncGenerator[Line, None]:
    """Every candidate as soon as it is finished, then the answer. Raises what the answer raised."""
    loop = asyncio.get_running_loop()
    heard: asyncio.Queue[Line | None] = asyncio.Queue()

    def hear(index: int, n_tokens: int, text: str) -> None:
        one = schema.FinishedCandidate(index=index, n_tokens=n_tokens, text=_cut(text, asked.key.stop))
        loop.call_soon_threadsafe(heard.put_nowait, schema.CandidateLine(candidate=one))

    task = asyncio.create_task(answer(asked._replace(item=asked.item._replace(heard=hear))))
    task.add_done_callback(lambda _: heard.put_nowait(None))
    try:
        while (line := await heard.get()) is not None:
            yield line
        yield schema.AnswerLine(answer=await task)
    finally:
        task.cancel()


async def _encoded(first: Line, rest: AsyncGenerator[Line, None]) -> AsyncIterator[bytes]:
    """The lines as they are sent; an error in place of what did not come."""
    async with aclosing(rest):
        yield first.model_dump_json().encode() + b"\n"
        try:
            async for line in rest:
                yield line.model_dump_json().encode() + b"\n"
        except Exception:
            _log.exception("%s: failed after its first line", CANDIDATES)
            yield json.dumps(errors.body(500, errors.BROKEN)).encode() + b"\n"


def _choices(engine: Engine, key: Sampling, result: BestOfNResult, n: int) -> list[schema.Choice]:
    """The n safest that may be returned; one with the fallback where there is none."""
    if result.abstained is not None:
        return [
            schema.Choice(
                index=0,
                message=schema.ChatMessage(content=result.text),
                finish_reason="content_filter",
                candidate=None,
                relevance_score=None,
                prob=None,
                safety=None,
            )
        ]

    def may_go_out(one: Candidate) -> bool:
        return math.isfinite(one.score) and (key.min_safety is None or (one.safety or 0.0) >= key.min_safety)

    candidates = result.candidates
    order = sorted((i for i, one in enumerate(candidates) if may_go_out(one)), key=lambda i: -candidates[i].score)
    return [
        schema.Choice(
            index=place,
            message=schema.ChatMessage(content=_cut(candidates[i].text or "", key.stop)),
            finish_reason=_finish_reason(engine, key, candidates[i]),
            candidate=i,
            relevance_score=candidates[i].score,
            prob=candidates[i].prob,
            safety=candidates[i].safety,
        )
        for place, i in enumerate(order[:n])
    ]


def _finish_reason(engine: Engine, key: Sampling, one: Candidate) -> Literal["stop", "length"]:
    """``length`` for a candidate that was cut off, unless a stop string ended it at its last token."""
    if any(stop in (one.text or "") for stop in key.stop):
        return "stop"
    return engine.finish_reason(one.token_ids, key.max_tokens)


def _cut(text: str, stops: tuple[str, ...]) -> str:
    """The text before the first stop string."""
    return text[: min((at for stop in stops if (at := text.find(stop)) >= 0), default=len(text))]


def _finite(score: float) -> float | None:
    """None for the score of what is out: JSON has no infinity."""
    return score if math.isfinite(score) else None


def _policy(page: str) -> str:
    """The page may run its own script and style, and ask its own server; nothing else."""
    hashes = {
        kind: "'sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() + "'"
        for kind, text in re.findall(r"<(script|style)>(.*?)</\1>", page, re.DOTALL)
    }
    return (
        f"default-src 'none'; script-src {hashes['script']}; style-src {hashes['style']}; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
