"""Sources of datasets, a module for each `kind` of a dataset block: the folder is the registry.

A source module has four public names:

- `Source`: the typed options of its blocks, with `kind` as a literal equal to the module's name, and with a method
  `shape()`: channels, height and width of its images;
- `archives(source)`: what must be fetched, a list of `Archive` (empty where nothing must be);
- `verify(source)`: complains of what is read where it lies, and is not what its checksum is of;
- `read(source, folder)`: the dataset, from what was fetched into `folder`.
"""

from __future__ import annotations

import importlib
import pkgutil
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from stages.program.options import UserError, check, unknown


@dataclass(frozen=True)
class Archive:
    """A file to fetch.

    Attributes:
        name: its path below a mirror's base, and below the folder that it is fetched into.
        algorithm: `md5` or `sha256`.
        digest: hexadecimal checksum of the whole file.
        urls: official addresses, in the order in which to try them.
    """

    name: str
    algorithm: str
    digest: str
    urls: tuple[str, ...]


def kinds() -> list[str]:
    """Names of all kinds of datasets."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def source_module(block: Any, where: str) -> tuple[ModuleType, Any]:
    """The source module that a dataset block names, and the block as its validated `Source`.

    Args:
        block: the block as read from params.yaml.
        where: its dotted key.

    Raises:
        UserError: the block names no kind, or its options are wrong.
    """
    kind = block.get("kind") if isinstance(block, dict) else None
    if kind is None:
        raise UserError(f"params.yaml: {where}.kind is missing: the kind of dataset. Known: {', '.join(kinds())}.")
    if kind not in kinds():
        raise UserError(f"params.yaml: {where}.kind: {unknown('kind of dataset', str(kind), kinds())}")
    module = importlib.import_module(f"{__name__}.{kind}")
    return module, check(module.Source, block, where)
