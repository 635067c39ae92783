# SPDX-License-Identifier: Apache-2.0
"""What a request must pass before it is read as JSON: token, size, number in flight, time. Knows no routes' bodies."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import time
from collections.abc import Container
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from . import errors
from .metrics import Metrics
from .settings import Settings

OPEN = ("/", "/healthz", "/docs", "/docs/oauth2-redirect", "/openapi.json")  # these say nothing that is not public
CLIENT_LEFT = 499


class Guard:
    """Middleware. routes: the paths that metrics name; all others are ``other`` there.

    POST requests have their body read here, whole, and are cancelled when their time is up or the client leaves.
    """

    def __init__(self, app: ASGIApp, settings: Settings, metrics: Metrics, routes: Container[str]) -> None:
        self.app, self.settings, self.metrics, self.routes = app, settings, metrics, routes
        self.in_flight = 0
        self.digest = None if settings.token is None else _digest(settings.token.strip().encode())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        start = time.perf_counter()
        status = 500

        async def noting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        route = scope["path"] if scope["path"] in self.routes else "other"
        try:
            if not self._may_enter(scope):
                await errors.response(401, "a bearer token is wanted, this one is wrong or missing")(
                    scope, receive, noting
                )
            elif scope["method"] != "POST":
                await self.app(scope, receive, noting)
            elif self.in_flight >= self.settings.concurrency:
                await errors.response(429, "too many requests are in flight; try again")(scope, receive, noting)
            else:
                if not await self._post(scope, receive, noting):
                    status = CLIENT_LEFT
                self.metrics.seconds.labels(route).observe(time.perf_counter() - start)
        finally:
            self.metrics.requests.labels(route, str(status)).inc()

    def _may_enter(self, scope: Scope) -> bool:
        if self.digest is None or scope["path"] in OPEN:
            return True
        given = [value for name, value in scope["headers"] if name == b"authorization"]
        scheme, _, token = given[0].partition(b" ") if len(given) == 1 else (b"", b"", b"")
        # Digests: the comparison takes the same time for a token of any length.
        return hmac.compare_digest(_digest(token.strip()), self.digest) and scheme.lower() == b"bearer"

    async def _post(self, scope: Scope, receive: Receive, send: Send) -> bool:
        """Whether there was still a client to answer."""
        self.in_flight += 1
        self.metrics.in_flight.inc()
        try:
            end = time.perf_counter() + self.settings.timeout_s
            try:
                body = await asyncio.wait_for(self._body(scope, receive), self.settings.timeout_s)
            except asyncio.TimeoutError:
                await errors.response(408, "the body did not come in time")(scope, receive, send)
                return True
            except errors.RequestError as error:
                await errors.response(error.status, str(error))(scope, receive, send)
                return True
            if body is None:
                return False
            return await self._answer(scope, receive, send, body, end - time.perf_counter())
        finally:
            self.in_flight -= 1
            self.metrics.in_flight.dec()

    async def _body(self, scope: Scope, receive: Receive) -> bytes | None:
        """The body; None when the client left. Raises RequestError as soon as it is known to be too long."""
        most = self.settings.body_bytes
        too_long = errors.RequestError(f"the body has more than {most} bytes", status=413)
        for name, value in scope["headers"]:
            if name == b"content-length" and value.isdigit() and int(value[:20]) > most:
                raise too_long
        body = bytearray()
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            body += message.get("body", b"")
            if len(body) > most:
                raise too_long
            if not message.get("more_body", False):
                return bytes(body)

    async def _answer(self, scope: Scope, receive: Receive, send: Send, body: bytes, left: float) -> bool:
        """Run the app until it has answered, its time is up, or the client has left."""
        started = given = False

        async def replay() -> Message:
            nonlocal given
            if given:
                return await receive()
            given = True
            return {"type": "http.request", "body": body, "more_body": False}

        async def noting(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        answer = asyncio.ensure_future(self.app(scope, replay, noting))
        gone = asyncio.ensure_future(_left(receive))
        tasks: set[asyncio.Future[Any]] = {answer, gone}
        try:
            await asyncio.wait(tasks, timeout=left, return_when=asyncio.FIRST_COMPLETED)
            if answer.done():
                await answer
                return True
            client_is_there = not gone.done()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        if client_is_there and not started:
            await errors.response(504, f"not answered within {self.settings.timeout_s:g} s")(scope, receive, send)
        return client_is_there


async def _left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _digest(token: bytes) -> bytes:
    return hashlib.sha256(token).digest()
