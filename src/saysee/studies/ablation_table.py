"""An ablation's runs to its table: means over seeds, differences to the baseline, as Markdown, CSV and plots."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from saysee.evaluation.statistics import Estimate, estimate, paired_difference
from saysee.files import write_text
from saysee.studies.figures import intervals_svg, lines_svg

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
"""Every figure of a run, by the name that the CSV files give it."""

# Heading, measure, decimals: what the table shows of the runs of equal steps.
_SHOWN = (
    ("speech to image R@1", "speech_to_image_R@1", 1),
    ("image to speech R@1", "image_to_speech_R@1", 1),
    ("hard twins", "hard_twins", 1),
    ("novel pairs R@1", "novel_pairs_R@1", 1),
    ("attention lift", "attention_lift", 2),
    ("seconds a step", "seconds_per_step", 3),
    ("peak memory, MiB", "peak_memory_mib", 0),
)

TABLE_MD, TABLE_CSV, RUNS_CSV, PLOT, SIZES_CSV, SIZES_PLOT = (
    "table.md",
    "table.csv",
    "runs.csv",
    "plot.svg",
    "sizes.csv",
    "plot-sizes.svg",
)


@dataclass(frozen=True)
class RunScores:
    """A finished run.

    Attributes:
        row: name of the row.
        seed: its seed.
        budget: ``EQUAL_STEPS`` or ``EQUAL_TIME``.
        share: of the training pictures.
        measures: of ``MEASURES``, those that the corpus and the row have.
        evaluation: as ``EvaluationResult.to_dict`` gives it.
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
    """One row at one budget and one share of the training pictures.

    Attributes:
        values: measure to its mean over seeds.
        differences: measure to its mean difference to the baseline, seed by seed; empty for the baseline.
    """

    values: Mapping[str, Estimate]
    differences: Mapping[str, Estimate]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            kind: {name: found.to_dict() for name, found in estimates.items()}
            for kind, estimates in (("values", self.values), ("differences", self.differences))
        }


