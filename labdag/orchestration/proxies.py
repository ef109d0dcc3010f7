"""Which of the proxies in the environment Prefect's client may see.

Desktop settings and proxy tools export `all_proxy=socks://…` for every program. Prefect's client, httpx, ends in an
error wherever such a variable is set, even for a server that it would not reach through the proxy.
"""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from importlib.util import find_spec
from urllib.parse import urlsplit

from labdag.environment import lend, lent, without_lent
from labdag.orchestration.guard import is_loopback

HERE = ("127.0.0.1", "localhost", "::1")  # what never goes through a proxy, which would read the password, too
SCHEMES = ("http", "https", "all")


def settle(environment: MutableMapping[str, str], url: str) -> str | None:
    """Let Prefect's client see the proxies through which it reaches a server, and no others that it can't use.

    Args:
        environment: in which the client will look; stages get the proxies as they are.
        url: of the server; empty for one of this machine.

    Returns:
        Why the server can't be reached through the proxy that is set for it, if it can't.
    """
    original = without_lent(environment)
    here = list(HERE)
    if "PREFECT_API_URL" in lent(environment) and (own := urlsplit(environment.get("PREFECT_API_URL", "")).hostname):
        here.append(own)  # the project's own server, at whatever address of this machine
    exempt = [host for name in ("no_proxy", "NO_PROXY") for host in original.get(name, "").split(",") if host]
    everything = ",".join(dict.fromkeys([*exempt, *here]))
    lend(environment, no_proxy=everything, NO_PROXY=everything)
    taken, trouble = _taken(original | {"no_proxy": everything}, url), None
    if taken and is_socks(original[taken]) and not _is_usable(original[taken]):
        host = urlsplit(url).hostname
        trouble = (
            f"{taken}={original[taken]} names a SOCKS proxy, through which Prefect's client can't reach {url}. Name an "
            f"HTTP proxy in {urlsplit(url).scheme}_proxy, or exempt the server (no_proxy={host}), or install "
            "httpx[socks] and write the proxy's address with socks5://."
        )
    for name in variables(original):
        lend(environment, **{name: None if is_socks(original[name]) and name != taken else original[name]})
    return trouble


def variables(environment: Mapping[str, str]) -> list[str]:
    """The names of the variables that name proxies; one in small letters goes before that in capitals."""
    names = [f"{scheme}_proxy" for scheme in SCHEMES]
    return [name for name in (*names, *map(str.upper, names)) if environment.get(name)]


def is_socks(proxy: str) -> bool:
    """Whether an address is one of a SOCKS proxy."""
    return urlsplit(proxy).scheme.lower().startswith("socks")


def _taken(environment: Mapping[str, str], url: str) -> str | None:
    """The variable that names the proxy through which a server is reached; None for none."""
    parts = urlsplit(url)
    host = parts.hostname
    exempt = (environment.get("no_proxy") or environment.get("NO_PROXY") or "").replace(" ", "").split(",")
    if not host or is_loopback(host) or any(_is_exempt(host, each.lower()) for each in exempt if each):
        return None
    named = variables(environment)
    ways = [f"{parts.scheme}_proxy", f"{parts.scheme}_proxy".upper(), "all_proxy", "ALL_PROXY"]
    return next((name for name in ways if name in named), None)


def _is_exempt(host: str, entry: str) -> bool:
    """Whether a host is one of those that an entry of no_proxy names: `*` means all, a domain all hosts in it."""
    domain = entry.lstrip("*").lstrip(".")
    return entry == "*" or host == domain or host.endswith(f".{domain}")


def _is_usable(proxy: str) -> bool:
    return urlsplit(proxy).scheme.lower() in ("socks5", "socks5h") and find_spec("socksio") is not None
