# SPDX-License-Identifier: Apache-2.0
"""``srr-fast serve``: its options, and the server it starts."""

from __future__ import annotations

import argparse
import dataclasses
import ipaddress
import os
import sys
from typing import Any

from ..serve.settings import TOKEN_VARIABLE, Settings, token_from_environment
from .options import whole

# Option -> the field of Settings it sets, and its help; defaults are those of Settings.
OPTIONS = {
    "best-of": "candidates per chat request that does not say",
    "documents": "most documents in one rerank request",
    "candidates": "most candidates of one chat request",
    "tokens": "most tokens read for one request",
    "new-tokens": "most tokens generated per candidate",
    "body-bytes": "most bytes of a request",
    "concurrency": "requests in flight; the next gets 429",
    "timeout-s": "seconds until a request gets 504",
    "batch-rows": "documents or candidates run together; 1 joins no requests",
}


def add_options(parser: argparse.ArgumentParser) -> None:
    """Everything but ``--model`` and ``--ranker``."""
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (%(default)s)")
    parser.add_argument("--port", type=_port, default=8000, help="0 takes a free one (%(default)s)")
    parser.add_argument("--name", metavar="NAME", help="of the model, in requests and answers; default: --model's")
    defaults = {field.name: field.default for field in dataclasses.fields(Settings)}
    cluster = parser.add_argument_group("more than one process")
    cluster.add_argument("--ray", action="store_true", help="replicas on Ray Serve, behind one address")
    cluster.add_argument("--replicas", type=int, default=1, metavar="K", help="at least so many (%(default)s)")
    cluster.add_argument(
        "--max-replicas", type=int, metavar="K", help="at most so many, as load asks; default: no more"
    )
    cluster.add_argument("--replica-gpus", type=float, default=0.0, metavar="G", help="of each (%(default)s)")
    limits = parser.add_argument_group("limits")
    for option, text in OPTIONS.items():
        default = defaults[option.replace("-", "_")]
        limits.add_argument(
            f"--{option}", type=type(default), default=default, metavar="K", help=f"{text} (%(default)s)"
        )


def run(args: argparse.Namespace) -> None:
    """Serve until SIGTERM or SIGINT; what was accepted by then is answered."""
    token = token_from_environment()
    options = {option.replace("-", "_"): getattr(args, option.replace("-", "_")) for option in OPTIONS}
    options |= {"model": args.model, "ranker": args.ranker, "name": args.name}
    if token is None and not _is_loopback(args.host):
        print(f"srr-fast serve: anybody who reaches {args.host} may use it; set {TOKEN_VARIABLE}", file=sys.stderr)
    if args.ray:
        _run_ray(args, options, token)
        return
    try:
        import torch
        import uvicorn

        from ..serve.app import create_app
        from ..serve.loading import load_engine
    except ModuleNotFoundError as error:
        raise ImportError(f"serve: {error.name} is not installed; pip install 'srr_fast[serve]'") from error
    # Texts are short and many: a request's own threads would only wait for those of the others, and for the event loop.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(torch.get_num_threads() - 1, 1))
    engine = load_engine(**options, token=token)
    uvicorn.run(
        create_app(engine),
        host=args.host,
        port=args.port,
        server_header=False,
        access_log=False,  # requests are counted, not listed: what people ask is nobody's log line
        timeout_graceful_shutdown=int(engine.settings.timeout_s) + 5,
    )


def _run_ray(args: argparse.Namespace, options: dict[str, Any], token: str | None) -> None:
    try:
        from ..serve import ray_app
    except ModuleNotFoundError as error:
        raise ImportError(f"serve: {error.name} is not installed; pip install 'srr_fast[ray]'") from error
    options |= {
        "replicas": args.replicas,
        "max_replicas": args.max_replicas or args.replicas,
        "replica_gpus": args.replica_gpus,
        "require_token": token is not None,
    }
    ray_app.run(options, args.host, args.port)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _port(text: str) -> int:
    return whole(text, 0, 65535)