@dataclass(frozen=True)
class AblationResult:
    """What the study found.

    Attributes:
        folder: of the study.
        study: what ``study.json`` holds, with the split and the number of training pictures.
        runs: every finished run.
        rows: row to budget to its summary; the baseline first.
        sizes: row to share of the training pictures to its summary; empty when only all were trained on.
    """

    folder: Path
    study: Mapping[str, Any]
    runs: Sequence[RunScores]
    rows: Mapping[str, Mapping[str, Summary]]
    sizes: Mapping[str, Mapping[float, Summary]]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return {
            "folder": str(self.folder),
            "table": str(self.folder / TABLE_MD),
            "split": self.study["split"],
            "baseline": self.study["baseline"],
            "seeds": sorted({run.seed for run in self.runs}),
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
        """The tables for people."""
        return [
            _rich(f"{self.study['split']} split, percent; mean ± half of the 95 % interval over seeds", *self._table()),
            *([_rich("Gain in mean R@1 by training pictures", *self._size_table())] if self.sizes else []),
        ]

    def to_markdown(self) -> str:
        """The tables with how they came about."""
        parts = [f"# Ablation of {self.study['recipe_name']}", _markdown(*self._table()), *self._notes()]
        if self.sizes:
            parts += ["## Gain by training-set size", _markdown(*self._size_table()), _SIZE_NOTE]
        rows = [
            [row, "; ".join(f"{k}: {json.dumps(v)}" for k, v in self.study["grid"][row].items())] for row in self.rows
        ]
        parts += [
            "## Rows",
            _markdown(["row", "settings over the recipe"], rows, words=2),
            "## How it was made",
            self._origin(),
        ]
        return "\n\n".join(parts) + "\n"

    def _table(self) -> tuple[list[str], list[list[str]]]:
        header = ["row", "seeds", "mean R@1", "difference", *(heading for heading, _, _ in _SHOWN)]
        header += ["equal time: steps", "equal time: mean R@1", "equal time: difference"]
        rows = []
        for row, budgets in self.rows.items():
            steps = budgets[EQUAL_STEPS]
            cells = [row, str(steps.values[MAIN].seeds), _text(steps.values.get(MAIN), 2)]
            cells += [_text(steps.differences.get(MAIN), 2, sign=True)]
            cells += [_text(steps.values.get(measure), decimals) for _, measure, decimals in _SHOWN]
            time = budgets.get(EQUAL_TIME)
            cells += (
                ["–"] * 3
                if time is None
                else [
                    f"{time.values['steps'].mean:.0f}",
                    _text(time.values.get(MAIN), 2),
                    _text(time.differences.get(MAIN), 2, sign=True),
                ]
            )
            rows.append(cells)
        return header, rows

    def _size_table(self) -> tuple[list[str], list[list[str]]]:
        header = ["row", "share", "pictures", "seeds", "mean R@1", "difference"]
        rows = [
            [
                row,
                f"{share:g}",
                str(pictures_in_share(self.study["training_pictures"], share)),
                str(summary.values[MAIN].seeds),
                _text(summary.values[MAIN], 2),
                _text(summary.differences.get(MAIN), 2, sign=True),
            ]
            for row, shares in self.sizes.items()
            for share, summary in shares.items()
        ]
        return header, rows

    def _notes(self) -> list[str]:
        overall = self.runs[0].evaluation["overall"]
        seeds = sorted({run.seed for run in self.runs})
        steps = self.study["recipe"]["training"]["steps"]
        spread = (
            "± is half of the 95 % t-interval over seeds: how far the mean over these seeds may lie from the mean over "
            "all seeds. It tells nothing of other pictures than the split's."
            if len(seeds) > 1
            else "There is one seed, so nothing is known of the spread: no intervals, and no difference can be judged."
        )
        baseline = self.study["baseline"]
        return [
            f"Scores are percent on the {self.study['split']} split ({overall['clips']} clips, {overall['images']} "
            f"pictures; chance mean R@1 {overall['chance_mean_R@1']:.2f}), of each run's best step on the validation "
            f"split. Seeds: {', '.join(map(str, seeds))}. {spread}",
            f"- **Difference**: mean R@1 less that of *{baseline}*, seed by seed, in points. For one seed all rows "
            "start from the same weights and meet the same batches.\n"
            f"- **Equal steps** (all columns but the last three): every row is trained for {steps} steps.\n"
            f"- **Equal time**: a row slower per step than *{baseline}* is trained anew for as many steps as fit into "
            f"the training time of *{baseline}* with the same seed, with its schedule ending there. Seconds a step are "
            "those of the runs of equal steps, without evaluation. A row that is no slower keeps its runs of equal "
            "steps.\n"
            "- **Hard twins**: percent of clips that score their picture above the one that differs in one thing; "
            "chance is 50. **Novel pairs**: speech to image R@1 on pictures with a pair of colour and shape that "
            "training never showed.\n"
            "- **Attention lift**: attention on the object spoken of, as a multiple of what even attention would put "
            "there; on validation pictures, at the best step. A row without a fusion encoder has none.\n"
            "- **Peak memory** is that of the training process, without a GPU's own.",
        ]

    def _origin(self) -> str:
        lines = []
        for call in self.study["calls"]:
            lines.append(f"- {call['date']}, {call['processor']}, {call['processors']} processors: `{call['command']}`")
        environments = [run.environment for run in self.runs]
        commits = _distinct(environments, lambda one: one["git_commit"] or "unknown (not run from a checkout)")
        lines.append(f"- Commit: {', '.join(commits)}")
        lines.append(f"- Device: {', '.join(_distinct(environments, lambda one: str(one['device'])))}")
        systems = _distinct(
            environments, lambda one: f"{one['platform']}, Python {one['python']}, {one['threads']} threads"
        )
        lines.append(f"- System: {'; '.join(systems)}")
        versions = _distinct(
            environments, lambda one: ", ".join(f"{name} {version}" for name, version in one["versions"].items())
        )
        lines.append(f"- Versions: {'; '.join(versions)}")
        lines.append("- Each run's whole recipe: `runs/<run>/recipe.yaml`; each run's figures: `runs.csv`.")
        return "\n".join(lines)


_SIZE_NOTE = (
    "Equal steps. Every row and seed trains on the same pictures; a smaller share is part of a larger one. The best "
    "step is chosen on the whole validation split."
)


def write_tables(folder: Path, study: Mapping[str, Any], runs: Sequence[RunScores]) -> AblationResult:
    """Writes ``table.md``, ``table.csv``, ``runs.csv``, ``plot.svg`` and, with sizes, ``sizes.csv`` and
    ``plot-sizes.svg``. They follow from the runs' results alone.

    Args:
        folder: of the study.
        study: what ``study.json`` holds, with ``split`` and ``training_pictures``.
        runs: finished runs, in any order.
    """
    result = summarize(folder, study, runs)
    write_text(folder / TABLE_MD, result.to_markdown())
    write_text(folder / TABLE_CSV, _csv(_table_lines(result)))
    write_text(folder / RUNS_CSV, _csv(_run_lines(result)))
    write_text(folder / PLOT, _plot(result))
    if result.sizes:
        write_text(folder / SIZES_CSV, _csv(_size_lines(result)))
        write_text(folder / SIZES_PLOT, _size_plot(result))
    return result


def summarize(folder: Path, study: Mapping[str, Any], runs: Sequence[RunScores]) -> AblationResult:
    """Means, intervals and differences of the runs; arguments as for :func:`write_tables`."""
    order = {row: number for number, row in enumerate(study["grid"])}
    runs = sorted(runs, key=lambda run: (order[run.row], run.share, run.budget, run.seed))
    found: _Found = {}
    for run in runs:
        found.setdefault((run.row, run.budget, run.share), {})[run.seed] = run.measures
    baseline, shares = study["baseline"], sorted({run.share for run in runs})
    for row in order:
        _add_runs_of_equal_time(found, row, baseline, study["recipe"]["training"]["steps"])

    def summaries(row: str, keys: Sequence[_Kind]) -> dict[_Kind, Summary]:
        return {
            (budget, share): _summary(found[row, budget, share], found, baseline, row, share)
            for budget, share in keys
            if (row, budget, share) in found
        }

    rows = {row: summaries(row, [(EQUAL_STEPS, 1.0), (EQUAL_TIME, 1.0)]) for row in order}
    sizes = {row: summaries(row, [(EQUAL_STEPS, share) for share in shares]) for row in order}
    return AblationResult(
        folder,
        study,
        runs,
        {row: {budget: one for (budget, _), one in of_row.items()} for row, of_row in rows.items() if of_row},
        {row: {share: one for (_, share), one in of_row.items()} for row, of_row in sizes.items() if len(of_row) > 1},
    )


def steps_in_equal_time(steps: int, baseline_seconds: float, row_seconds: float) -> int:
    """The steps of a row that take as long as the baseline's; no more than ``steps``, and at least one.

    Args:
        steps: the baseline's.
        baseline_seconds: its seconds a step.
        row_seconds: the row's seconds a step.
    """
    return max(1, min(steps, round(steps * baseline_seconds / row_seconds)))


def pictures_in_share(pictures: int, share: float) -> int:
    """How many of some pictures a share of them is, at least one."""
    return max(1, round(share * pictures))


_BySeed = dict[int, Mapping[str, float]]
_Kind = tuple[str, float]
_Found = dict[tuple[str, str, float], _BySeed]


def _add_runs_of_equal_time(found: _Found, row: str, baseline: str, steps: int) -> None:
    """A row that is no slower than the baseline has its run of equal time already: that of equal steps."""
    of_row = found.get((row, EQUAL_STEPS, 1.0), {})
    for seed in sorted(of_row.keys() & found.get((baseline, EQUAL_STEPS, 1.0), {}).keys()):
        seconds = [found[name, EQUAL_STEPS, 1.0][seed]["seconds_per_step"] for name in (baseline, row)]
        if steps_in_equal_time(steps, *seconds) == steps:
            found.setdefault((row, EQUAL_TIME, 1.0), {})[seed] = of_row[seed]


def _summary(by_seed: _BySeed, found: _Found, baseline: str, row: str, share: float) -> Summary:
    of_baseline = found.get((baseline, EQUAL_STEPS, share), {})

    def of(name: str, runs: _BySeed) -> dict[int, float]:
        return {seed: measures[name] for seed, measures in sorted(runs.items()) if name in measures}

    def known(estimates: dict[str, Estimate | None]) -> dict[str, Estimate]:
        return {name: one for name, one in estimates.items() if one is not None}

    return Summary(
        known({name: estimate(list(of(name, by_seed).values())) for name in MEASURES}),
        known({name: paired_difference(of(name, by_seed), of(name, of_baseline)) for name in MEASURES})
        if row != baseline
        else {},
    )


# ---------------------------------------------------------------------- plots


def _plot(result: AblationResult) -> str:
    rows = list(result.rows)
    return intervals_svg(
        f"Mean R@1 on the {result.study['split']} split",
        "percent; bars: 95 % interval over seeds",
        rows,
        {
            budget: [_point(result.rows[row].get(budget), "values") for row in rows]
            for budget in (EQUAL_STEPS, EQUAL_TIME)
        },
    )


def _size_plot(result: AblationResult) -> str:
    return lines_svg(
        f"Gain over {result.study['baseline']} by training-set size",
        "training pictures",
        "points of mean R@1; bars: 95 % interval over seeds",
        {
            row: [
                (pictures_in_share(result.study["training_pictures"], share), *point)
                for share, summary in shares.items()
                if (point := _point(summary, "differences")) is not None
            ]
            for row, shares in result.sizes.items()
            if row != result.study["baseline"]
        },
    )


def _point(summary: Summary | None, kind: str) -> tuple[float, float] | None:
    """Mean and half of the interval (0 for one seed) of the mean R@1."""
    found = None if summary is None else getattr(summary, kind).get(MAIN)
    return None if found is None else (found.mean, _half(found) or 0.0)


# ---------------------------------------------------------------------- lines of CSV


def _table_lines(result: AblationResult) -> Iterator[dict[str, Any]]:
    for row, budgets in result.rows.items():
        line: dict[str, Any] = {"row": row, "seeds": budgets[EQUAL_STEPS].values[MAIN].seeds}
        for budget in (EQUAL_STEPS, EQUAL_TIME):
            line |= _columns(budgets.get(budget), MEASURES, f"{budget.replace(' ', '_')}_")
        yield line


def _size_lines(result: AblationResult) -> Iterator[dict[str, Any]]:
    for row, shares in result.sizes.items():
        for share, summary in shares.items():
            pictures = pictures_in_share(result.study["training_pictures"], share)
            seeds = summary.values[MAIN].seeds
            yield {"row": row, "share": share, "pictures": pictures, "seeds": seeds} | _columns(summary, MEASURES, "")


def _run_lines(result: AblationResult) -> Iterator[dict[str, Any]]:
    for run in result.runs:
        line = {"row": run.row, "seed": run.seed, "budget": run.budget, "share": run.share}
        yield line | {name: run.measures.get(name) for name in MEASURES}


def _columns(summary: Summary | None, measures: Sequence[str], prefix: str) -> dict[str, Any]:
    columns: dict[str, Any] = {}
    for name in measures:
        for ending, estimates in (("", summary and summary.values), ("_difference", summary and summary.differences)):
            found = (estimates or {}).get(name)
            low, high = (found and found.interval) or (None, None)
            key = f"{prefix}{name}{ending}"
            columns |= {key: found and found.mean, f"{key}_low": low, f"{key}_high": high}
    return columns


def _csv(lines: Iterator[dict[str, Any]]) -> str:
    """Lines of the same keys as CSV; what is not known is an empty field."""
    every = list(lines)
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, every[0], lineterminator="\n")
    writer.writeheader()
    writer.writerows(every)
    return buffer.getvalue()


# ---------------------------------------------------------------------- cells


def _text(found: Estimate | None, decimals: int, sign: bool = False) -> str:
    if found is None:
        return "–"
    mean, half = f"{found.mean:{'+' if sign else ''}.{decimals}f}", _half(found)
    return mean if half is None else f"{mean} ± {half:.{decimals}f}"


def _half(found: Estimate) -> float | None:
    return None if found.interval is None else (found.interval[1] - found.interval[0]) / 2


def _distinct(ones: Sequence[Mapping[str, Any]], text: Callable[[Mapping[str, Any]], str]) -> list[str]:
    return list(dict.fromkeys(text(one) for one in ones))


def _markdown(header: Sequence[str], rows: Sequence[Sequence[str]], words: int = 1) -> str:
    """A table whose first columns are words, and the others numbers."""
    lines = [header, ["---"] * words + ["---:"] * (len(header) - words), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def _rich(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    table = Table(title=title)
    for number, heading in enumerate(header):
        table.add_column(heading, justify="left" if number == 0 else "right")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))  # a row's name may look like markup
    return table
