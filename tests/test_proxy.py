"""`labdag up` behind a reverse proxy with TLS, as docs/server.md has it with Caddy."""

from __future__ import annotations

import os
import ssl
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import expect, sync_playwright

from labdag.orchestration import services
from tests.conftest import ROOT, free_port, run, wait_for
from tests.prefect_api import SignedIn
from tests.test_services import TOY, Up, need
from tests.test_ui import LOADED, sign_in

# An address that is none of the names by which a local server is known.
ADDRESS = "127.0.0.2"


def documented() -> str:
    """The Caddyfile of docs/server.md."""
    text = (ROOT / "docs/server.md").read_text()
    start = text.index("labs.example.org {")
    return text[start : text.index("```", start)]


@contextmanager
def caddy(folder: Path, public: int, port: int) -> Iterator[Path]:
    """A real Caddy with a certificate of its own making; gives the certificate of its authority."""
    site = documented().replace("labs.example.org {", f"https://{ADDRESS}:{public} {{\n    tls internal")
    assert site.count("127.0.0.1:4200") == 1
    (folder / "Caddyfile").write_text(
        f"{{\n    admin off\n    skip_install_trust\n    auto_https disable_redirects\n    default_bind {ADDRESS}\n}}\n"
        + site.replace("127.0.0.1:4200", f"127.0.0.1:{port}")
    )
    env = os.environ | {"XDG_DATA_HOME": str(folder / "data"), "XDG_CONFIG_HOME": str(folder / "config")}
    command = [need("caddy"), "run", "--config", str(folder / "Caddyfile"), "--adapter", "caddyfile"]
    root = folder / "data/caddy/pki/authorities/local/root.crt"
    with (folder / "log").open("w") as log, subprocess.Popen(command, env=env, stdout=log, stderr=log) as proxy:
        try:

            def answers() -> bool:
                with suppress(httpx.TransportError):
                    return root.exists() and bool(get(root, public).status_code)
                return False

            wait_for(answers, 60)
            yield root
        finally:
            proxy.terminate()


def get(root: Path, port: int, path: str = "/api/admin/version", **how: object) -> httpx.Response:
    trusted = ssl.create_default_context(cafile=str(root))
    return httpx.get(f"https://{ADDRESS}:{port}{path}", verify=trusted, timeout=60, trust_env=False, **how)  # type: ignore[arg-type]


@pytest.mark.timeout(600)
def test_others_come_in_by_the_address_that_is_named_and_with_the_password(
    toy: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PREFECT_API_AUTH_STRING", raising=False)
    folder = toy(TOY.replace("sleep 8; ", ""))
    port, public = free_port(), free_port()
    url = f"https://{ADDRESS}:{public}"
    (tmp_path / "proxy").mkdir()
    with caddy(tmp_path / "proxy", public, port) as root:
        try:
            run("labdag", "up", "--port", str(port), cwd=folder)
            secret = services.password_of(folder)
            assert secret is not None
            refused = get(root, public, auth=SignedIn(secret))
            assert refused.status_code == httpx.codes.FORBIDDEN
            assert "start it with `labdag up --public-url` and that address" in refused.text
            other = run("labdag", "up", "--public-url", url, cwd=folder, check=False).stderr
            assert "is up with no public URL; `labdag down` ends it" in other
            run("labdag", "down", cwd=folder)

            said = run("labdag", "up", "--port", str(port), "--public-url", f"{url}/", cwd=folder).stdout
            assert f"UI           http://127.0.0.1:{port}\n             {url}\n" in said
            assert get(root, public).status_code == httpx.codes.UNAUTHORIZED
            assert get(root, public, auth=SignedIn(secret)).status_code == httpx.codes.UNAUTHORIZED, "that of before"
            secret = services.password_of(folder)
            assert secret is not None
            assert get(root, public, auth=SignedIn(secret)).is_success
            assert not get(root, public, auth=SignedIn(secret), headers={"Origin": "https://evil.example"}).is_success

            # From another clone, as on another machine.
            clone = tmp_path / "clone"
            run("git", "clone", "--quiet", folder, clone, cwd=tmp_path)
            there = partial(run, cwd=clone, PREFECT_API_URL=f"{url}/api", PREFECT_API_SSL_CERT_FILE=str(root))
            done = there("labdag", "run", check=False)
            assert f"The Prefect server at {url}/api wants a password: set PREFECT_API_AUTH_STRING" in done.stderr
            done = there("labdag", "run", PREFECT_API_AUTH_STRING=secret)
            assert "2 stages: 2 run, 0 reused" in done.stdout
            assert f"View at {url}/runs/flow-run/" in done.stderr
            assert len(Up(folder).runs("reproduce")) == 1

            with sync_playwright() as playwright:
                options = {"executable_path": need("chromium"), "args": ["--no-sandbox"]}
                with playwright.chromium.launch(**options) as browser:  # type: ignore[arg-type]
                    page = browser.new_context(ignore_https_errors=True).new_page()
                    page.goto(f"{url}/runs")
                    sign_in(page, Up(folder))
                    expect(page.get_by_text("reproduce everything").first).to_be_visible(timeout=LOADED)
        finally:
            run("labdag", "down", cwd=folder)
