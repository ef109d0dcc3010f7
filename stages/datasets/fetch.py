"""Archives from mirrors: tried in order, with time limits and retries, and taken only when the checksum fits.

What changes how an archive is got, but never what is got, is read from the environment:

LABDAG_MIRRORS
    Comma-separated base URLs (http, https, file) or folders, laid out as a torchvision root
    (`MNIST/raw/train-images-idx3-ubyte.gz`, `cifar-10-python.tar.gz`); tried before the official addresses.
LABDAG_DOWNLOAD_SECONDS
    Time limit of one try of one file (default 600).
"""

from __future__ import annotations

import hashlib
import math
import os
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote, urlsplit

import httpx
from tenacity import Retrying, retry_if_exception_type, stop_after_attempt, wait_exponential
from tqdm import tqdm

from stages.datasets.sources import Archive
from stages.program.options import UserError

TRIES = 3
PAUSES = wait_exponential(multiplier=1, exp_base=3)  # 1 s, then 3 s
STALL_SECONDS = 30
CHUNK = 1 << 18


class ChangedError(UserError):
    """No address gave the file, and at least one gave another file than its checksum is of."""


class _FailedError(Exception):
    """This address does not give the file, and trying it again will not help.

    Attributes:
        is_other: whether it gives another file instead.
    """

    def __init__(self, text: str, *, is_other: bool = False) -> None:
        super().__init__(text)
        self.is_other = is_other


class _TransientError(_FailedError):
    """This address did not give the file this time."""


def fetch(archive: Archive, folder: Path) -> None:
    """Fetch `archive` to `folder / archive.name`.

    Raises:
        UserError: no address gave it; the text names each one with the reason.
        ChangedError: and one gave another file instead.
        OSError: the disk is full or `folder` can't be written.
    """
    target = folder / archive.name
    target.parent.mkdir(parents=True, exist_ok=True)
    failures = []
    is_other = False
    for url in addresses(archive):
        tries = Retrying(
            stop=stop_after_attempt(TRIES),
            wait=PAUSES,
            retry=retry_if_exception_type(_TransientError),
            reraise=True,
        )
        try:
            tries(_try, archive, url, target)
            return
        except _FailedError as failure:
            is_other |= failure.is_other
            tried = f" ({TRIES} tries)" if isinstance(failure, _TransientError) else ""
            failures.append(f"  {url}: {failure}{tried}")
    raise (ChangedError if is_other else UserError)(
        f"could not get {archive.name} from any address:\n" + "\n".join(failures) + "\n"
        "Two ways on: name a mirror in LABDAG_MIRRORS (a URL, or a folder laid out as a torchvision root), "
        "or run the lab that needs no download: labdag run lenet_digits"
    )


def addresses(archive: Archive) -> list[str]:
    """Where to look for the archive, in this order: mirrors, then its official addresses."""
    bases = os.environ.get("LABDAG_MIRRORS", "").split(",")
    mirrored = [f"{base.strip().rstrip('/')}/{archive.name}" for base in bases if base.strip()]
    return [*mirrored, *archive.urls]


def _try(archive: Archive, url: str, target: Path) -> None:
    """Fetch one file from one address; `target` exists afterwards only if its checksum fits."""
    part = target.with_name(f".{target.name}.part")
    remote = url.startswith(("http://", "https://"))
    digest = hashlib.new(archive.algorithm, usedforsecurity=False)
    size = 0
    try:
        with part.open("wb") as file:
            for chunk in _http_chunks(archive.name, url) if remote else _file_chunks(url):
                file.write(chunk)
                digest.update(chunk)
                size += len(chunk)
        if digest.hexdigest() != archive.digest:
            failure = _TransientError if remote else _FailedError
            raise failure(
                f"wrong checksum: {size:,} bytes with {archive.algorithm} {digest.hexdigest()}, "
                f"expected {archive.digest}",
                is_other=True,
            )
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)


def _http_chunks(name: str, url: str) -> Iterator[bytes]:
    limit = _seconds()
    deadline = time.monotonic() + limit
    timeout = httpx.Timeout(min(limit, STALL_SECONDS))
    try:
        with httpx.stream("GET", url, timeout=timeout, follow_redirects=True) as response:
            if response.status_code != httpx.codes.OK:
                transient = response.status_code >= 500 or response.status_code in (408, 425, 429)
                failure = _TransientError if transient else _FailedError
                raise failure(f"HTTP {response.status_code} {response.reason_phrase}".rstrip())
            if response.headers.get("content-type", "").startswith("text/html"):
                raise _FailedError("answered with a web page instead of the file")
            total = int(response.headers.get("content-length", 0)) or None
            size = f" ({total / 1e6:.1f} MB)" if total else ""
            print(f"downloading {url}{size}", flush=True)
            # Compressed transfers would be unpacked on the way and never fit the checksum: take raw bytes.
            with tqdm(total=total, unit="B", unit_scale=True, desc=Path(name).name, disable=None) as bar:
                for chunk in response.iter_raw():
                    if time.monotonic() > deadline:
                        raise _TransientError(f"not finished after {limit:g} s")
                    bar.update(len(chunk))
                    yield chunk
    except httpx.TimeoutException:
        raise _TransientError(f"no answer for {min(limit, STALL_SECONDS):g} s") from None
    except (httpx.TransportError, httpx.TooManyRedirects) as error:
        raise _TransientError(str(error) or type(error).__name__) from None
    except _FailedError:
        raise
    except Exception as error:  # an address that is none, a proxy or certificate setting that is wrong
        raise _FailedError(f"{error or type(error).__name__}") from None


def _file_chunks(url: str) -> Iterator[bytes]:
    if "://" in url and not url.startswith("file://"):
        raise _FailedError("only http, https and file addresses are known")
    try:
        path = Path(unquote(urlsplit(url).path)) if url.startswith("file:") else Path(url).expanduser()
        with path.open("rb") as file:
            while chunk := file.read(CHUNK):
                yield chunk
    except FileNotFoundError:
        raise _FailedError("there is no such file") from None
    except OSError as error:
        raise _FailedError(f"can't be read: {error.strerror}") from None
    except (RuntimeError, ValueError) as error:  # no such user after ~, a character that no path can have
        raise _FailedError(str(error)) from None


def _seconds() -> float:
    text = os.environ.get("LABDAG_DOWNLOAD_SECONDS", "600")
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not (0 < seconds < math.inf):
        raise UserError(f"LABDAG_DOWNLOAD_SECONDS is {text!r}, but should be a positive number of seconds.")
    return seconds
