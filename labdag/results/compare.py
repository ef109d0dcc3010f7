"""The metrics of a pipeline, what became of them since a revision, and what two revisions differ in."""

from __future__ import annotations

import difflib
import fnmatch
import math
import re
import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from labdag.errors import UserError
from labdag.pipeline.graph import Pipeline, Stage, flat
from labdag.pipeline.revisions import Record, Revision
from labdag.pipeline.targets import results

DEPTH = 2  # levels of a metrics file that tables show; `dvc metrics show` and `dvc metrics diff` show all
MISSING = "-"
MOST = 3  # figures of a family that are shown because they gained most, and as many that lost most
FILES = 5  # files that are shown one by one
REPEATS = 3  # runs with different seeds from which their noise can be told
# Standard deviations within which the difference of two runs stays by chance: 19 times in 20 if they are of many runs,
# 16 times if they are of three (Student's t).
WIDE = 2 * math.sqrt(2)

Rows = list[dict[str, Any]]


def tables(pipeline: Pipeline, names: Iterable[str], rev: str = "HEAD") -> tuple[Rows, Rows]:
    """What the metrics files of some stages hold now, and in what they differ from what they held at `rev`.

    Args:
        pipeline: that the stages are of.
        names: of the stages.
        rev: a git revision; of metrics that it does not have, as before the first commit, all is new.

    Returns:
        A row for each file with a column for each metric; and a row for each metric that differs.
    """
    names = list(names)
    before, now = (
        {path: dict(leaves(values)) for path, values in pipeline.metrics(names, of).items()} for of in (rev, None)
    )
    changed = []
    for path in now:
        old, new = before.get(path, {}), now[path]
        for name in dict.fromkeys([*old, *new]):
            was, is_now = old.get(name, MISSING), new.get(name, MISSING)
            if was != is_now:
                change = _change(was, is_now)
                changed.append({"metrics": path, "metric": name, rev: was, "now": is_now, "change": change})
    return [{"metrics": path, **values} for path, values in now.items() if values], changed


def leaves(values: Any, depth: int = DEPTH) -> Iterator[tuple[str, Any]]:
    """Numbers and strings in the upper levels of a metrics file, by their dotted names."""
    if isinstance(values, Mapping):
        for name, value in values.items():
            if isinstance(value, int | float | str):
                yield str(name), value
            elif depth > 1:
                yield from ((f"{name}.{inner}", leaf) for inner, leaf in leaves(value, depth - 1))


@dataclass(frozen=True)
class Line:
    """One thing that two revisions differ in.

    Attributes:
        target: the result that it is of, such as a lab.
        what: the param, file or metric; empty where it is the result itself that one revision does not have.
        old: its value in the older revision; None where it has none.
        new: its value in the newer one.
        style: the format to print values in; may be empty.
        noise: standard deviation of the value over runs with different seeds, where it is known.
        repeats: how many of those runs there are.
        remark: what else there is to say.
    """

    target: str
    what: str
    old: Any = None
    new: Any = None
    style: str = ""
    noise: float | None = None
    repeats: int = 0
    remark: str = ""

    @property
    def change(self) -> float | None:
        """The new value less the old one, if both are numbers."""
        if not (is_number(self.old) and is_number(self.new)):
            return None
        return float(self.new - self.old)

    @property
    def is_chance(self) -> bool | None:
        """Whether another seed alone may make such a difference; None where it is not known."""
        if self.noise is None or self.change is None:
            return None
        return abs(self.change) <= WIDE * self.noise

    def told(self) -> dict[str, Any]:
        """The line as JSON has it."""
        return {
            "result": self.target,
            "what": self.what,
            "old": _json(self.old),
            "new": _json(self.new),
            "change": _json(self.change),
            "noise": self.noise,
            "repeats": self.repeats,
            "is_chance": self.is_chance,
            "remark": self.remark,
        }


def _json(value: Any) -> Any:
    """The value, or what stands for it where JSON has no word."""
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


Repeats = Callable[[Revision, Iterable[str], str], Mapping[Any, Mapping[str, Any]]]


