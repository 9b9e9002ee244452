"""The tables of an ablation: means over seeds and differences to the baseline, as Markdown, CSV and plots."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader
from rich.table import Table
from rich.text import Text

from saysee.evaluation.statistics import Estimate, estimate, paired_difference
from saysee.files import write_text
from saysee.studies.plots import intervals_svg, lines_svg

EQUAL_STEPS, EQUAL_TIME = "equal steps", "equal wall time"

MAIN = "mean_R@1"
MEASURES = (
    MAIN,
    *(f"{way}_R@{k}" for way in ("speech_to_image", "image_to_speech") for k in (1, 5, 10)),
    "hard_twins",
    "novel_pairs_R@1",
    "attention_lift",
    "steps",
    "best_step",
    "training_seconds",
    "seconds_per_step",
    "peak_memory_mib",
)
"""The measures of a run, by their names in the CSV files."""

_COLUMNS = (
    ("speech to image R@1", "speech_to_image_R@1", 1),
    ("image to speech R@1", "image_to_speech_R@1", 1),
    ("hard twins", "hard_twins", 1),
    ("novel pairs R@1", "novel_pairs_R@1", 1),
    ("attention lift", "attention_lift", 2),
    ("seconds a step", "seconds_per_step", 3),
    ("peak memory, MiB", "peak_memory_mib", 0),
)
"""Heading, measure and decimals of the table's columns of the runs of equal steps."""

TABLE_MD = "table.md"


@dataclass(frozen=True)
class RunScores:
    """A finished run.

    Attributes:
        row: name of the row.
        seed: its seed.
        budget: ``EQUAL_STEPS`` or ``EQUAL_TIME``.
        share: of the training images.
        measures: those of ``MEASURES`` that the corpus and the row have.
        evaluation: from ``EvaluationResult.to_dict``.
        environment: the run's ``environment.json``.
    """

    row: str
    seed: int
    budget: str
    share: float
    measures: Mapping[str, float]
    evaluation: Mapping[str, Any]
    environment: Mapping[str, Any]


@dataclass(frozen=True)
class Summary:
    """One row with one budget and one share of the training images.

    Attributes:
        values: mean over seeds by measure.
        differences: mean difference to the baseline with the same seed, by measure; empty for the baseline.
    """

    values: Mapping[str, Estimate]
    differences: Mapping[str, Estimate]

    @property
    def seeds(self) -> int:
        """Number of seeds."""
        return self.values[MAIN].seeds

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "values": {name: value.to_dict() for name, value in self.values.items()},
            "differences": {name: value.to_dict() for name, value in self.differences.items()},
        }


@dataclass(frozen=True)
class AblationResult:
    """The result of a study.

    Attributes:
        folder: of the study.
        study: contents of ``study.json``, with the split and the number of training images.
        runs: every finished run.
        rows: summaries by row, the baseline first, and budget.
        sizes: summaries by row and share of the training images; empty if there are only runs on all of them.
    """

    folder: Path
    study: Mapping[str, Any]
    runs: Sequence[RunScores]
    rows: Mapping[str, Mapping[str, Summary]]
    sizes: Mapping[str, Mapping[float, Summary]]

    @property
    def seeds(self) -> list[int]:
        """All seeds, ascending."""
        return sorted({run.seed for run in self.runs})

    def images_in(self, share: float) -> int:
        """Number of training images in a share of them."""
        return images_in_share(self.study["training_images"], share)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "folder": str(self.folder),
            "table": str(self.folder / TABLE_MD),
            "split": self.study["split"],
            "baseline": self.study["baseline"],
            "seeds": self.seeds,
            "rows": {
                row: {budget.replace(" ", "_"): summary.to_dict() for budget, summary in budgets.items()}
                for row, budgets in self.rows.items()
            },
            "sizes": {
                row: {f"{share:g}": summary.to_dict() for share, summary in shares.items()}
                for row, shares in self.sizes.items()
            },
        }

    def to_tables(self) -> list[Table]:
        """The tables of the command line."""
        title = f"{self.study['split']} split, percent; mean ± half of the 95 % interval over seeds"
        sizes = [_rich("Gain in mean R@1 by training images", _size_table(self))] if self.sizes else []
        return [_rich(title, _main_table(self)), *sizes]


def write_tables(folder: Path, study: Mapping[str, Any], runs: Sequence[RunScores]) -> AblationResult:
    """Writes tables and plots, which depend on nothing but the arguments.

    Args:
        folder: of the study.
        study: contents of ``study.json``, with ``split`` and ``training_images``.
        runs: finished runs, in any order.
    """
    result = _summarize(folder, study, runs)
    write_text(folder / TABLE_MD, _markdown(result))
    write_text(folder / "table.csv", _csv(_table_lines(result)))
    write_text(folder / "runs.csv", _csv(_run_lines(result)))
    write_text(folder / "plot.svg", _plot(result))
    if result.sizes:
        write_text(folder / "sizes.csv", _csv(_size_lines(result)))
        write_text(folder / "plot-sizes.svg", _size_plot(result))
    return result


