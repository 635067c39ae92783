# SPDX-License-Identifier: Apache-2.0
"""Errors as OpenAI words them: ``{"error": {"message", "type", "param", "code"}}``. Never what the client sent."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException

SHOWN = 3  # faults of one body that are named
BROKEN = "the server failed to answer this request; its log says why"


class Fault(BaseModel):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(BaseModel):
    """The body of every answer that is not 2xx."""

    error: Fault


class RequestError(ValueError):
    """A fault of the client. param: the field of the request that is wrong; status and code: of the answer."""

    def __init__(self, message: str, param: str | None = None, *, status: int = 400, code: str | None = None) -> None:
        super().__init__(message)
        self.param, self.status, self.code = param, status, code


def body(status: int, message: str, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    """An error in its one shape."""
    kind = {401: "authentication_error", 429: "rate_limit_error"}.get(status, "invalid_request_error")
    kind = "server_error" if status >= 500 else kind
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def response(status: int, message: str, param: str | None = None, code: str | None = None) -> JSONResponse:
    """An error as it goes to the client."""
    headers = {401: {"WWW-Authenticate": "Bearer"}, 429: {"Retry-After": "1"}}.get(status)
    return JSONResponse(body(status, message, param, code), status, headers=headers)


def install(app: FastAPI) -> None:
    """Every error of this app, also those of the framework, in the one shape."""

    @app.exception_handler(RequestError)
    async def refused(request: Request, error: RequestError) -> JSONResponse:
        return response(error.status, str(error), error.param, error.code)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        faults: list[dict[str, Any]] = list(error.errors())
        named = [_named(fault) for fault in faults[:SHOWN]]
        message = "; ".join(f"{where}: {what}" if where else what for where, what in named)
        if len(faults) > SHOWN:
            message += f"; and {len(faults) - SHOWN} more"
        message = message.encode("utf-8", "replace").decode()  # a field's name may hold a lone surrogate
        return response(400, message, message.split(":")[0] if named and named[0][0] else None)

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> JSONResponse:
        answer = response(error.status_code, str(error.detail))
        answer.headers.update(error.headers or {})
        return answer

    @app.exception_handler(Exception)
    async def broken(request: Request, error: Exception) -> JSONResponse:
        return response(500, BROKEN)


def _named(fault: dict[str, Any]) -> tuple[str, str]:
    """The field at fault, empty for the body as a whole, and what is wrong with it."""
    loc = fault["loc"][1:]
    if fault["type"] == "json_invalid":
        return "", f"the body is not JSON: {fault['ctx']['error']} at character {loc[0]}"
    return ".".join(str(part) for part in loc), fault["msg"]
