"""What a browser sees of requests that Prefect could not answer at first; tests/test_ui.py has the true UI."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest

from labdag.orchestration import replay
from labdag.orchestration.replay import LARGEST, Replay


class Locked:
    """A server whose database is locked for the first few requests, and that ends these as Starlette does."""

    def __init__(self, times: int) -> None:
        self.times = times
        self.bodies: list[bytes] = []

    async def __call__(self, _scope: Any, receive: Any, send: Any) -> None:
        body, more = b"", True
        while more:
            message = await receive()
            body += message["body"]
            more = message["more_body"]
        self.bodies.append(body)
        locked = len(self.bodies) <= self.times
        await send({"type": "http.response.start", "status": 503 if locked else 201, "headers": []})
        await send({"type": "http.response.body", "body": b"locked" if locked else b"done"})
        if locked:
            raise OSError("database is locked")


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replay, "PAUSES", (0, 0, 0))


def post(server: Locked, body: bytes) -> httpx.Response:
    async def send() -> httpx.Response:
        transport = httpx.ASGITransport(Replay(server), raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            return await client.post("/api/flow_runs/", content=body)

    return asyncio.run(send())


def test_a_request_is_repeated_with_its_body_until_it_is_answered() -> None:
    server = Locked(2)
    answer = post(server, b"a run")
    assert (answer.status_code, answer.text) == (201, "done")
    assert server.bodies == [b"a run"] * 3


def test_a_server_that_stays_locked_says_so() -> None:
    server = Locked(99)
    answer = post(server, b"a run")
    assert (answer.status_code, answer.text, len(server.bodies)) == (503, "locked", 4)


def test_a_large_body_goes_through_once() -> None:
    server = Locked(1)
    body = b"x" * (2 * LARGEST)
    assert post(server, body).status_code == 503
    assert server.bodies == [body]


def test_a_fault_of_the_server_is_raised() -> None:
    async def broken(_scope: Any, _receive: Any, _send: Any) -> None:
        raise ValueError("a fault")

    transport = httpx.ASGITransport(Replay(broken))

    async def ask() -> None:
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            await client.get("/api/health")

    with pytest.raises(ValueError, match="a fault"):
        asyncio.run(ask())
