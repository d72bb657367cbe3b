"""What stands before every request: the name it was sent to, where it comes from, its token, and headers of answers."""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import time
from collections.abc import Collection
from dataclasses import dataclass

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from deploy.serving.answers import JsonAnswer
from deploy.serving.batcher import Batcher
from deploy.serving.metrics import Metrics

HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
NOTHING = "default-src 'none'; frame-ancestors 'none'"  # content policy of what is no page
OPEN_PATHS = ("/", "/health", "/openapi.json")  # without a token: the page asks for it, and probes have none


@dataclass
class Guard:
    """Refuses what may not come in, and counts what does.

    A page of another site cannot reach the server through the browser of its user: the name of the host must be known
    (against DNS rebinding), and an `Origin` must be the server itself.

    Args:
        batcher: what answers the requests of `app`; the caller starts and closes it.
        hosts: names of this server; addresses are names of it in any case.
        token: that requests must bear; empty = none.
        paths: that are counted by name.
        unanswered: number of requests that were given up because the server would not wait for them.
    """

    app: ASGIApp
    batcher: Batcher
    hosts: Collection[str]
    token: str
    metrics: Metrics
    paths: Collection[str]
    unanswered: int = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        begun, status, answers = time.monotonic(), 500, False

        async def sending(message: Message) -> None:
            nonlocal status, answers
            if message["type"] == "http.response.start":
                status, answers = message["status"], True
                headers = MutableHeaders(raw=message["headers"])
                for name, value in {**HEADERS, "Content-Security-Policy": NOTHING}.items():
                    headers.setdefault(name, value)
            await send(message)

        refusal = self._refusal(Headers(scope=scope), scope["path"])
        try:
            await (refusal or self.app)(scope, receive, sending)
        except asyncio.CancelledError:  # by the second Ctrl-C, or where a stop has waited too long
            self.unanswered += 1
            if not answers:
                await JsonAnswer({"error": "the server was stopped"}, 503)(scope, receive, sending)
        finally:
            path = scope["path"] if scope["path"] in self.paths else "other"
            self.metrics.answered(path, status, time.monotonic() - begun)

    def _refusal(self, headers: Headers, path: str) -> JsonAnswer | None:
        host, origin = headers.get("host", ""), headers.get("origin")
        if not is_known_host(host, self.hosts):
            return JsonAnswer({"error": "this host name is not served; -allowed_host adds one"}, 421)
        if origin is not None and origin.partition("://")[2].lower() != host.lower():
            return JsonAnswer({"error": "requests of other origins are refused"}, 403)
        if self.token and path not in OPEN_PATHS:
            kind, _, given = headers.get("authorization", "").partition(" ")
            same = hmac.compare_digest(given.strip().encode("utf-8", "replace"), self.token.encode())
            if kind.lower() != "bearer" or not same:
                wanted = {"WWW-Authenticate": "Bearer"}
                return JsonAnswer({"error": "a token is needed: Authorization: Bearer TOKEN"}, 401, wanted)
        return None


def is_known_host(host: str, names: Collection[str]) -> bool:
    """Whether a `Host` header is an address or one of the names; the port does not count."""
    name = host.rsplit(":", 1)[0] if host.rpartition(":")[2].isdecimal() else host
    name = name.lower().rstrip(".")
    try:
        ipaddress.ip_address(name.removeprefix("[").removesuffix("]"))
    except ValueError:
        return name in names
    return True