def _summarize(folder: Path, study: Mapping[str, Any], runs: Sequence[RunScores]) -> AblationResult:
    """Means, intervals and differences of the runs."""
    rows, baseline, steps = list(study["grid"]), study["baseline"], study["recipe"]["training"]["steps"]
    runs = sorted(runs, key=lambda run: (rows.index(run.row), run.share, run.budget, run.seed))
    found: dict[tuple[str, str, float], dict[int, Mapping[str, float]]] = {}
    for run in runs:
        found.setdefault((run.row, run.budget, run.share), {})[run.seed] = run.measures
    shares = sorted({run.share for run in runs})
    of_baseline = {share: found.get((baseline, EQUAL_STEPS, share), {}) for share in shares}
    for row in rows:  # the runs of equal steps of a row that is not slower are its runs of equal time too
        for seed, measures in found.get((row, EQUAL_STEPS, 1.0), {}).items():
            seconds = [each["seconds_per_step"] for each in (of_baseline[1.0].get(seed), measures) if each]
            if len(seconds) == 2 and steps_in_equal_time(steps, *seconds) == steps:
                found.setdefault((row, EQUAL_TIME, 1.0), {})[seed] = measures

    def by_seed(name: str, runs: Mapping[int, Mapping[str, float]]) -> dict[int, float]:
        return {seed: measures[name] for seed, measures in sorted(runs.items()) if name in measures}

    def summary(row: str, budget: str, share: float) -> Summary:
        values, differences = {}, {}
        for name in MEASURES:
            mine = by_seed(name, found[row, budget, share])
            if mean := estimate(list(mine.values())):
                values[name] = mean
            difference = paired_difference(mine, by_seed(name, of_baseline[share]))
            if row != baseline and difference:
                differences[name] = difference
        return Summary(values, differences)

    budgets = {
        row: {budget: summary(row, budget, 1.0) for budget in (EQUAL_STEPS, EQUAL_TIME) if (row, budget, 1.0) in found}
        for row in rows
    }
    sizes = {
        row: {share: summary(row, EQUAL_STEPS, share) for share in shares if (row, EQUAL_STEPS, share) in found}
        for row in rows
    }
    budgets = {row: summaries for row, summaries in budgets.items() if summaries}
    sizes = {row: summaries for row, summaries in sizes.items() if len(summaries) > 1}
    return AblationResult(folder, study, runs, budgets, sizes)


def steps_in_equal_time(steps: int, baseline_seconds: float, row_seconds: float) -> int:
    """Steps of a row that take as long as the baseline's, from 1 to ``steps``, from their seconds a step."""
    return max(1, min(steps, round(steps * baseline_seconds / row_seconds)))


def images_in_share(images: int, share: float) -> int:
    """Number of images in a share of them, at least one."""
    return max(1, round(share * images))


_Cells = tuple[list[str], list[list[str]]]  # headings and rows of a table


def _main_table(result: AblationResult) -> _Cells:
    header = ["row", "seeds", "mean R@1", "difference", *(heading for heading, _, _ in _COLUMNS)]
    header += ["equal time: steps", "equal time: mean R@1", "equal time: difference"]
    rows = []
    for row, budgets in result.rows.items():
        steps, time = budgets[EQUAL_STEPS], budgets.get(EQUAL_TIME)
        cells = [row, str(steps.seeds), *_mean_and_difference(steps)]
        cells += [_cell(steps.values.get(measure), decimals) for _, measure, decimals in _COLUMNS]
        cells += [f"{time.values['steps'].mean:.0f}", *_mean_and_difference(time)] if time else ["–"] * 3
        rows.append(cells)
    return header, rows


def _size_table(result: AblationResult) -> _Cells:
    return ["row", "share", "images", "seeds", "mean R@1", "difference"], [
        [row, f"{share:g}", str(result.images_in(share)), str(summary.seeds), *_mean_and_difference(summary)]
        for row, shares in result.sizes.items()
        for share, summary in shares.items()
    ]


def _mean_and_difference(summary: Summary) -> list[str]:
    return [_cell(summary.values.get(MAIN), 2), _cell(summary.differences.get(MAIN), 2, sign="+")]


