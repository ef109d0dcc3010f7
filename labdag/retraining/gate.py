"""The gate that a retrained model has to pass, as params.yaml has it in `retrain.<target>`."""

from __future__ import annotations

import difflib
import fnmatch
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from labdag.errors import UserError
from labdag.results.compare import WIDE, is_number, size, styled

BLOCK = "retrain"
EXAMPLE = "minimum: {accuracy: 0.97}"


class Gate(BaseModel):
    """What a retrained model has to reach to be registered."""

    model_config = ConfigDict(extra="forbid", strict=True)

    minimum: dict[str, float] = Field(default={}, description="Figures that must not be less than this.")
    maximum: dict[str, float] = Field(default={}, description="Figures that must not be more than this.")
    may_lose: dict[str, float] = Field(
        default={}, description="Figures, `*` for any part of a name, and what each may at most lose to the champion's."
    )
    may_rise: dict[str, float] = Field(
        default={}, description="Likewise for figures of which less is better: what each may at most be above it."
    )
    better: str | None = Field(
        default=None, description="A figure that must be better than the champion's by more than the seed's noise."
    )
    less_is_better: bool = Field(default=False, description="Whether less of the figure `better` is better.")
    noise: float | None = Field(
        default=None,
        gt=0,
        description="Standard deviation of the figure `better` over seeds, where no three runs with different seeds "
        "are known from which it could be told.",
    )


@dataclass(frozen=True)
class Check:
    """One thing that the gate asks.

    Attributes:
        asked: what it is.
        found: what there was.
        is_met: whether that is enough.
    """

    asked: str
    found: str
    is_met: bool


def read(params: Any, target: str) -> Gate:
    """The gate of a target.

    Raises:
        UserError: there is none, or it is not of the form that it should be.
    """
    blocks = params.get(BLOCK) if isinstance(params, Mapping) else None
    where = f"params.yaml: {BLOCK}.{target}"
    if not isinstance(blocks, Mapping) or target not in blocks:
        raise UserError(
            f"{where} is missing: it says what a retrained {target} must reach, such as `{target}: {{{EXAMPLE}}}`."
        )
    try:
        gate = Gate.model_validate(blocks[target])
    except ValidationError as error:
        raise UserError("\n".join(f"{where}{_faulty(fault)}" for fault in error.errors())) from None
    if not (gate.minimum or gate.maximum or gate.may_lose or gate.may_rise or gate.better):
        raise UserError(f"{where} asks for nothing; let it ask for something, such as `{EXAMPLE}`.")
    return gate


def _faulty(fault: Any) -> str:
    place = "".join(f".{part}" for part in fault["loc"])
    if fault["type"] == "extra_forbidden":
        near = difflib.get_close_matches(str(fault["loc"][-1]), Gate.model_fields, n=1)
        hint = f" Did you mean '{near[0]}'?" if near else f" There are {', '.join(Gate.model_fields)}."
        return f"{place} is nothing that a gate can ask.{hint}"
    return f"{place} is {fault['input']!r}: {fault['msg'][:1].lower()}{fault['msg'][1:]}."


def judge(
    gate: Gate,
    now: Mapping[str, Any],
    champion: Mapping[str, Any] | None,
    noise: Mapping[str, tuple[float, int]],
    styles: Mapping[str, str],
) -> list[Check]:
    """Hold the figures of a model against the gate.

    Args:
        gate: what is asked.
        now: the model's figures.
        champion: those of the model that is registered; None if none is, so that there is nobody to be better than.
        noise: standard deviation over seeds of figures, and of how many runs, as far as it is known.
        styles: formats of figures.

    Raises:
        UserError: the gate asks for a figure that the metrics don't have.
    """
    checks = list(_bounds(gate, now, styles))
    for key, bounds in (("may_lose", gate.may_lose), ("may_rise", gate.may_rise)):
        for pattern, most in bounds.items():
            names = fnmatch.filter(now, pattern)
            if not any(is_number(now[name]) for name in names):
                raise UserError(_no_figure(f"{key}.{pattern}", pattern, now))
            style = next((style for known, style in styles.items() if fnmatch.fnmatchcase(names[0], known)), "")
            how = "loses" if key == "may_lose" else "rises by"
            asked = f"{pattern} {how} no more than {size(most, style)}"
            if champion is None:
                checks.append(_is_first(asked, {name: now[name] for name in names if is_number(now[name])}, style))
            else:
                checks.append(_change(asked, pattern, most, key == "may_rise", now, champion, style))
    if gate.better:
        value = _figure(f"better: {gate.better}", gate.better, now)
        style = styles.get(gate.better, "")
        if champion is None:
            checks.append(_is_first(f"{gate.better} better than the champion's", {gate.better: value}, style))
        else:
            checks.append(_is_better(gate, value, champion, noise.get(gate.better), style))
    return checks


