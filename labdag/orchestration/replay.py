"""Requests that Prefect answers with 503 because another writer had SQLite's lock are asked again, here.

Such a request changed nothing, and Prefect's client repeats it. Its UI does not: a click on "Submit" would end in
"Oops. Something went wrong."
"""

from __future__ import annotations

import asyncio
from collections.abc import MutableMapping
from typing import Any

from labdag.orchestration.guard import App, Message, Receive, Send

UNAVAILABLE = 503
PAUSES = (0.05, 0.1, 0.2, 0.4, 0.8, 1.6)  # seconds before each further try
LARGEST = 1 << 20  # bytes of a request's body that are kept for another try


class Replay:
    """ASGI middleware that repeats a request as long as the answer is 503, some three seconds at most.

    Args:
        app: the server behind it.
    """

    def __init__(self, app: App) -> None:
        self._app = app

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Pass a request on, as often as needed."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        body, is_whole = await _read(receive)
        for pause in PAUSES if is_whole else ():
            answer = _Answer(send)
            try:
                await self._app(dict(scope), _again(body, receive), answer)
            except Exception:  # Starlette raises again what it has answered, for the log
                if not answer.is_refused:
                    raise
            if not answer.is_refused:
                return
            await asyncio.sleep(pause)
        await self._app(scope, _again(body, receive), send)


class _Answer:
    """Passes an answer on, unless it is 503."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.is_refused = False

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.is_refused = message["status"] == UNAVAILABLE
        if not self.is_refused:
            await self._send(message)


async def _read(receive: Receive) -> tuple[list[Message], bool]:
    """The messages of a request's body, and whether these are all; a large one is read no further."""
    messages: list[Message] = []
    size = 0
    while size <= LARGEST:
        message = await receive()
        messages.append(message)
        if message["type"] != "http.request" or not message.get("more_body"):
            return messages, True
        size += len(message.get("body", b""))
    return messages, False


def _again(messages: list[Message], receive: Receive) -> Receive:
    """What gives these messages, and then those that come after them."""
    left = iter(messages)

    async def next_message() -> Message:
        return next(left, None) or await receive()

    return next_message
