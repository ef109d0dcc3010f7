"""Requests to a Prefect server with a password, as Prefect's own clients make them."""

from __future__ import annotations

import base64
from collections.abc import Generator

import httpx

CLIENT = "tests"  # any name will do


class SignedIn(httpx.Auth):
    """Basic authentication, and Prefect's token against forged requests, which each change of anything needs.

    Args:
        secret: `user:password`.
    """

    requires_response_body = True

    def __init__(self, secret: str) -> None:
        self._basic = f"Basic {base64.b64encode(secret.encode()).decode()}"

    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        """Add both to a request."""
        request.headers["Authorization"] = self._basic
        if request.method != "GET":
            api = f"{str(request.url).partition('/api/')[0]}/api"
            token = yield httpx.Request(
                "GET", f"{api}/csrf-token?client={CLIENT}", headers={"Authorization": self._basic}
            )
            if token.is_success:
                request.headers["Prefect-Csrf-Client"] = CLIENT
                request.headers["Prefect-Csrf-Token"] = token.json()["token"]
        yield request
