"""Which requests the guard in front of Prefect's server refuses; tests/test_attack.py tries a real server."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest

from labdag.errors import UserError
from labdag.orchestration.guard import LOOPBACK_NAMES, Guard, Message, is_loopback
from labdag.orchestration.services import Wanted, public_url

PUBLIC = "https://labs.example.org"


async def hello(_scope: Any, _receive: Any, send: Any) -> None:
    """A server that answers everything."""
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"hello"})


def is_answered(guard: Guard, headers: dict[str, str], method: str = "GET") -> bool:
    pairs = [(name.encode(), value.encode()) for name, value in headers.items()]
    return not guard.refusal({"type": "http", "method": method, "headers": pairs})


LOCAL = Guard(hello, names=LOOPBACK_NAMES)


def fetched(site: str, mode: str, dest: str) -> dict[str, str]:
    return {"sec-fetch-site": site, "sec-fetch-mode": mode, "sec-fetch-dest": dest}


HERE = "127.0.0.1:4200"


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({"host": HERE}, True),
        ({"host": "localhost:4200"}, True),
        ({"host": "LocalHost"}, True),
        ({"host": "[::1]:4200"}, True),
        ({"host": "localhost:8080", "origin": "http://localhost:8080"}, True),  # through a tunnel
        ({"host": HERE, "origin": f"http://{HERE}"}, True),
        ({"host": HERE, "origin": f"http://{HERE}", **fetched("same-origin", "cors", "empty")}, True),
        ({"host": HERE, **fetched("none", "navigate", "document")}, True),
        ({"host": HERE, **fetched("cross-site", "navigate", "document")}, True),  # a link in a mail
        ({"host": ""}, False),
        ({"host": "evil.example"}, False),
        ({"host": "evil.example:4200", "origin": "http://evil.example:4200"}, False),  # rebound to 127.0.0.1
        ({"host": "127.0.0.1.evil.example"}, False),
        ({"host": "evil.example@127.0.0.1"}, False),
        ({"host": "127.0.0.1/evil.example"}, False),
        ({"host": "192.0.2.7:4200"}, False),
        ({"host": "labs.example.org"}, False),
        ({"host": HERE, "origin": "http://evil.example"}, False),
        ({"host": HERE, "origin": "http://127.0.0.1:9000"}, False),
        ({"host": HERE, "origin": "http://localhost:4200"}, False),
        ({"host": HERE, "origin": "null"}, False),
        ({"host": HERE, "origin": PUBLIC}, False),
        ({"host": HERE, **fetched("same-site", "no-cors", "image")}, False),
        ({"host": HERE, **fetched("cross-site", "no-cors", "script")}, False),
        ({"host": HERE, **fetched("cross-site", "navigate", "iframe")}, False),
    ],
)
def test_only_the_ui_is_answered(headers: dict[str, str], expected: bool) -> None:
    assert is_answered(LOCAL, headers) == expected


def test_a_form_of_another_page_is_refused_though_a_person_sends_it() -> None:
    headers = {"host": HERE, **fetched("cross-site", "navigate", "document")}
    for origin in ("http://evil.example", f"http://{HERE}"):
        assert not is_answered(LOCAL, headers | {"origin": origin}, "POST")


def test_two_hosts_are_one_too_many() -> None:
    headers = [(b"host", HERE.encode()), (b"host", HERE.encode())]
    assert LOCAL.refusal({"type": "http", "method": "GET", "headers": headers})


def test_what_is_refused_does_not_reach_the_server() -> None:
    async def get(host: str) -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(LOCAL)) as client:
            return await client.get(f"http://{host}/")

    answer = asyncio.run(get("localhost"))
    assert (answer.status_code, answer.text) == (200, "hello")
    refused = asyncio.run(get("evil.example"))
    assert refused.status_code == httpx.codes.FORBIDDEN
    assert refused.text.startswith("This server does not answer to evil.example.")
    for each in (answer, refused):
        assert each.headers["content-security-policy"] == "frame-ancestors 'none'"
        assert "access-control-allow-origin" not in each.headers


def test_a_websocket_of_another_page_is_closed_before_it_opens() -> None:
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    headers = [(b"host", HERE.encode()), (b"origin", b"http://evil.example")]
    asyncio.run(LOCAL({"type": "websocket", "headers": headers}, None, send))  # type: ignore[arg-type]
    assert [message["type"] for message in sent] == ["websocket.close"]


@pytest.mark.parametrize(
    ("host", "expected"),
    [("192.0.2.7:4200", True), ("[2001:db8::7]:4200", True), ("evil.example:4200", False), ("lab-pc:4200", True)],
)
def test_a_server_for_others_answers_to_addresses_but_not_to_names(host: str, expected: bool) -> None:
    guard = Guard(hello, names=("lab-pc",), any_address=True)
    assert is_answered(guard, {"host": host, "origin": f"http://{host}"}) == expected


def test_behind_a_proxy_the_public_address_is_answered() -> None:
    guard = Guard(hello, names=(*LOOPBACK_NAMES, "labs.example.org"), origins=(PUBLIC,))
    for host in ("labs.example.org", HERE):  # as the proxy passes it on, or not
        assert is_answered(guard, {"host": host, "origin": PUBLIC})
    assert not is_answered(guard, {"host": HERE, "origin": "https://other.example.org"})


@pytest.mark.parametrize(
    ("given", "origin"),
    [
        ("https://labs.example.org", PUBLIC),
        ("https://Labs.example.org/", PUBLIC),
        ("https://labs.example.org:443", PUBLIC),
        ("http://192.0.2.7:8080", "http://192.0.2.7:8080"),
        ("http://[2001:db8::7]:80", "http://[2001:db8::7]"),
        ("labs.example.org", None),
        ("https://labs.example.org/course", None),
        ("ftp://labs.example.org", None),
        ("https://me@labs.example.org", None),
    ],
)
def test_a_public_url_is_told_as_browsers_do(given: str, origin: str | None) -> None:
    if origin:
        assert public_url(given) == origin
    else:
        with pytest.raises(UserError, match=r"should be a scheme and a host, such as https://labs\.example\.org"):
            public_url(given)


def test_without_a_password_nobody_else_is_let_in(monkeypatch: pytest.MonkeyPatch) -> None:
    Wanted(no_password=True).check()
    Wanted(host="::1", no_password=True).check()
    Wanted(host="0.0.0.0").check()
    for wanted in (Wanted(host="0.0.0.0", no_password=True), Wanted(no_password=True, public_urls=(PUBLIC,))):
        with pytest.raises(UserError, match="can run commands as you: leave out --no-password"):
            wanted.check()
    monkeypatch.setenv("PREFECT_SERVER_API_AUTH_STRING", "teacher:secret")
    with pytest.raises(UserError, match="PREFECT_SERVER_API_AUTH_STRING names a password: unset it"):
        Wanted(no_password=True).check()


@pytest.mark.parametrize(
    ("host", "expected"),
    [("127.0.0.1", True), ("127.0.0.2", True), ("::1", True), ("localhost", True), ("0.0.0.0", False), ("::", False),
     ("192.0.2.7", False), ("lab-pc", False)],
)  # fmt: skip
def test_what_only_this_machine_can_reach(host: str, expected: bool) -> None:
    assert is_loopback(host) == expected
