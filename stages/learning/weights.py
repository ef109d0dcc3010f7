"""A model's weights as safetensors: no code inside, and the same bytes for the same weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor, nn

from stages.program.files import write_bytes
from stages.program.options import UserError


def save(state: Mapping[str, Tensor], path: Path) -> None:
    """Write a state dict, whole or not at all; layouts such as channels_last are undone."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    write_bytes(path, safetensors.torch.save(tensors))


def load(model: nn.Module, path: Path) -> None:
    """Load weights into `model`, in place; every tensor must be there and fit.

    Raises:
        FileNotFoundError: there is no such file.
        UserError: the file is damaged, or the weights are of another model.
    """
    try:
        model.load_state_dict(safetensors.torch.load(path.read_bytes()))
    except (SafetensorError, RuntimeError) as error:
        raise UserError(
            f"{path} is damaged or of another model than params.yaml describes; run the stages that come before "
            f"(`dvc repro` does): {' '.join(str(error).split())}"
        ) from None
