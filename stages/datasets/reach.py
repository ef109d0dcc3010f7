"""Whether the archives of all datasets can be reached, without fetching them.

python -m stages.datasets.reach     a line for each dataset: its name, `yes` or `no`, and where or why not
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import unquote, urlsplit

import httpx

from stages.datasets.fetch import addresses
from stages.datasets.sources import source_module
from stages.program.options import read_params

SECONDS = 5.0


def main() -> None:
    """Look for each dataset of params.yaml, all at once."""
    datasets = read_params(Path("params.yaml"))["datasets"]
    with ThreadPoolExecutor() as pool:
        for name, (is_there, where) in zip(datasets, pool.map(_reach, datasets, datasets.values()), strict=True):
            print(f"{name}\t{'yes' if is_there else 'no'}\t{where}")


def _reach(name: str, block: object) -> tuple[bool, str]:
    module, source = source_module(block, f"datasets.{name}")
    archives = module.archives(source)
    if not archives:
        return True, "needs no download"
    failures = []
    for url in addresses(archives[0]):
        why_not = _try(url)
        if why_not is None:
            return True, url
        failures.append(f"{url}: {why_not}")
    return False, "; ".join(failures)


def _try(url: str) -> str | None:
    """Why there is nothing at the address; None if there is."""
    parts = urlsplit(url)
    if parts.scheme in ("", "file"):
        return None if Path(unquote(parts.path)).exists() else "no such file"
    try:
        answer = httpx.head(url, timeout=SECONDS, follow_redirects=True)
    except httpx.HTTPError as error:
        return str(error) or type(error).__name__
    return None if answer.is_success else f"HTTP {answer.status_code}"


if __name__ == "__main__":
    main()
