"""The tables of an ablation: means over seeds and differences to the baseline, as Markdown, LaTeX, CSV and plots."""

import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader

from saysee.evaluation.statistics import Estimate, estimate, paired_difference
from saysee.evaluation.table import NONE, Table, csv_text, number
from saysee.files import write_text
from saysee.studies.plots import intervals_svg, lines_svg

EQUAL_STEPS, EQUAL_TIME = "equal steps", "equal wall time"

MAIN = "mean_R@1"
RECALLS = {
    f"{way}_R@{k}": f"{heading} R@{k}"
    for way, heading in (("speech_to_image", "S→I"), ("image_to_speech", "I→S"))
    for k in (1, 5, 10)
}
LANGUAGE = "speech_to_image_R@1_"
"""Before the name of a language: recall of its clips among all images, where the split has several languages."""
_COLUMNS = {name: (heading, 1) for name, heading in RECALLS.items()} | {
    "hard_twins": ("hard twins", 1),
    "novel_pairs_R@1": ("novel pairs R@1", 1),
    "attention_lift": ("attention lift", 2),
    "seconds_per_step": ("seconds a step", 3),
    "peak_memory_mib": ("peak memory, MiB", 0),
}
"""Heading and decimals of the columns of equal steps by measure; those that no run has are not shown."""

TABLE_MD = "table.md"


@dataclass(frozen=True)
class RunScores:
    """A finished run."""

    row: str  # name of the row
    seed: int  # its seed
    budget: str  # ``EQUAL_STEPS`` or ``EQUAL_TIME``
    share: float  # of the training images
    measures: Mapping[str, float]  # those of ``measure_names`` that the corpus and the row have
    evaluation: Mapping[str, Any]  # from ``EvaluationResult.to_dict``
    environment: Mapping[str, Any]  # the run's ``environment.json``


@dataclass(frozen=True)
class Summary:
    """One row with one budget and one share of the training images."""

    values: Mapping[str, Estimate]  # mean over seeds by measure
    # mean difference to the baseline with the same seed, by measure; empty for the baseline
    differences: Mapping[str, Estimate]
    gains: Mapping[str, Estimate]  # the same to the row above; empty if the grid is no ladder, see ``is_ladder``

    @property
    def seeds(self) -> int:
        """Number of seeds."""
        return self.values[MAIN].seeds

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {kind: {name: one.to_dict() for name, one in each.items()} for kind, each in vars(self).items()}

    def cells(self) -> list[str]:
        """Mean R@1 and its difference."""
        return [_cell(self.values.get(MAIN), 2), _cell(self.differences.get(MAIN), 2, sign=True)]

    def columns(self, prefix: str = "") -> dict[str, Any]:
        """Mean and interval of each measure and of its differences, for CSV."""
        columns: dict[str, Any] = {}
        for name in self.values:
            for end, of in (("", self.values), ("_difference", self.differences), ("_over_row_above", self.gains)):
                if found := of.get(name):
                    key = f"{prefix}{name}{end}"
                    low, high = found.interval or (None, None)
                    columns |= {key: found.mean, f"{key}_low": low, f"{key}_high": high}
        return columns


@dataclass(frozen=True)
class AblationResult:
    """The result of a study."""

    folder: Path  # of the study
    study: Mapping[str, Any]  # contents of ``study.json``, with the split and the number of training images
    runs: Sequence[RunScores]  # every finished run
    rows: Mapping[str, Mapping[str, Summary]]  # summaries by row, the baseline first, and budget
    # summaries by row and share of the training images; empty if there are only runs on all of them
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
        rows = {
            row: {name.replace(" ", "_"): one.to_dict() for name, one in of.items()} for row, of in self.rows.items()
        }
        sizes = {row: {f"{share:g}": one.to_dict() for share, one in of.items()} for row, of in self.sizes.items()}
        about = {"folder": str(self.folder), "table": str(self.folder / TABLE_MD), "split": self.study["split"]}
        return about | {"baseline": self.study["baseline"], "seeds": self.seeds, "rows": rows, "sizes": sizes}

    def to_tables(self) -> list[Table]:
        """The table of the rows, and that of the sizes if there are any."""
        title = f"{self.study['split']} split, percent; mean ± half of the 95 % interval over seeds"
        tables = [_main_table(title, self.rows)]
        if self.sizes:
            lines = [
                [row, f"{share:g}", str(self.images_in(share)), str(summary.seeds), *summary.cells()]
                for row, shares in self.sizes.items()
                for share, summary in shares.items()
            ]
            headings = ["row", "share", "images", "seeds", "mean R@1", "difference"]
            tables.append(Table("Gain in mean R@1 by training images", headings, lines))
        return tables


