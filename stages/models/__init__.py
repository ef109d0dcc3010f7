"""Models, one module for each family: the folder is the registry.

A model module has two public names:

- `Model`: the typed options of a lab's `model` block, with `name` as a literal equal to the module's name,
  and with `input_shape` and `classes`;
- `build(model)`: the network, an nn.Module from N×C×H×W float32 to logits N×classes, initialised from
  torch's global generator.

Importing one does not import torch; building does. So whoever only checks params.yaml stays light.
"""

from __future__ import annotations

import importlib
import pkgutil
from typing import TYPE_CHECKING, Any

from stages.program.options import Options, UserError, check, unknown

if TYPE_CHECKING:
    from torch import nn


def families() -> list[str]:
    """Names of all families of models."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def model_options(block: dict[str, Any], where: str) -> Any:
    """Validate a `model` block, which stands at `where` of params.yaml: a `Model` of the family it names.

    Raises:
        UserError: the block names no family, or its options are wrong.
    """
    family = block.get("name")
    if family is None:
        raise UserError(f"params.yaml: {where}.name is missing: the model's family. Known: {', '.join(families())}.")
    if family not in families():
        raise UserError(f"params.yaml: {where}.name: {unknown('model', str(family), families())}")
    options: type[Options] = importlib.import_module(f"{__name__}.{family}").Model
    return check(options, block, where)


def build_model(options: Any) -> nn.Module:
    """Build the network that validated options describe, initialised from torch's global generator.

    Raises:
        OptionError: its layers don't fit each other or the input.
    """
    network: nn.Module = importlib.import_module(f"{__name__}.{options.name}").build(options)
    return network
