"""From resident uint8 images to a model's input: functions of whole batches of tensors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from stages.datasets.statistics import Statistics
from stages.program.options import OptionError, Options

if TYPE_CHECKING:
    from torch import Tensor


class ByDataset(Options):
    """Normalise each channel by the mean and std of the dataset's own training images."""

    by: Literal["dataset"] = Field(description="Use the statistics that the stats stage computed.")


class ByValues(Options):
    """Normalise each channel by given values."""

    by: Literal["values"] = Field(description="Use the values given here.")
    mean: list[float] = Field(
        min_length=1,
        max_length=3,
        description="Mean of each channel, on the scale where pixels run from 0 to 1.",
    )
    std: list[Annotated[float, Field(gt=0)]] = Field(
        min_length=1, max_length=3, description="Standard deviation of each channel, on the same scale."
    )


class Transform(Options):
    """What happens to images before the model sees them."""

    normalize: Annotated[ByDataset | ByValues, Field(discriminator="by")] = Field(
        description="How pixels are centred and scaled."
    )


def normalization(transform: Transform, statistics: Statistics) -> tuple[list[float], list[float]]:
    """Mean and std of each channel that `transform` asks for.

    Raises:
        OptionError: the values given are not one a channel, or the dataset's own std is 0.
    """
    options = transform.normalize
    channels = len(statistics.mean)
    if options.by == "dataset":
        if 0 in statistics.std:
            raise OptionError(
                "transform.normalize.by",
                f"is 'dataset', but channel {statistics.std.index(0)} is the same in every pixel of the training "
                "images, so there is no std to divide by; give values.",
            )
        return statistics.mean, statistics.std
    for key, values in (("mean", options.mean), ("std", options.std)):
        if len(values) != channels:
            raise OptionError(
                f"transform.normalize.{key}",
                f"has {len(values)} values, but the images have {channels} channels.",
            )
    return options.mean, options.std


def normalize(images: Tensor, mean: list[float], std: list[float]) -> Tensor:
    """Scale uint8 images to 0-1, then centre and scale each channel.

    Equal bit for bit to torchvision's ToTensor followed by Normalize.

    Args:
        images: uint8, N×C×H×W.
        mean: of each channel, on the 0-1 scale.
        std: of each channel, on the 0-1 scale.

    Returns:
        float32, N×C×H×W.
    """
    scaled = images.float().div_(255)
    return scaled.sub_(scaled.new_tensor(mean).view(-1, 1, 1)).div_(scaled.new_tensor(std).view(-1, 1, 1))
