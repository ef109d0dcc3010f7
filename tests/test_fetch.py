"""Downloads: from mirrors that work and from a server that misbehaves in every way that servers do."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tenacity import wait_none

from stages.datasets import fetch as fetching
from stages.datasets import upstream
from stages.datasets.fetch import ChangedError, fetch
from stages.datasets.sources import Archive
from stages.program.options import UserError
from tests.misbehaving import Server, serving

CONTENT = bytes(range(256)) * 40
GROWING: Any = fetching.PAUSES
NAME = "MNIST/raw/images.gz"


@pytest.fixture
def server() -> Iterator[Server]:
    with serving(CONTENT) as server:
        yield server


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetching, "PAUSES", wait_none())


def archive(*urls: str) -> Archive:
    return Archive(NAME, "sha256", hashlib.sha256(CONTENT).hexdigest(), urls)


def failure(folder: Path, *urls: str) -> str:
    with pytest.raises(UserError) as caught:
        fetch(archive(*urls), folder)
    assert list(folder.rglob("*.gz*")) == [], "nothing may be left behind"
    assert all(url in str(caught.value) for url in urls), "every address is named"
    assert "LABDAG_MIRRORS" in str(caught.value)
    assert "labdag run lenet_digits" in str(caught.value)
    return str(caught.value)


def test_a_good_address_gives_the_file(server: Server, tmp_path: Path) -> None:
    fetch(archive(f"{server.url}/good/x"), tmp_path)
    assert (tmp_path / NAME).read_bytes() == CONTENT
    assert [path.name for path in (tmp_path / NAME).parent.iterdir()] == ["images.gz"]


def test_mirrors_are_tried_in_order_before_the_official_address(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LABDAG_MIRRORS", f"{server.url}/404/, {server.url}/good")
    fetch(archive(f"{server.url}/good/official"), tmp_path)
    assert list(server.requests) == [f"/404/{NAME}", f"/good/{NAME}"]


@pytest.mark.parametrize("form", ["{}", "file://{}", "{}/"])
def test_a_folder_is_a_mirror(form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mirror = tmp_path / "my mirror"
    (mirror / NAME).parent.mkdir(parents=True)
    (mirror / NAME).write_bytes(CONTENT)
    monkeypatch.setenv("LABDAG_MIRRORS", f"/nowhere,{form.format(mirror)}")
    fetch(archive("http://127.0.0.1:9/official"), tmp_path / "target")
    assert (tmp_path / "target" / NAME).read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("how", "tries", "reason"),
    [
        ("500", 3, "HTTP 500 Internal Server Error (3 tries)"),
        ("404", 1, "HTTP 404 Not Found"),
        ("html", 1, "answered with a web page instead of the file"),
        ("truncated", 3, "(3 tries)"),
        ("corrupted", 3, "wrong checksum: 10,240 bytes with sha256 "),
        ("hang", 3, "no answer for 0.3 s (3 tries)"),
        ("drip", 3, "not finished after 0.3 s (3 tries)"),
    ],
)
def test_a_bad_address_is_given_up_with_its_reason(
    how: str, tries: int, reason: str, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if how in ("hang", "drip"):
        monkeypatch.setenv("LABDAG_DOWNLOAD_SECONDS", "0.3")
    assert reason in failure(tmp_path, f"{server.url}/{how}/x")
    assert server.requests[f"/{how}/x"] == tries


def test_a_server_that_recovers_within_three_tries_is_enough(server: Server, tmp_path: Path) -> None:
    fetch(archive(f"{server.url}/flaky/x"), tmp_path)
    assert server.requests["/flaky/x"] == 3


def test_pauses_between_tries_grow() -> None:
    first, second = (GROWING(SimpleNamespace(attempt_number=number)) for number in (1, 2))
    assert 0 < first < second


def test_when_all_fail_every_address_is_named_with_its_reason(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LABDAG_MIRRORS", "/nowhere")
    message = failure(tmp_path, f"{server.url}/404/x", "http://127.0.0.1:9/x")
    assert f"  /nowhere/{NAME}: there is no such file\n" in message
    assert f"  {server.url}/404/x: HTTP 404 Not Found\n" in message
    assert "  http://127.0.0.1:9/x: " in message


def test_a_file_of_another_content_is_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mirror = tmp_path / "mirror"
    (mirror / NAME).parent.mkdir(parents=True)
    (mirror / NAME).write_bytes(CONTENT[:-1])
    monkeypatch.setenv("LABDAG_MIRRORS", str(mirror))
    assert "wrong checksum: 10,239 bytes" in failure(tmp_path / "target")


@pytest.mark.parametrize(
    "mirror", ["http://[bad", "http://a..b", "~nosuchuser/mirror", "ftp://127.0.0.1/mirror", "http://127.0.0.1:x"]
)
def test_a_mirror_that_is_none_is_one_more_reason(mirror: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LABDAG_MIRRORS", mirror)
    assert f"  {mirror}/{NAME}: " in failure(tmp_path)


@pytest.mark.parametrize("proxy", ["foo://127.0.0.1", "http://127.0.0.1:9"])
def test_a_wrong_proxy_is_one_more_reason(proxy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", proxy)
    failure(tmp_path, "http://mirror.invalid/x")


@pytest.mark.parametrize("limit", ["soon", "0", "nan", "inf"])
def test_a_wrong_time_limit_is_told(
    limit: str, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LABDAG_DOWNLOAD_SECONDS", limit)
    with pytest.raises(UserError, match=f"LABDAG_DOWNLOAD_SECONDS is '{limit}'"):
        fetch(archive(f"{server.url}/good/x"), tmp_path)


def looked_at(folder: Path, **source: Any) -> None:
    """Look at what is upstream of a dataset of one's own images."""
    block = {"kind": "image_folder", "size": [8, 8], "color": "grey", "test_fraction": 0.5, **source}
    (folder / "params.yaml").write_text(json.dumps({"datasets": {"photos": block}}))
    upstream.main("photos")


def test_an_archive_that_changed_upstream_is_noticed_by_its_checksum(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    digest = hashlib.sha256(CONTENT).hexdigest()
    looked_at(tmp_path, path=f"{server.url}/good/photos.zip", sha256=digest)
    assert capsys.readouterr().out == f"photos.zip sha256 {digest}\n"
    with pytest.raises(ChangedError, match="wrong checksum"):
        looked_at(tmp_path, path=f"{server.url}/corrupted/photos.zip", sha256=digest)
    looked_at(tmp_path, path=f"{server.url}/404/photos.zip", sha256=digest)  # it is not there just now: no news
    assert "not checked: could not get photos.zip" in capsys.readouterr().err


def test_images_on_this_machine_that_changed_are_noticed_by_their_checksum(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    photos = tmp_path / "photos.zip"
    photos.write_bytes(CONTENT)
    digest = hashlib.sha256(CONTENT).hexdigest()
    looked_at(tmp_path, path=str(photos), sha256=digest)
    photos.write_bytes(CONTENT[:-1])
    with pytest.raises(UserError, match=r"datasets\.photos\.sha256 is"):
        looked_at(tmp_path, path=str(photos), sha256=digest)
