# SPDX-License-Identifier: Apache-2.0
"""The server on Ray Serve: replicas with a model each, behind an ingress that has none.

The ingress asks another replica when one dies before it has answered: ranking and sampling change nothing, so they may
be done twice. Texts, ids and scores cross processes; states stay in their replica.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
from typing import Any

from fastapi import FastAPI, Request, Response
from ray import serve
from ray.exceptions import RayActorError
from ray.serve.exceptions import BackPressureError
from ray.serve.handle import DeploymentHandle

from . import errors
from .app import CHAT, RERANK, create_app
from .guard import Guard
from .loading import load_engine, make_settings
from .metrics import Metrics
from .settings import TOKEN_VARIABLE, token_from_environment

APP, REPLICA, INGRESS = "srr_fast", "replica", "ingress"
ATTEMPTS = 4  # replicas asked for one request
Answer = tuple[int, list[tuple[bytes, bytes]], bytes]


class Replica:
    """One model; answers what the ingress passes on. options: as :func:`build` takes them."""

    async def __init__(self, options: dict[str, Any]) -> None:  # type: ignore[misc]  # Serve awaits it
        self.app = create_app(load_engine(**_settings(options)))
        self._lifespan = self.app.router.lifespan_context(self.app)
        await self._lifespan.__aenter__()

    async def answer(self, method: str, path: str, headers: list[tuple[bytes, bytes]], body: bytes) -> Answer:
        """Run the app on one request; cancelled with the request that it came from."""
        status, sent, chunks = 500, [], []
        asked = False

        async def receive() -> dict[str, Any]:
            nonlocal asked
            if asked:
                await asyncio.Event().wait()  # a client that leaves cancels this call
            asked = True
            return {"type": "http.request", "body": body, "more_body": False}

        async def send(message: Any) -> None:
            nonlocal status, sent
            if message["type"] == "http.response.start":
                status, sent = message["status"], list(message["headers"])
            else:
                chunks.append(message.get("body", b""))

        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": method,
            "scheme": "http",
            "path": path,
            "raw_path": path.encode(),
            "root_path": "",
            "query_string": b"",
            "headers": headers,
            "client": None,
            "server": None,
        }
        with contextlib.suppress(Exception):  # the app has logged it, and answered 500
            await self.app(scope, receive, send)
        return status, sent, b"".join(chunks)


class Ingress:
    """What listens; the limits hold here, before anything crosses a process."""

    def __init__(self, options: dict[str, Any], replica: DeploymentHandle) -> None:
        self.options, self.replica = options, replica

    def __serve_build_asgi_app__(self) -> Any:
        app = FastAPI(openapi_url=None, redirect_slashes=False)
        errors.install(app)

        @app.api_route("/{path:path}", methods=["GET", "POST"])
        async def pass_on(request: Request) -> Response:
            body = (
                await request.body() if request.method == "POST" else b""
            )  # the guard has read, and limited, no other
            parts = request.method, request.url.path, request.scope["headers"], body
            for _ in range(ATTEMPTS):
                try:
                    status, headers, answered = await self.replica.answer.remote(*parts)
                except RayActorError:
                    continue
                except BackPressureError:
                    return errors.response(429, "all replicas are busy; try again")
                answer = Response(answered, status)
                answer.raw_headers = headers
                return answer
            return errors.response(503, f"{ATTEMPTS} replicas died over this request")

        settings = make_settings(**_settings(self.options))
        app.add_middleware(Guard, settings=settings, metrics=Metrics(), routes=(RERANK, CHAT))
        return app


def build(options: dict[str, Any]) -> serve.Application:
    """The application; what ``import_path`` of a Serve config names.

    options: ``model``, ``ranker``, ``name`` and the fields of Settings but the token, as on the command line, all of
    them optional, and
      replicas, max_replicas: how many at least and at most (1, and as many as at least).
      replica_cpus, replica_gpus: of each replica (1, 0).
      require_token: whether replicas and ingress must find a token in their environment (False).
    Raises ValueError or TypeError for others.
    """
    options = dict(options)
    least = options.pop("replicas", 1)
    most = options.pop("max_replicas", least)
    resources = {"num_cpus": options.pop("replica_cpus", 1), "num_gpus": options.pop("replica_gpus", 0)}
    settings = make_settings(**_settings(options))
    shared: dict[str, Any] = {
        "max_ongoing_requests": settings.concurrency,
        "graceful_shutdown_timeout_s": settings.timeout_s + 5,
    }
    deployment: Any = serve.deployment  # typed as a decorator alone
    replica = deployment(
        Replica,
        name=REPLICA,
        ray_actor_options=resources,
        autoscaling_config={"min_replicas": least, "max_replicas": most, "target_ongoing_requests": 8},
        **shared,
    ).bind(options)
    ingress = deployment(serve.ingress()(Ingress), name=INGRESS, ray_actor_options={"num_cpus": 0}, **shared)
    return ingress.bind(options, replica)


def run(options: dict[str, Any], host: str, port: int) -> None:
    """Serve until SIGTERM or SIGINT, on the Ray cluster that the environment names or on one of this machine."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    serve.start(http_options={"host": host, "port": port})
    with contextlib.suppress(KeyboardInterrupt):
        serve.run(build(options), name=APP, blocking=True)
    serve.shutdown()


def _settings(options: dict[str, Any]) -> dict[str, Any]:
    """Keywords of :func:`loading.load_engine`, with the token of this process's environment."""
    options = dict(options)
    token = token_from_environment()
    if options.pop("require_token", False) and token is None:
        raise ValueError(f"serve: require_token, but {TOKEN_VARIABLE} is not set here")
    return {**options, "token": token}