def write_tables(folder: Path, study: Mapping[str, Any], runs: Sequence[RunScores]) -> AblationResult:
    """Writes tables and plots of finished runs, which depend on nothing but the arguments.

    ``study`` is the contents of ``study.json``, with ``split``, ``training_images`` and ``equal_time``: whether runs of
    equal time are shown.
    """
    result = _summarize(folder, study, runs)
    files = {
        TABLE_MD: _markdown(result),
        "table.tex": "\n\n".join(table.to_latex() for table in result.to_tables()) + "\n",
        "table.csv": csv_text(_row_lines(result)),
        "runs.csv": csv_text(
            {"row": run.row, "seed": run.seed, "budget": run.budget, "share": run.share}
            | {name: run.measures[name] for name in measure_names(result.runs) if name in run.measures}
            for run in result.runs
        ),
        "plot.svg": _plot(result),
    }
    if result.sizes:
        files |= {"sizes.csv": csv_text(_size_lines(result)), "plot-sizes.svg": _size_plot(result)}
    for name, text in files.items():
        write_text(folder / name, text)
    return result


def _summarize(folder: Path, study: Mapping[str, Any], runs: Sequence[RunScores]) -> AblationResult:
    """Means, intervals and differences of the runs."""
    rows, baseline, steps = list(study["grid"]), study["baseline"], study["recipe"]["training"]["steps"]
    runs = [run for run in runs if study["equal_time"] or run.budget == EQUAL_STEPS]
    runs = sorted(runs, key=lambda run: (rows.index(run.row), run.share, run.budget, run.seed))
    found: dict[tuple[str, str, float], dict[int, Mapping[str, float]]] = {}
    for run in runs:
        found.setdefault((run.row, run.budget, run.share), {})[run.seed] = run.measures
    names = measure_names(runs)
    of_baseline = found.get((baseline, EQUAL_STEPS, 1.0), {})
    for row in rows if study["equal_time"] else ():  # the runs of a row that is not slower are those of equal time too
        for seed, measures in found.get((row, EQUAL_STEPS, 1.0), {}).items():
            seconds = [each["seconds_per_step"] for each in (of_baseline.get(seed), measures) if each]
            if len(seconds) == 2 and steps_in_equal_time(steps, *seconds) == steps:
                found.setdefault((row, EQUAL_TIME, 1.0), {})[seed] = measures

    def by_seed(name: str, runs: Mapping[int, Mapping[str, float]]) -> dict[int, float]:
        return {seed: measures[name] for seed, measures in sorted(runs.items()) if name in measures}

    def summary(row: str, budget: str, share: float) -> Summary:
        mine = {name: by_seed(name, found[row, budget, share]) for name in names}
        values = {name: estimate(list(each.values())) for name, each in mine.items()}

        def over(other: Mapping[int, Mapping[str, float]]) -> dict[str, Estimate | None]:
            return {name: paired_difference(each, by_seed(name, other)) for name, each in mine.items()}

        differences = {} if row == baseline else over(found.get((baseline, EQUAL_STEPS, share), {}))
        above = [found[each, budget, share] for each in rows[: rows.index(row)] if (each, budget, share) in found]
        gains = over(above[-1]) if above and is_ladder(study["grid"]) else {}
        return Summary(*({name: one for name, one in of.items() if one} for of in (values, differences, gains)))

    budgets: dict[str, dict[str, Summary]] = {}
    sizes: dict[str, dict[float, Summary]] = {}
    for row, budget, share in sorted(found, key=lambda key: (rows.index(key[0]), *key[1:])):
        one = summary(row, budget, share)
        if share == 1:
            budgets.setdefault(row, {})[budget] = one
        if budget == EQUAL_STEPS:
            sizes.setdefault(row, {})[share] = one
    several = {row: summaries for row, summaries in sizes.items() if len(summaries) > 1}
    return AblationResult(folder, study, runs, budgets, several)


def measure_names(runs: Sequence[RunScores]) -> list[str]:
    """The measures that runs may have, by their names in the CSV files."""
    return [MAIN, *_columns(run.measures for run in runs), "steps", "best_step", "training_seconds"]


def _columns(measures: Iterable[Mapping[str, Any]]) -> dict[str, tuple[str, int]]:
    languages = sorted({name for each in measures for name in each if name.startswith(LANGUAGE)})
    return {name: (f"S→I R@1, {name.removeprefix(LANGUAGE)}", 1) for name in languages} | _COLUMNS


def is_ladder(grid: Mapping[str, Mapping[str, Any]]) -> bool:
    """Whether there are three rows or more, and each changes one setting of the row above it."""
    pairs = list(itertools.pairwise(grid.values()))
    return len(pairs) > 1 and all(
        sum(value != above.get(name) for name, value in below.items() if name in above) == 1 for above, below in pairs
    )


def steps_in_equal_time(steps: int, baseline_seconds: float, row_seconds: float) -> int:
    """Steps of a row that take as long as the baseline's, from 1 to ``steps``, from their seconds a step."""
    return max(1, min(steps, round(steps * baseline_seconds / row_seconds)))


