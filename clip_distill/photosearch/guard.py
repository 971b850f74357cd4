"""Who may ask the server: only pages of its own, under names that it knows, with the token where one is set."""

from __future__ import annotations

import hmac
from collections.abc import Awaitable, Callable
from http.cookies import SimpleCookie
from typing import Any
from urllib.parse import parse_qs, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse, RedirectResponse

Scope = dict[str, Any]
App = Callable[[Any, Any, Any], Awaitable[None]]
COOKIE = "clip_distill_token"
# Other pages can't frame, read or script this one, and it asks nobody else
HEADERS = {
    "content-security-policy": "default-src 'self'; img-src 'self' blob: data:; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
}


class Guard:
    """ASGI middleware.

    Args:
        app: What it guards.
        hosts: Names of this server; others in a Host header are refused, since a page elsewhere may have its own name
            lead here (DNS rebinding).
        token: What a request must bring, as `?token=` once, then as a cookie, or as `Authorization: Bearer`; None asks
            for none.
    """

    def __init__(self, app: App, hosts: set[str], token: str | None = None) -> None:
        self.app, self.hosts, self.token = app, hosts, token

    async def __call__(self, scope: Scope, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        refused = self.refusal(scope, headers)

        async def with_headers(message: Any) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        answer: Any = self.app
        if refused is not None:
            answer = PlainTextResponse(refused[1], refused[0])
        elif self.token is not None and (given := self.given(scope, headers)) is not None and given[1]:
            answer = RedirectResponse(scope["path"] or "/", 303)  # so that the token leaves the address
            answer.set_cookie(COOKIE, given[0], httponly=True, samesite="strict")
        await answer(scope, receive, with_headers)

    def refusal(self, scope: Scope, headers: Headers) -> tuple[int, str] | None:
        """Status and reason, or None for a request that may pass."""
        if host_of(headers.get("host", "")) not in self.hosts:
            return 421, "this server does not go by that name"
        origin, site = headers.get("origin"), headers.get("sec-fetch-site", "none")
        opened = headers.get("sec-fetch-mode") == "navigate" and scope["method"] == "GET" and scope["path"] == "/"
        foreign = origin is not None and urlsplit(origin).netloc != headers.get("host")
        if foreign or (site not in ("none", "same-origin") and not opened):
            return 403, "pages of other sites may not ask this server"
        if self.token is not None:
            given = self.given(scope, headers)
            if given is None or not hmac.compare_digest(given[0].encode(), self.token.encode()):
                return 401, "a token is needed: open the address that `clip-distill search` printed"
        return None

    @staticmethod
    def given(scope: Scope, headers: Headers) -> tuple[str, bool] | None:
        """The token that a request brings, and whether in its address."""
        if bearer := headers.get("authorization", "").removeprefix("Bearer ").strip():
            return bearer, False
        if asked := parse_qs(scope["query_string"].decode("latin-1")).get("token"):
            return asked[0], True
        cookie = SimpleCookie(headers.get("cookie", "")).get(COOKIE)
        return (cookie.value, False) if cookie else None


def host_of(header: str) -> str:
    """The name in a Host header, without its port."""
    return header.rsplit(":", 1)[0].lower() if not header.endswith("]") else header.lower()
