# SPDX-License-Identifier: Apache-2.0
"""What a server may be told; standard library only, so that the command line can be built without the extra."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, field

TOKEN_VARIABLE = "SRR_FAST_API_TOKEN"


@dataclass(frozen=True)
class Settings:
    """One server.

    name:          the model name that requests may give and answers carry.
    best_of:       candidates per chat request that does not say.
    documents:     most documents in one rerank request. candidates: most candidates of one chat request.
    tokens:        most tokens read for one request: of the prompt, or of the query and all documents.
    new_tokens:    most tokens generated per candidate; also what a request gets that does not say.
    body_bytes:    most bytes of a request's body.
    concurrency:   POST requests in flight; the next is answered 429.
    timeout_s:     seconds from a request's first byte to its answer; then 504, or 408 while its body is still coming.
    batch_rows:    documents or candidates run together; one request is never split, 1 joins none.
    token:         bearer token that requests must carry; None: none is asked for.
    """

    name: str
    best_of: int = 16
    documents: int = 256
    candidates: int = 64
    tokens: int = 16384
    new_tokens: int = 256
    body_bytes: int = 1 << 20
    concurrency: int = 256
    timeout_s: float = 60.0
    batch_rows: int = 256
    token: str | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        for name in ("best_of", "documents", "candidates", "tokens", "new_tokens", "body_bytes", "concurrency"):
            if getattr(self, name) < 1:
                raise ValueError(f"serve: {name} must be at least 1, got {getattr(self, name)}")
        if self.batch_rows < 1 or not 0 < self.timeout_s < math.inf:
            raise ValueError("serve: batch_rows must be at least 1, timeout_s above 0 and finite")
        if self.best_of > self.candidates:
            raise ValueError(f"serve: best_of must be at most candidates={self.candidates}, got {self.best_of}")
        if self.token is not None and not self.token.strip():
            raise ValueError(f"serve: the token is empty; unset {TOKEN_VARIABLE} to ask for none")


def token_from_environment() -> str | None:
    """The bearer token that this process was given, None without one."""
    return os.environ.get(TOKEN_VARIABLE)
