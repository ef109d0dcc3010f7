"""Whom a Prefect server answers: programs, and the pages of its own UI, but no other web page.

A browser sends requests to 127.0.0.1 for any page that asks it to. Prefect answers all of them, from every origin, so
these two headers, which a page can't forge, are checked before a request reaches Prefect:

- Host, the address that the browser was given. A page whose own name has been made to resolve to 127.0.0.1 (DNS
  rebinding) still sends that name.
- Origin, the page that sent the request. Where a browser leaves it out, Sec-Fetch-Site says whether it was another one.

A program such as Prefect's client sends no Origin; the password is what keeps programs out.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Awaitable, Callable, Collection, MutableMapping
from typing import Any

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]

HOST = re.compile(r"(\[[0-9a-f:.]+\]|[^][:/?#@\\\s]+)(:\d+)?")  # a Host header: a name or an address, and maybe a port
LOOPBACK_NAMES = ("localhost", "127.0.0.1", "::1")
FORBIDDEN = 403
POLICY_VIOLATION = 1008  # the code that a websocket is closed with
# Keeps other pages from showing the UI in a frame, where a click could be stolen, and from embedding an answer.
HEADERS = [
    (b"content-security-policy", b"frame-ancestors 'none'"),
    (b"cross-origin-resource-policy", b"same-origin"),
]


class Guard:
    """ASGI middleware that refuses requests sent to a foreign host name or by a foreign page.

    Args:
        app: the server behind it.
        names: host names and addresses that requests may be sent to, without ports: through a tunnel, a browser sees
            another port.
        any_address: whether requests may be sent to any IP address. No page can take an address for its name, so this
            is safe wherever the server listens at more than the loopback address.
        origins: origins that may send requests besides the one that a request is sent to, such as
            `https://labs.example.org` in front of a reverse proxy.
    """

    def __init__(
        self, app: App, *, names: Collection[str], any_address: bool = False, origins: Collection[str] = ()
    ) -> None:
        self._app = app
        self._names = {name.lower() for name in names}
        self._any_address = any_address
        self._origins = {origin.lower() for origin in origins}

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        if reason := self.refusal(scope):
            await _refuse(scope["type"], reason, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), *HEADERS]
            await send(message)

        await self._app(scope, receive, send_with_headers)

    def refusal(self, scope: MutableMapping[str, Any]) -> str:
        """Why a request is refused; empty if it is not.

        Args:
            scope: ASGI's description of the request.
        """
        hosts = _values(scope, b"host")
        if len(hosts) != 1 or not self._knows(host := hosts[0].lower()):
            return (
                f"This server does not answer to {', '.join(hosts) or 'a request without Host'}. If people reach it "
                "there, through a reverse proxy, start it with `labdag up --public-url` and that address."
            )
        for origin in _values(scope, b"origin"):
            if origin.lower() not in {f"http://{host}", f"https://{host}", *self._origins}:
                return f"This server does not answer pages of {origin}."
        sites = _values(scope, b"sec-fetch-site")
        if any(site not in ("same-origin", "none") for site in sites) and not _follows_a_link(scope):
            return "This server does not answer pages of other origins."
        return ""

    def _knows(self, host: str) -> bool:
        parts = HOST.fullmatch(host)
        name = parts[1].strip("[]") if parts else ""
        return name in self._names or (self._any_address and _is_address(name))


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a server that listens at `host`, a name or an IP address."""
    if _is_address(host):
        return ipaddress.ip_address(host).is_loopback
    return host.lower() == "localhost"


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _values(scope: MutableMapping[str, Any], name: bytes) -> list[str]:
    return [value.decode("latin-1") for key, value in scope["headers"] if key.lower() == name]


def _follows_a_link(scope: MutableMapping[str, Any]) -> bool:
    """Whether a person opens a page of the UI by a link elsewhere, which tells the page with the link nothing."""
    return (
        scope["type"] == "http"
        and scope["method"] in ("GET", "HEAD")
        and _values(scope, b"sec-fetch-mode") == ["navigate"]
        and _values(scope, b"sec-fetch-dest") == ["document"]
    )


async def _refuse(kind: str, reason: str, send: Send) -> None:
    if kind == "websocket":
        await send({"type": "websocket.close", "code": POLICY_VIOLATION, "reason": "refused"})
        return
    headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"x-content-type-options", b"nosniff"), *HEADERS]
    await send({"type": "http.response.start", "status": FORBIDDEN, "headers": headers})
    await send({"type": "http.response.body", "body": f"{reason}\n".encode()})
