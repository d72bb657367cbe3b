"""Answers to requests, and the bodies of these."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

DISCARDED = 64 << 20  # bytes of a body that is too long which are still taken, so that its client reads the answer


class JsonAnswer(Response):
    """A JSON value in UTF-8; half of a surrogate pair becomes `?`."""

    def __init__(self, content: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        body = json.dumps(content, ensure_ascii=False, allow_nan=False).encode("utf-8", "replace")
        super().__init__(body, status, headers, media_type="application/json")


async def read_body(request: Request, most: int, seconds: float) -> bytes:
    """The body of a request, which is JSON; never more than `most` bytes are held.

    Raises:
        HTTPException: 415 for another type, 413 for more bytes, 408 where it takes longer.
        ClientDisconnect: its client has gone.
    """
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise HTTPException(415, "the body must be JSON: Content-Type: application/json")
    declared = request.headers.get("content-length", "0")
    too_long = HTTPException(413, f"the body may have {most:,} bytes", {"Connection": "close"})
    if declared.isdecimal() and int(declared) > DISCARDED:
        raise too_long
    body, size = bytearray(), 0
    try:
        async with asyncio.timeout(seconds):
            async for block in request.stream():
                size += len(block)
                if size > DISCARDED:
                    raise too_long
                if size <= most:
                    body += block
    except TimeoutError:
        raise HTTPException(408, f"the body did not come within {seconds:g} seconds", {"Connection": "close"}) from None
    if size > most:
        raise too_long
    return bytes(body)


async def gone(request: Request) -> None:
    """Returns when the client of a request that was read has gone."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


__all__ = ["ClientDisconnect", "JsonAnswer", "gone", "read_body"]