def images_in_share(images: int, share: float) -> int:
    """Number of images in a share of them, at least one."""
    return max(1, round(share * images))


def _main_table(title: str, rows: Mapping[str, Mapping[str, Summary]]) -> Table:
    of_steps = [budgets[EQUAL_STEPS] for budgets in rows.values()]
    columns = _columns(one.values for one in of_steps).items()
    shown = [(name, *column) for name, column in columns if any(name in one.values for one in of_steps)]
    gains, with_time = any(one.gains for one in of_steps), any(EQUAL_TIME in budgets for budgets in rows.values())
    header = ["row", "seeds", "mean R@1", "difference", *(["over the row above"] if gains else [])]
    header += [heading for _, heading, _ in shown]
    header += ["equal time: steps", "equal time: mean R@1", "equal time: difference"] if with_time else []
    cells = []
    for row, budgets in rows.items():
        steps, time = budgets[EQUAL_STEPS], budgets.get(EQUAL_TIME)
        line = [row, str(steps.seeds), *steps.cells()]
        line += [_cell(steps.gains.get(MAIN), 2, sign=True)] if gains else []
        line += [_cell(steps.values.get(measure), decimals) for measure, _, decimals in shown]
        if with_time:
            line += [f"{time.values['steps'].mean:.0f}", *time.cells()] if time else [NONE] * 3
        cells.append(line)
    return Table(title, header, cells)


def _cell(found: Estimate | None, decimals: int, sign: bool = False) -> str:
    return NONE if found is None else number(found.mean, decimals, spread=found.half_width, sign=sign)


def _markdown(result: AblationResult) -> str:
    """The tables, and how they were made."""

    def distinct(text: Callable[[Mapping[str, Any]], str]) -> list[str]:
        return list(dict.fromkeys(text(run.environment) for run in result.runs))

    def settings(row: str) -> str:
        return "; ".join(f"{name}: {json.dumps(value)}" for name, value in result.study["grid"][row].items())

    tables = [table.to_markdown() for table in result.to_tables()]
    rows = Table("", ["row", "settings over the recipe"], [[row, settings(row)] for row in result.rows], labels=2)
    template = Environment(loader=PackageLoader("saysee", "studies")).get_template("ablation/table.md")
    text = template.render(
        study=result.study,
        overall=result.runs[0].evaluation["overall"],
        seeds=result.seeds,
        measures={name for run in result.runs for name in run.measures},
        languages=any(name.startswith(LANGUAGE) for run in result.runs for name in run.measures),
        ladder=any(budgets[EQUAL_STEPS].gains for budgets in result.rows.values()),
        with_time=any(EQUAL_TIME in budgets for budgets in result.rows.values()),
        table=tables[0],
        sizes=tables[1] if result.sizes else None,
        rows=rows.to_markdown(),
        commits=distinct(lambda one: one["git_commit"] or "unknown (not run from a checkout)"),
        devices=distinct(lambda one: str(one["device"])),
        systems=distinct(lambda one: f"{one['platform']}, Python {one['python']}, {one['threads']} threads"),
        versions=distinct(lambda one: ", ".join(f"{name} {version}" for name, version in one["versions"].items())),
    )
    return f"{text}\n"


def _plot(result: AblationResult) -> str:
    rows, budgets = result.rows, [EQUAL_STEPS, EQUAL_TIME] if result.study["equal_time"] else [EQUAL_STEPS]
    series = {each: [_point(of[each].values) if each in of else None for of in rows.values()] for each in budgets}
    title = f"Mean R@1 on the {result.study['split']} split"
    return intervals_svg(title, "percent; bars: 95 % interval over seeds", list(rows), series)


def _size_plot(result: AblationResult) -> str:
    baseline = result.study["baseline"]
    series = {
        row: [(result.images_in(share), *point) for share, one in of.items() if (point := _point(one.differences))]
        for row, of in result.sizes.items()
        if row != baseline
    }
    axis = "training images; bars: 95 % interval over seeds"
    return lines_svg(f"Gain over {baseline} by training-set size", axis, "points of mean R@1", series)


def _point(estimates: Mapping[str, Estimate]) -> tuple[float, float] | None:
    """Mean R@1 and half of its interval, 0 for one seed."""
    found = estimates.get(MAIN)
    return None if found is None else (found.mean, found.half_width or 0.0)


def _row_lines(result: AblationResult) -> Iterator[dict[str, Any]]:
    for row, budgets in result.rows.items():
        line: dict[str, Any] = {"row": row, "seeds": budgets[EQUAL_STEPS].seeds}
        for budget, summary in budgets.items():
            line |= summary.columns(f"{budget.replace(' ', '_')}_")
        yield line


def _size_lines(result: AblationResult) -> Iterator[dict[str, Any]]:
    for row, shares in result.sizes.items():
        for share, summary in shares.items():
            line = {"row": row, "share": share, "images": result.images_in(share), "seeds": summary.seeds}
            yield line | summary.columns()
