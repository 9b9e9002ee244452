"""What a study found: lines of values with intervals, tables, and a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from saysee.evaluation.recall import (
    MEAN,
    RetrievalMeasures,
    RetrievalRanks,
    group_measures,
    mean_resamples,
    retrieval_measures,
)
from saysee.evaluation.statistics import with_interval
from saysee.evaluation.table import Table, number
from saysee.studies.plots import Panel, panels_png
from saysee.studies.robustness.conditions import Condition

CLEAN, ALL = "clean", "all"
TO_IMAGE, TO_SPEECH = "speech_to_image_R@1", "image_to_speech_R@1"
_MOST_GROUPS = 12  # more values of a column are not legible on an axis


class Point(NamedTuple):
    """A condition at a strength; the clean corpus has neither."""

    condition: Condition | None = None
    strength: float = 0.0


def points_of(conditions: Sequence[Condition]) -> list[Point]:
    """The clean corpus, then every condition at each of its strengths."""
    return [Point(), *(Point(each, strength) for each in conditions for strength in each.strengths)]


class Scored(NamedTuple):
    """The result of a model at a point."""

    ranks: RetrievalRanks
    unheard: int  # number of clips in which it heard nothing: silence, or no words


@dataclass(frozen=True)
class RobustnessResult:
    """The result of a study."""

    conditions: Sequence[Condition]  # in the order of the panels
    models: Sequence[str]  # names of the models, the first of which the others are compared with
    # plain values, one for each point, model and group of queries: mean R@1 and those of both directions, the drop from
    # clean and the difference to the first model, in percent with 95 % intervals
    lines: Sequence[dict[str, Any]]
    notes: Sequence[str]  # what a reader needs below a table

    def of(self, model: str, point: Point, queries: str = ALL) -> dict[str, Any]:
        """The line of a model at a point; a condition at the strength of no change is the clean corpus."""
        condition, strength = point
        wanted: tuple[Any, ...] = (model, CLEAN, None, queries)
        if condition is not None and strength != condition.clean:
            wanted = (model, condition.name, strength, queries)
        keys = ("model", "condition", "strength", "queries")
        return next(line for line in self.lines if tuple(line[key] for key in keys) == wanted)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {"models": list(self.models), "lines": list(self.lines), "notes": list(self.notes)}

    def summary(self) -> Table:
        """A row a condition: the mean R@1 of each model at all strengths."""
        rows = []
        for condition in self.conditions:
            points = [Point(condition, strength) for strength in condition.ordered]
            cells = [f"{self.of(model, point)[MEAN]:.0f}" for model in self.models for point in points]
            parts = [" ".join(cells[start : start + len(points)]) for start in range(0, len(cells), len(points))]
            at = " ".join(condition.label(strength) for strength in condition.ordered)
            rows.append([condition.title, condition.axis, at, *parts])
        headings = ["condition", "strength", "at", *self.models]
        return Table("Mean R@1, percent", headings, rows, 3, self.notes)

    def table(self) -> Table:
        """A row a condition and strength: mean R@1, its drop, and its difference to the first model."""
        headings = ["condition", "strength"]
        for model in self.models:
            headings += [f"{model} (95 %)", "drop (95 %)"]
            headings += [f"difference to {self.models[0]} (95 %)"] * (model != self.models[0])
        rows = []
        for point in points_of(self.conditions):
            condition, strength = point
            cells = [CLEAN, ""] if condition is None else [f"{condition.title}, {condition.axis}", f"{strength:g}"]
            for model in self.models:
                line = self.of(model, point)
                cells += [_cell(line, MEAN), _cell(line, "drop")]
                cells += [_cell(line, "difference", sign=True)] * (model != self.models[0])
            rows.append(cells)
        return Table("Mean R@1, percent", headings, rows, 2, self.notes)

    def groups(self) -> Table | None:
        """A row a group of queries, clean; None without groups. Hardly an image has all its clips in one group."""
        names = list(dict.fromkeys(line["queries"] for line in self.lines if line["queries"] != ALL))
        rows = []
        for name in names:
            found = [self.of(model, Point(), name) for model in self.models]
            rows.append([name, f"{found[0]['clips']:,}", *(_cell(line, TO_IMAGE) for line in found)])
        title = "Speech to image R@1 of groups of queries, clean, percent (95 %)"
        return Table(title, ["queries", "clips", *self.models], rows, 1) if rows else None

    def picture(self) -> bytes:
        """A PNG: a panel for each condition and each column of groups that is legible, a line for each model."""
        panels = []
        for condition in self.conditions:
            points = [Point(condition, strength) for strength in condition.ordered]
            ticks = [condition.label(strength) for strength in condition.ordered]
            curves = self._curves(points, [ALL] * len(points), MEAN)
            panels.append(Panel(condition.title, condition.axis, curves, ticks))
        groups: dict[str, dict[str, None]] = {}
        for line in self.lines:
            column, divided, name = line["queries"].partition(" = ")
            if divided:
                groups.setdefault(column, {})[name] = None
        for column, names in groups.items():
            if len(names) <= _MOST_GROUPS:
                lines = self._curves([Point()] * len(names), [f"{column} = {name}" for name in names], TO_IMAGE)
                panels.append(Panel(f"{column}: speech to image, clean", "", lines, list(names), joined=False))
        return panels_png("", "mean R@1 (%)", panels, columns=4)

    def _curves(self, points: Sequence[Point], queries: Sequence[str], measure: str) -> dict[str, list[Any]]:
        """By model (place, value, low, high)."""
        names = [measure, *_ends(measure)]
        return {
            model: [
                (place, *(self.of(model, point, group)[name] for name in names))
                for place, (point, group) in enumerate(zip(points, queries, strict=True))
            ]
            for model in self.models
        }


def lines_of(
    points: Sequence[Point],
    models: Sequence[str],
    scored: Sequence[Sequence[Mapping[Point, Scored]]],
    groups: Mapping[str, Sequence[Any]],
) -> list[dict[str, Any]]:
    """The lines of a result.

    ``scored`` has of each model, by name, the points of its runs, which differ in their seed alone; the first point is
    the clean corpus. ``groups`` has by column the value of each query.
    """
    lines: list[dict[str, Any]] = []
    clean: dict[tuple[str, str], tuple[float, Any]] = {}
    for point in points:
        first: dict[str, tuple[float, Any]] = {}
        for model, runs in zip(models, scored, strict=True):
            measures = [_measures(run[point].ranks, groups) for run in runs]
            for queries in measures[0]:
                of_runs = [each[queries] for each in measures]
                resampled = mean_resamples(of_runs)
                named = [each.named() for each in of_runs]
                line: dict[str, Any] = {
                    "condition": point.condition.name if point.condition else CLEAN,
                    "strength": point.strength if point.condition else None,
                    "axis": point.condition.axis if point.condition else None,
                    "model": model,
                    "seeds": len(runs),
                    "queries": queries,
                    **{name: getattr(measures[0][queries], name) for name in ("clips", "images")},
                    "unheard": sum(run[point].unheard for run in runs) if queries == ALL else None,
                }
                measured = [name for name in (MEAN, TO_IMAGE, TO_SPEECH) if name in resampled]
                values = {name: float(np.mean([each[name] for each in named])) for name in measured}
                for name, value in values.items():
                    line |= with_interval(name, value, resampled[name])
                main = MEAN if MEAN in values else TO_IMAGE  # a group may have no mean
                now = values[main], resampled[main]
                before, base = clean.setdefault((model, queries), now), first.setdefault(queries, now)
                line |= with_interval("drop", before[0] - now[0], before[1] - now[1])
                lines.append(line | with_interval("difference", now[0] - base[0], now[1] - base[1]))
    return lines


def _measures(ranks: RetrievalRanks, groups: Mapping[str, Sequence[Any]]) -> dict[str, RetrievalMeasures]:
    found = {ALL: retrieval_measures(ranks)}
    for column, labels in groups.items():
        found |= {f"{column} = {name}": each for name, each in group_measures(ranks, labels).items()}
    return found


def _ends(name: str) -> list[str]:
    return [f"{name}_low", f"{name}_high"]


def _cell(line: Mapping[str, Any], name: str, sign: bool = False) -> str:
    low, high = _ends(name)
    return number(line[name], interval=[line[low], line[high]], sign=sign)
