"""The whole of params.yaml as one typed schema, put together from where its parts are used.

No stage imports this module: else each new option of one lab would be a change in the code of all.

    python -m stages.params schema     print the JSON Schema that editors complete and check params.yaml by
    python -m stages.params dag        write the comparisons of params.yaml into dvc.yaml
    python -m stages.params check      say what is wrong with params.yaml, and exit with 1 if anything is
"""

from __future__ import annotations

import functools
import importlib
import json
import operator
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, create_model

from stages import models
from stages.datasets import sources
from stages.datasets.transforms import Transform
from stages.learning.evaluation import Evaluation
from stages.learning.expectation import Expectation
from stages.learning.expectation import judge as judge  # for whoever checks a lab from outside
from stages.learning.group import Group
from stages.learning.recipe import Compute, Recipe
from stages.program.files import write_text
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


def _union(members: list[Any], discriminator: str) -> Any:
    """Any of `members`, told apart by one of their keys."""
    if len(members) == 1:
        return members[0]
    return Annotated[functools.reduce(operator.or_, members), Field(discriminator=discriminator)]


DVC_FILE = "dvc.yaml"
# What a comparison reads of each of its labs, below results/<lab>/.
INPUTS = ("history.csv", "metrics.json", "model.json")


class Lab(Options):
    """One lab: a model, trained on a dataset by a recipe."""

    about: str = Field(description="What there is to see in this lab, in a sentence or two.")
    dataset: DatasetName
    seed: Seed
    compute: Compute = Field(description="How the arithmetic is done, as far as it changes the bits.")
    model: Any = Field(description="The model's family and its options.")
    transform: Transform = Field(description="What happens to images before the model sees them.")
    train: Recipe = Field(description="The recipe of the training.")
    evaluate: Evaluation = Field(description="How the best weights are tested once more.")
    plot: Plot = Field(description="How pictures are drawn.")
    expect: Expectation = Field(description="What the lab should reach, and what it costs.")


class Params(Options):
    """Every dataset, every lab and every comparison of labdag."""

    datasets: dict[BlockName, Any] = Field(description="Datasets by name.")
    labs: dict[BlockName, Lab] = Field(description="Labs by name.")
    compare: dict[BlockName, Group] = Field(default={}, description="Comparisons of labs by name.")
    retrain: dict[BlockName, dict[str, Any]] = Field(
        default={},
        description="What a retrained lab must reach to be registered (`labdag retrain`), by the lab's name.",
    )


def schema() -> type[Params]:
    """The schema of params.yaml, with a choice for each model family and each kind of dataset that is there.

    Raises:
        UserError: a family's module can't be taken.
    """
    model = _union([models.family(name).Model for name in models.families()], "name")
    kinds = [importlib.import_module(f"{sources.__name__}.{kind}").Source for kind in sources.kinds()]
    source = _union(kinds, "kind")
    lab = create_model(
        "Lab",
        __base__=Lab,
        __doc__=Lab.__doc__,
        model=(model, Field(description=Lab.model_fields["model"].description)),
    )
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
    return whole(schema(), read_params(path))


def whole(known: type[Params], values: Mapping[str, Any]) -> Params:
    """Validate all that params.yaml holds, each block by itself, and then with those that it names.

    Args:
        known: what `schema` tells.
        values: as read.

    Raises:
        UserError: a line for every fault.
    """
    params = check(known, values)
    faults = [
        f"{PARAMS_FILE}: labs.{name}.dataset: {unknown('dataset', lab.dataset, params.datasets)}"
        for name, lab in params.labs.items()
        if lab.dataset not in params.datasets
    ]
    faults += [
        f"{PARAMS_FILE}: labs.{name}.{misfit}"
        for name, lab in params.labs.items()
        if (source := params.datasets.get(lab.dataset))
        and (misfit := lab.transform.misfit(lab.model.input_shape, lab.dataset, source.shape()))
    ]
    if "compare" in params.labs:
        faults.append(f"{PARAMS_FILE}: labs.compare: comparisons have this folder of results; take another name.")
    faults += [
        f"{PARAMS_FILE}: retrain.{name}: {unknown('lab', name, params.labs)}"
        for name in params.retrain
        if name not in params.labs
    ]
    faults += [
        f"{PARAMS_FILE}: labs.{name}: a dataset has this name already; a lab needs one of its own."
        for name in params.labs
        if name in params.datasets
    ]
    for name, group in params.compare.items():
        where = f"{PARAMS_FILE}: compare.{name}"
        faults += [f"{where}.labs: {unknown('lab', lab, params.labs)}" for lab in group.labs if lab not in params.labs]
        if len(set(group.labs)) < len(group.labs):
            faults.append(f"{where}.labs names a lab twice; once is enough.")
        if name in params.labs or name in params.datasets:
            faults.append(f"{where}: a lab or a dataset has this name already; a comparison needs one of its own.")
    if faults:
        raise UserError("\n".join(faults))
    return params


def json_schema() -> str:
    """The JSON Schema of params.yaml, as the text of params.schema.json."""
    return json.dumps(schema().model_json_schema(), indent=2) + "\n"


def dag(text: str, groups: Mapping[str, Group]) -> str:
    """dvc.yaml with the labs and inputs of each comparison written in, between the marks that stand there for them.

    DVC has no list of deps that is as long as a list of params, so the lists in dvc.yaml have one length: that of
    the longest comparison, to which shorter ones are filled up with their last lab.

    Args:
        text: of dvc.yaml; without the marks it comes back as it is.
        groups: the comparisons of params.yaml.
    """
    longest = max((len(group.labs) for group in groups.values()), default=0)
    lists = {name: [*group.labs, *[group.labs[-1]] * (longest - len(group.labs))] for name, group in groups.items()}
    # As JSON, which is YAML with quotes, for a lab may be called `null`.
    comparisons = [
        f"{json.dumps(name)}: {json.dumps({'labs': ' '.join(groups[name].labs), 'inputs': labs})}"
        for name, labs in lists.items()
    ]
    inputs = [f"- results/${{item.inputs[{place}]}}/{file}" for place in range(longest) for file in INPUTS]
    return _between("comparisons", comparisons or ["{}"], _between("inputs", inputs, text))


def _between(mark: str, lines: list[str], text: str) -> str:
    """Put `lines` between `# <mark>` and `# </mark>`, as far in as the marks."""
    return re.sub(
        rf"^( *)# <{mark}>\n.*?^ *# </{mark}>$",
        lambda found: "\n".join(found.group(1) + line for line in (f"# <{mark}>", *lines, f"# </{mark}>")),
        text,
        flags=re.DOTALL | re.MULTILINE,
    )


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["schema"]:
            print(json_schema(), end="")
        case ["dag"]:
            try:
                groups = load().compare
            except UserError as error:
                sys.exit(f"Error: {error}")
            write_text(Path(DVC_FILE), dag(Path(DVC_FILE).read_text(encoding="utf-8"), groups))
        case ["check"]:
            try:
                load()
            except UserError as error:
                sys.exit(str(error))
        case _:
            sys.exit("usage: python -m stages.params schema|dag|check")
