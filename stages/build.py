"""Stage build@<lab>: the model before training: its initial weights, its layers, and what it costs.

Reads   params.yaml: labs.<lab>.model, labs.<lab>.seed
Writes  results/<lab>/init.safetensors: the initial weights
        results/<lab>/model.txt: every layer with its output shape, parameters and multiply-adds
        results/<lab>/model.json: parameters (trainable), mult_adds (of one image)
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torchinfo

from stages.learning import weights
from stages.models import build_model, check_fit, model_options
from stages.program.command import command
from stages.program.files import write_json, write_text
from stages.program.options import Options, Seed, blame, read_section

BATCH = 4
DEPTH = 5  # levels of modules within modules that the table shows


class Section(Options):
    """What this stage reads of a lab's block."""

    seed: Seed
    model: dict[str, Any]


def main(lab: str) -> None:
    """Build lab `lab`'s model, initialise it from its seed and describe it."""
    where, results = f"labs.{lab}", Path("results") / lab
    section = read_section("labs", lab, Section)
    options = model_options(section.model, f"{where}.model")

    torch.manual_seed(section.seed)
    with blame(where):
        model = build_model(options)
        check_fit(model, options)
    layers = _describe(model, BATCH, options.input_shape)
    one = _describe(model, 1, options.input_shape)
    size = {"parameters": one.trainable_params, "mult_adds": one.total_mult_adds}

    text = (
        f"{_table(layers)}\n"
        f"Shapes and multiply-adds are those of a batch of {BATCH}; one image costs {size['mult_adds']:,} "
        f"multiply-adds. Parameters: {size['parameters']:,}\n"
    )

    weights.save(model.state_dict(), results / "init.safetensors")
    write_text(results / "model.txt", text)
    write_json(results / "model.json", size)
    print(f"{lab}: {options.name}\n{text}", end="")


def _describe(model: torch.nn.Module, batch: int, input_shape: list[int]) -> torchinfo.ModelStatistics:
    """Run random images through the model, layer by layer; its weights are left as they are."""
    return torchinfo.summary(
        model,
        input_size=(batch, *input_shape),
        col_names=("output_size", "num_params", "kernel_size", "mult_adds"),
        row_settings=("var_names",),
        depth=DEPTH,
        device="cpu",
        verbose=0,
    )


def _table(layers: torchinfo.ModelStatistics) -> str:
    """torchinfo's table of layers, without its sums, whose multiply-adds are of the whole batch."""
    return str(layers).partition("\nTotal params")[0]


if __name__ == "__main__":
    command(main, "LAB", __doc__)