def diff(
    old: Revision, new: Revision, repeats: Repeats, chosen: Iterable[str] = (), *, everything: bool = False
) -> list[Line]:
    """What two revisions differ in: for each result the params and files that were changed, and the metrics.

    Args:
        old: the older revision.
        new: the newer one.
        repeats: tells the metrics of the same stages with other seeds, as `History.repeats` does.
        chosen: the results that it is about; none means all.
        everything: tell of every figure, and not of families (`meta.extremes`) only those that moved most.

    Raises:
        UserError: one of those chosen is in neither revision.
    """
    sides = [results(revision.stages) for revision in (old, new)]
    known = list(dict.fromkeys([*sides[1], *sides[0]]))
    chosen = list(chosen) or known
    for target in chosen:
        if target not in known:
            near = difflib.get_close_matches(target, known, n=1, cutoff=0.5)
            hint = f" Did you mean '{near[0]}'?" if near else ""
            raise UserError(f"Neither {old.name} nor {new.name} has a result '{target}'.{hint}")
    lines: list[Line] = []
    for target in chosen:
        before: dict[str, Stage] = sides[0].get(target, {})
        after: dict[str, Stage] = sides[1].get(target, {})
        was, now = (_records(revision, target, stages) for revision, stages in ((old, before), (new, after)))
        if was and now:
            lines += _lines(target, was, now, {**before, **after}, spread(new, after, repeats), everything)
        elif was or now:
            there, lacking, stages = (old, new, after) if was else (new, old, before)
            why = f"{lacking.name} has it, but never ran it" if stages else f"{lacking.name} has no such result"
            lines.append(Line(target, "", remark=f"{'run only' if stages else 'only'} in {there.name}: {why}"))
    return lines


def _records(revision: Revision, target: str, stages: Mapping[str, Stage]) -> dict[str, Record]:
    """Records of the stages of a result; none where of those that bear its name none was run."""
    if not any(stage.key == target and name in revision.records for name, stage in stages.items()):
        return {}
    return {name: revision.records[name] for name in stages if name in revision.records}


def _lines(
    target: str,
    was: Mapping[str, Record],
    now: Mapping[str, Record],
    stages: Mapping[str, Stage],
    noises: Mapping[str, tuple[float, int]],
    everything: bool,
) -> Iterator[Line]:
    old, new = ({k: v for record in side.values() for k, v in record.params.items()} for side in (was, now))
    for name in dict.fromkeys([*old, *new]):
        if old.get(name) != new.get(name):
            yield Line(target, name.partition(f".{target}.")[2] or name, old.get(name), new.get(name))
    for stage in (name for name in now if name in was):
        one, other = was[stage].command, now[stage].command
        if one and other and one != other:
            yield Line(target, f"command of {stage}", *_ends(one, other))
    old, new = ({k: v for record in side.values() for k, v in record.files.items()} for side in (was, now))
    changed = sorted(path for path in {**old, **new} if old.get(path) != new.get(path))
    for path in changed[:FILES]:
        yield Line(target, path, _short(old.get(path)), _short(new.get(path)))
    if len(changed) > FILES:
        yield Line(target, f"and {len(changed) - FILES} more files")
    styles = {name: style for stage in stages.values() for name, style in stage.meta.summary.items()}
    families = {pattern: style for stage in stages.values() for pattern, style in stage.meta.extremes.items()}
    old, new = figures(metrics_of(was)), figures(metrics_of(now))
    is_whole = not any(record.missing for side in (was, now) for record in side.values())
    known = [name for name in dict.fromkeys([*old, *new]) if is_whole or (name in old and name in new)]
    moved = [name for name in known if not _is_same(old.get(name), new.get(name))]
    files = {**metrics_of(was), **metrics_of(now)}
    nested = {name for name in moved if name not in files and "." in name.rpartition(":")[2]}
    hidden = nested if families and not everything else set()
    told = [
        Line(target, name, old.get(name), new.get(name), styles.get(name, ""), *noises.get(name, (None, 0)))
        for name in moved
        if name not in hidden
    ]
    for pattern, style in () if everything else families.items():
        members = [Line(target, name, old[name], new[name], style) for name in moved
                   if name in old and name in new and fnmatch.fnmatchcase(name, pattern)]  # fmt: skip
        members.sort(key=lambda line: line.change or 0.0, reverse=True)
        told += [line for line in members if (line.change or 0) > 0][:MOST]
        told += [line for line in members if (line.change or 0) < 0][-MOST:]
    yield from told
    if moved and not told:
        yield Line(target, "1 figure" if len(moved) == 1 else f"{len(moved)} figures", remark="`--json` tells more")
    for side in (was, now):
        for path in (path for record in side.values() for path in record.missing):
            yield Line(target, path, remark="its content is not in DVC's cache; `dvc fetch` may have it")


