"""VGG: stacks of 3×3 convolutions between poolings, then fully connected layers.

K. Simonyan and A. Zisserman, "Very deep convolutional networks for large-scale image recognition", ICLR 2015.
Batch normalisation after each convolution is a later addition (S. Ioffe and C. Szegedy, 2015).

Parameters, for 10 classes: 9,231,114 slim (64 M 128 M 256 256 M 512 512 M 512 512 M, one fully connected layer)
and 33,646,666 as VGG-16 (33,638,218 without batch normalisation) for 3×32×32; 128,806,154 as VGG-11 for 1×224×224.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Literal, Self

from pydantic import Field, model_validator

from stages.models import Family, Width
from stages.program.options import Options

if TYPE_CHECKING:
    from torch import nn

POOL = "M"


class Classifier(Options):
    """The fully connected layers at the end."""

    inputs: int = Field(
        ge=1,
        le=10_000_000,
        description="Numbers an image that come out of the last pooling: channels×height×width.",
    )
    hidden: list[Width] = Field(description="Widths of the hidden layers; may be empty.")
    dropout: float = Field(
        default=0.0, ge=0, lt=1, description="Part of each hidden layer's outputs that is dropped in training."
    )

    @model_validator(mode="after")
    def _has_what_to_drop(self) -> Self:
        if self.dropout and not self.hidden:
            raise ValueError("dropout is of hidden layers, and there are none; leave it out, or give hidden widths.")
        return self


class Model(Family):
    """VGG of any depth."""

    name: Literal["vgg"] = Field(description="VGG (Simonyan and Zisserman, 2015).")
    layers: list[Width | Literal["M"]] = Field(
        min_length=1, description="Filters of each 3×3 convolution, with M for a 2×2 max-pooling between them."
    )
    batch_norm: bool = Field(description="Batch normalisation after each convolution.")
    classifier: Classifier = Field(description="The fully connected layers at the end.")


def build(model: Model) -> nn.Sequential:
    """Build the network."""
    from torch import nn

    layers: OrderedDict[str, nn.Module] = OrderedDict()
    channels, conv, pool = model.input_shape[0], 0, 0
    for width in model.layers:
        if isinstance(width, str):
            pool += 1
            layers[f"pool{pool}"] = nn.MaxPool2d(2)
            continue
        conv += 1
        layers[f"conv{conv}"] = nn.Conv2d(channels, width, 3, padding=1)
        if model.batch_norm:
            layers[f"norm{conv}"] = nn.BatchNorm2d(width)
        layers[f"act{conv}"] = nn.ReLU()
        channels = width
    layers["flatten"] = nn.Flatten()
    inputs = model.classifier.inputs
    for number, outputs in enumerate(model.classifier.hidden, start=1):
        layers[f"fc{number}"] = nn.Linear(inputs, outputs)
        layers[f"act{conv + number}"] = nn.ReLU()
        if model.classifier.dropout:
            layers[f"dropout{number}"] = nn.Dropout(model.classifier.dropout)
        inputs = outputs
    layers[f"fc{len(model.classifier.hidden) + 1}"] = nn.Linear(inputs, model.classes)
    return nn.Sequential(layers)