def _is_first(asked: str, values: Mapping[str, float], style: str) -> Check:
    """Where there is no champion yet, it is enough that there are figures at all."""
    name, value = next((pair for pair in values.items() if math.isnan(pair[1])), next(iter(values.items())))
    return Check(asked, f"no champion yet; {name} {styled(value, style)}", not math.isnan(value))


def _bounds(gate: Gate, now: Mapping[str, Any], styles: Mapping[str, str]) -> Iterator[Check]:
    for key, sign, bounds in (("minimum", "≥", gate.minimum), ("maximum", "≤", gate.maximum)):
        for name, bound in bounds.items():
            value, style = _figure(f"{key}.{name}", name, now), styles.get(name, "")
            is_met = value >= bound if key == "minimum" else value <= bound  # nan meets none
            yield Check(f"{name} {sign} {styled(bound, style)}", styled(value, style), is_met)


def _change(
    asked: str,
    pattern: str,
    most: float,
    is_rise: bool,
    now: Mapping[str, Any],
    champion: Mapping[str, Any],
    style: str,
) -> Check:
    """How much worse than the champion's the worst of some figures is."""
    sign = 1 if is_rise else -1
    changes = {
        name: sign * (now[name] - champion[name])
        for name in fnmatch.filter(now, pattern)
        if is_number(now[name]) and is_number(champion.get(name))
    }
    gone = [name for name in fnmatch.filter(champion, pattern) if name not in changes]
    if gone:
        return Check(asked, f"{gone[0]} is not there any more", is_met=False)
    if not changes:
        return Check(asked, "the champion has none", is_met=True)
    name, change = max(changes.items(), key=lambda pair: math.inf if math.isnan(pair[1]) else pair[1])
    told = f"{name} {styled(champion[name], style)} → {styled(now[name], style)}"
    if math.isnan(change):
        return Check(asked, told, is_met=False)
    none = "none rose" if is_rise else "none lost"
    return Check(asked, told if change > 0 else f"{none}; {told}", change <= most)


def _is_better(
    gate: Gate, value: float, champion: Mapping[str, Any], known: tuple[float, int] | None, style: str
) -> Check:
    name, word = str(gate.better), "less" if gate.less_is_better else "more"
    old = champion.get(name)
    spread = known[0] if known else gate.noise
    if not is_number(old):
        return Check(f"{name} better than the champion's", "the champion has no such figure", is_met=True)
    assert old is not None
    told = f"{styled(old, style)} → {styled(value, style)}"
    if spread is None:
        unknown = "how far the seed alone moves it is not known: fewer than three runs differ in the seed alone"
        return Check(f"{name} {word} than the champion's, beyond the seed's noise", f"{told}; {unknown}", is_met=False)
    gain = old - value if gate.less_is_better else value - old
    runs = f" over {known[1]} runs" if known else ", as params.yaml says"
    asked = f"{name} {word} than the champion's by over {size(WIDE * spread, style)}"
    return Check(asked, f"{told} (noise of the seed: ± {size(spread, style)}{runs})", gain > WIDE * spread)


def _figure(where: str, name: str, now: Mapping[str, Any]) -> float:
    if not is_number(now.get(name)):
        raise UserError(_no_figure(where, name, now))
    return float(now[name])


def _no_figure(where: str, name: str, now: Mapping[str, Any]) -> str:
    numbers = [known for known, value in now.items() if is_number(value)]
    near = difflib.get_close_matches(name, numbers, n=1, cutoff=0.5)
    hint = f"Did you mean '{near[0]}'?" if near else f"They have {', '.join(numbers[:10]) or 'no numbers'}."
    return f"The gate asks for {where}, but the metrics have no such number. {hint}"