def _ends(one: str, other: str) -> tuple[str, str]:
    """Two commands, without the words with which both begin."""
    words, others = one.split(), other.split()
    pairs = zip(words, others, strict=False)
    same = next((n for n, (word, its) in enumerate(pairs) if word != its), min(len(words), len(others)))
    ends = [" ".join(["…", *each[same:]] if same else each) for each in (words, others)]
    return ends[0], ends[1]


def metrics_of(records: Mapping[str, Record]) -> dict[str, Any]:
    """What the metrics files of a result hold, by path."""
    return {path: values for record in records.values() for path, values in record.metrics.items()}


def figures(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Figures of some metrics files by their dotted names; of a name that several files have, by `PATH:NAME`."""
    # A file that is a bare number gives it its name.
    leaves_of = {
        path: {name or path: value for name, value in flat(values) if name or value is not None}
        for path, values in metrics.items()
    }
    counts = Counter(name for found in leaves_of.values() for name in found)
    return {
        name if counts[name] == 1 else f"{path}:{name}": value
        for path, found in leaves_of.items()
        for name, value in found.items()
    }


def _is_same(one: Any, other: Any) -> bool:
    return bool(one == other) or (one != one and other != other)  # nan is no other than nan


def spread(revision: Revision, stages: Mapping[str, Stage], repeats: Repeats) -> dict[str, tuple[float, int]]:
    """Standard deviation of each figure of a result over seeds, and over how many; as far as it is known.

    Args:
        revision: with whose params.
        stages: of the result.
        repeats: tells the metrics of the same stages with other seeds, as `History.repeats` does.
    """
    seed = next((stage.meta.seed for stage in stages.values() if stage.meta.seed), None)
    runs = repeats(revision, stages, seed) if seed else {}
    if len(runs) < REPEATS:
        return {}
    found = [figures(metrics) for metrics in runs.values()]
    return {
        name: (statistics.stdev(run[name] for run in found), len(found))
        for name in found[0]
        if all(is_number(run.get(name)) and math.isfinite(run[name]) for run in found)
    }


def is_number(value: Any) -> bool:
    """Whether a value is a number, which a boolean is not."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def _short(digest: str | None) -> str | None:
    return None if digest is None else digest[:7]


def printed(line: Line) -> tuple[str, str, str, str]:
    """The old value of a line, the new one, the change and what there is to say of it, as a person reads them."""
    old, new = (MISSING if value is None else styled(value, line.style) for value in (line.old, line.new))
    change = MISSING if line.change is None else _signed(line.change, line.style)
    remark = line.remark
    if line.is_chance is not None:
        how = "within" if line.is_chance else "more than"
        noise = line.noise or 0.0
        most, deviation = size(WIDE * noise, line.style), size(noise, line.style)
        remark = f"{how} the noise of the seed, up to {most} (± {deviation} over {line.repeats} runs)"
    return old, new, change, remark


def styled(value: Any, style: str) -> str:
    """A value in a format, or as it is where that does not fit it."""
    if isinstance(value, float) and not style:
        style = ".4g"
    try:
        return format(value, style)
    except (ValueError, TypeError):
        return str(value)


def is_percent(style: str) -> bool:
    """Whether a format is one of per cent, to which a sign may be added."""
    return re.fullmatch(r"(\.\d+)?%", style) is not None


def size(value: float, style: str) -> str:
    """How large a difference is, of values in a format."""
    if is_percent(style):
        return f"{format(value, style)[:-1]} points"
    return f"{value:.3g}"


def _signed(change: float, style: str) -> str:
    if is_percent(style):
        return f"{format(change, '+' + style)[:-1]} points"
    return f"{change:+.4g}"


def _change(was: Any, is_now: Any) -> Any:
    try:
        return float(f"{is_now - was:.6g}")
    except TypeError:
        return MISSING
