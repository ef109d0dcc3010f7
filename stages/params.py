"""The whole of params.yaml as one typed schema, put together from where its parts are used.

No stage imports this module: else each new option of one lab would be a change in the code of all.

    python -m stages.params            print the JSON Schema that editors complete and check params.yaml by
"""

from __future__ import annotations

import functools
import importlib
import json
import operator
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, create_model

from stages import models
from stages.datasets import sources
from stages.datasets.transforms import Transform
from stages.learning.evaluation import Evaluation
from stages.learning.recipe import Compute, Recipe
from stages.program.options import (
    PARAMS_FILE,
    BlockName,
    DatasetName,
    Options,
    Seed,
    check,
    read_params,
    unknown,
)
from stages.program.options import UserError as UserError  # what load() raises, for its callers
from stages.show.page import Plot


def _union(package: str, names: list[str], attribute: str, discriminator: str) -> Any:
    """The options of every module of a registry folder, told apart by one of their keys."""
    members = [getattr(importlib.import_module(f"{package}.{name}"), attribute) for name in names]
    if len(members) == 1:
        return members[0]
    return Annotated[functools.reduce(operator.or_, members), Field(discriminator=discriminator)]


class Lab(Options):
    """One lab: a model, trained on a dataset by a recipe."""

    dataset: DatasetName
    seed: Seed
    compute: Compute = Field(description="How the arithmetic is done, as far as it changes the bits.")
    model: Any = Field(description="The model's family and its options.")
    transform: Transform = Field(description="What happens to images before the model sees them.")
    train: Recipe = Field(description="The recipe of the training.")
    evaluate: Evaluation = Field(description="How the best weights are tested once more.")
    plot: Plot = Field(description="How pictures are drawn.")


class Params(Options):
    """Every dataset and every lab of labdag."""

    datasets: dict[BlockName, Any] = Field(description="Datasets by name.")
    labs: dict[BlockName, Lab] = Field(description="Labs by name.")


def schema() -> type[Params]:
    """The schema of params.yaml, with a choice for each model family and each kind of dataset that is there."""
    model = _union(models.__name__, models.families(), "Model", "name")
    source = _union(sources.__name__, sources.kinds(), "Source", "kind")
    lab = create_model("Lab", __base__=Lab, __doc__=Lab.__doc__, model=(model, Lab.model_fields["model"]))
    return create_model(
        "Params",
        __base__=Params,
        __doc__=Params.__doc__,
        datasets=(dict[BlockName, source], Params.model_fields["datasets"]),  # type: ignore[valid-type]
        labs=(dict[BlockName, lab], Params.model_fields["labs"]),
    )


def load(path: Path = Path(PARAMS_FILE)) -> Params:
    """Read and validate the whole file.

    Raises:
        UserError: a line for every fault.
    """
    params = check(schema(), read_params(path))
    faults = [
        f"{PARAMS_FILE}: labs.{name}.dataset: {unknown('dataset', lab.dataset, params.datasets)}"
        for name, lab in params.labs.items()
        if lab.dataset not in params.datasets
    ]
    faults += [
        f"{PARAMS_FILE}: labs.{name}: a dataset has this name already; a lab needs one of its own."
        for name in params.labs
        if name in params.datasets
    ]
    if faults:
        raise UserError("\n".join(faults))
    return params


def json_schema() -> str:
    """The JSON Schema of params.yaml, as the text of params.schema.json."""
    return json.dumps(schema().model_json_schema(), indent=2) + "\n"


if __name__ == "__main__":
    print(json_schema(), end="")
