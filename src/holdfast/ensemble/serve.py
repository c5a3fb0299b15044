"""An ensemble behind an endpoint that speaks the OpenAI protocol.

POST /v1/chat/completions, GET /v1/models, GET /health. A member that dies is left out of the answer; only when none is
left does a request fail (503). What each member said, the calibrated probability and the cost stand in the field
``holdfast`` of the answer, where stock clients ignore it.
"""

from __future__ import annotations

import json
import secrets
import time
import uuid
from collections.abc import Iterator
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Header, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, StreamingResponse
from pydantic import BaseModel, ConfigDict, Field
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware.base import RequestResponseEndpoint
from starlette.responses import Response

from holdfast.ensemble.model import Combined, EnsembleModel, details

_MOST_TEXT = 1_000_000  # characters of a request
_MOST_BYTES = 8_000_000


class Part(BaseModel):
    """A piece of a message's content."""

    type: str
    text: str = ""


class Message(BaseModel):
    """One message of a conversation."""

    model_config = ConfigDict(extra="ignore")

    role: str = Field(pattern="^(system|developer|user|assistant)$")
    content: str | list[Part]

    def plain(self) -> dict[str, str]:
        """Role and text."""
        parts = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return {"role": self.role, "content": parts}


class Completion(BaseModel):
    """A request for an answer; what members are asked with (temperature, length) is the members file's to say."""

    model_config = ConfigDict(extra="ignore")

    messages: list[Message] = Field(min_length=1, max_length=200)
    model: str = ""
    stream: bool = False
    n: int = Field(default=1, ge=1, le=1)
    n_options: int = Field(default=0, ge=0, le=26)


def application(model: EnsembleModel, name: str, key: str = "") -> FastAPI:
    """The web application.

    Args:
        model: the ensemble.
        name: of the model, as clients see it.
        key: bearer token that requests need; empty: none.
    """
    app = FastAPI(title="Holdfast ensemble", docs_url=None, redoc_url=None, openapi_url=None)

    def allowed(authorization: Annotated[str, Header()] = "") -> None:
        if key and not secrets.compare_digest(authorization.encode(), f"Bearer {key}".encode()):
            raise HTTPException(401, "wrong or missing API key")

    @app.middleware("http")
    async def _small(request: Request, go_on: RequestResponseEndpoint) -> Response:
        length = request.headers.get("content-length", "0")
        if request.method == "POST" and not (length.isdigit() and 0 < int(length) <= _MOST_BYTES):
            return _problem(413, f"a request has a length of at most {_MOST_BYTES:,} bytes", "invalid_request_error")
        return await go_on(request)

    @app.exception_handler(HTTPException)
    async def _refused(_request: Request, error: HTTPException) -> JSONResponse:
        return _problem(error.status_code, str(error.detail), "invalid_request_error")

    @app.exception_handler(RequestValidationError)
    async def _invalid(_request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"][1:])
        return _problem(400, f"{place}: {first['msg']}", "invalid_request_error")

    @app.get("/health")
    async def health() -> dict[str, Any]:
        return {"status": "ok", "members": list(model.ensemble.models)}

    @app.get("/v1/models", dependencies=[Depends(allowed)])
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [{"id": name, "object": "model", "created": 0, "owned_by": "holdfast"}]}

    @app.post("/v1/chat/completions", dependencies=[Depends(allowed)], response_model=None)
    async def complete(asked: Completion) -> JSONResponse | StreamingResponse:
        messages = [message.plain() for message in asked.messages]
        if sum(len(message["content"]) for message in messages) > _MOST_TEXT:
            return _problem(400, f"more than {_MOST_TEXT:,} characters", "invalid_request_error")
        if asked.model not in ("", name):
            return _problem(404, f"no model {asked.model!r}; there is {name!r}", "model_not_found")
        found = await run_in_threadpool(model.say, messages, asked.n_options)
        if found.text is None:
            reasons = "; ".join(f"{one}: {given.error or 'no readable answer'}" for one, given in found.given.items())
            return _problem(503, f"no member answered ({reasons})", "service_unavailable")
        if asked.stream:
            return StreamingResponse(_chunks(found, name), media_type="text/event-stream")
        return JSONResponse(_whole(found, name))

    return app


def _whole(found: Combined, name: str) -> dict[str, Any]:
    sums = [sum(given.tokens[side] for given in found.given.values()) for side in (0, 1)]
    message = {"role": "assistant", "content": found.text, "refusal": None}
    return {
        "id": f"chatcmpl-{uuid.uuid4().hex}",
        "object": "chat.completion",
        "created": int(time.time()),
        "model": name,
        "choices": [{"index": 0, "message": message, "finish_reason": "stop", "logprobs": None}],
        "usage": {"prompt_tokens": sums[0], "completion_tokens": sums[1], "total_tokens": sum(sums)},
        "holdfast": details(found),
    }


def _chunks(found: Combined, name: str) -> Iterator[str]:
    """The answer as a stream of one piece: it is not known before all members are heard."""
    base = {
        "id": f"chatcmpl-{uuid.uuid4().hex}",
        "object": "chat.completion.chunk",
        "created": int(time.time()),
        "model": name,
    }
    first = {"index": 0, "delta": {"role": "assistant", "content": found.text}, "finish_reason": None}
    last = {"index": 0, "delta": {}, "finish_reason": "stop"}
    for chunk in ({**base, "choices": [first]}, {**base, "choices": [last], "holdfast": details(found)}):
        yield f"data: {json.dumps(chunk, ensure_ascii=False)}\n\n"
    yield "data: [DONE]\n\n"


def _problem(status: int, message: str, kind: str) -> JSONResponse:
    """An error as the protocol writes it."""
    return JSONResponse({"error": {"message": message, "type": kind, "code": kind, "param": None}}, status)