def _cell(found: Estimate | None, decimals: int, sign: str = "") -> str:
    if found is None:
        return "–"
    half = "" if found.half_width is None else f" ± {found.half_width:.{decimals}f}"
    return f"{found.mean:{sign}.{decimals}f}{half}"


def _rich(title: str, cells: _Cells) -> Table:
    table = Table(title=title)
    header, rows = cells
    for number, heading in enumerate(header):
        table.add_column(heading, justify="left" if number == 0 else "right")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))  # Text: the name of a row may contain rich's markup
    return table


def _markdown(result: AblationResult) -> str:
    """The tables, and how they were made."""

    def table(cells: _Cells, words: int = 1) -> str:
        header, rows = cells
        lines = [header, ["---"] * words + ["---:"] * (len(header) - words), *rows]
        return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)

    def distinct(text: Callable[[Mapping[str, Any]], str]) -> list[str]:
        return list(dict.fromkeys(text(run.environment) for run in result.runs))

    def settings(row: str) -> str:
        return "; ".join(f"{name}: {json.dumps(value)}" for name, value in result.study["grid"][row].items())

    template = Environment(loader=PackageLoader("saysee", "studies")).get_template("ablation.md")
    return (
        template.render(
            study=result.study,
            overall=result.runs[0].evaluation["overall"],
            seeds=result.seeds,
            table=table(_main_table(result)),
            sizes=table(_size_table(result)) if result.sizes else None,
            rows=table((["row", "settings over the recipe"], [[row, settings(row)] for row in result.rows]), words=2),
            commits=distinct(lambda one: one["git_commit"] or "unknown (not run from a checkout)"),
            devices=distinct(lambda one: str(one["device"])),
            systems=distinct(lambda one: f"{one['platform']}, Python {one['python']}, {one['threads']} threads"),
            versions=distinct(lambda one: ", ".join(f"{name} {version}" for name, version in one["versions"].items())),
        )
        + "\n"
    )


def _plot(result: AblationResult) -> str:
    rows = list(result.rows)
    return intervals_svg(
        f"Mean R@1 on the {result.study['split']} split",
        "percent; bars: 95 % interval over seeds",
        rows,
        {
            budget: [_point(summary.values) if (summary := result.rows[row].get(budget)) else None for row in rows]
            for budget in (EQUAL_STEPS, EQUAL_TIME)
        },
    )


def _size_plot(result: AblationResult) -> str:
    return lines_svg(
        f"Gain over {result.study['baseline']} by training-set size",
        "training images",
        "percentage points of mean R@1; bars: 95 % interval over seeds",
        {
            row: [
                (result.images_in(share), *point)
                for share, summary in shares.items()
                if (point := _point(summary.differences))
            ]
            for row, shares in result.sizes.items()
            if row != result.study["baseline"]
        },
    )


def _point(estimates: Mapping[str, Estimate]) -> tuple[float, float] | None:
    """Mean R@1 and half of its interval, 0 for one seed."""
    found = estimates.get(MAIN)
    return None if found is None else (found.mean, found.half_width or 0.0)


def _table_lines(result: AblationResult) -> Iterable[dict[str, Any]]:
    for row, budgets in result.rows.items():
        line: dict[str, Any] = {"row": row, "seeds": budgets[EQUAL_STEPS].seeds}
        for budget in (EQUAL_STEPS, EQUAL_TIME):
            line |= _csv_columns(budgets.get(budget), f"{budget.replace(' ', '_')}_")
        yield line


def _size_lines(result: AblationResult) -> Iterable[dict[str, Any]]:
    for row, shares in result.sizes.items():
        for share, summary in shares.items():
            line = {"row": row, "share": share, "images": result.images_in(share), "seeds": summary.seeds}
            yield line | _csv_columns(summary, "")


def _run_lines(result: AblationResult) -> Iterable[dict[str, Any]]:
    for run in result.runs:
        line = {"row": run.row, "seed": run.seed, "budget": run.budget, "share": run.share}
        yield line | {name: run.measures.get(name) for name in MEASURES}


def _csv_columns(summary: Summary | None, prefix: str) -> dict[str, Any]:
    """Mean and interval of each measure and of its difference; None where unknown."""
    columns: dict[str, Any] = {}
    for name in MEASURES:
        for ending, estimates in (("", summary and summary.values), ("_difference", summary and summary.differences)):
            found = (estimates or {}).get(name)
            low, high = (found and found.interval) or (None, None)
            key = f"{prefix}{name}{ending}"
            columns |= {key: found and found.mean, f"{key}_low": low, f"{key}_high": high}
    return columns


def _csv(lines: Iterable[dict[str, Any]]) -> str:
    """CSV of lines with the same keys; None is an empty field."""
    lines = list(lines)
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, lines[0], lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return buffer.getvalue()
