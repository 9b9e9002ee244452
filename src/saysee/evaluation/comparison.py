"""Several models and cascades on several corpora, as the tables of a paper.

    comparison = Comparison(["flickr8k"], [System("baseline", [one]), System("CMD", [other])])
    rich.print(*comparison.tables())

- The first row is what the others are compared with: the **difference** is of the same queries. Its interval is the
  paired bootstrap: one draw of images serves both rows, so what makes images hard for both cancels.
- Runs whose recipes differ in nothing but ``training.seed`` are **one row**: the mean over them ± their standard
  deviation (n - 1). Its intervals are over images too, of that mean.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import product, takewhile
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from saysee.errors import SaySeeError
from saysee.evaluation.protocols import EvaluationResult, mteb_measures
from saysee.evaluation.recall import CUTOFFS, MEAN, WAYS, RetrievalMeasures, mean_resamples
from saysee.evaluation.statistics import with_interval
from saysee.evaluation.table import Table, number
from saysee.files import short_name

_SHORT = {"speech_to_image": "S→I", "image_to_speech": "I→S", "speech_to_text": "S→T", "text_to_speech": "T→S"}
_ALL = "all"


def _recalls(*ways: str) -> list[tuple[str, str, int]]:
    return [(f"{_SHORT[way]} R@{k}", f"{way}_R@{k}", 1) for way in ways for k in CUTOFFS]


_TWINS = [("hard twins", "hard_twins", 1), ("nearest is the twin", "twin_is_nearest_picture", 1)]
_MAIN = [("clips", "clips", 0), ("images", "images", 0), *_recalls(*WAYS), ("mean R@1 (95 %)", MEAN, 1)]
_MAIN += [("difference (95 %)", f"{MEAN}_difference", 1), *_TWINS, ("word error rate", "word_error_rate", 1)]
_MAIN += [("re-ranking (s/query)", "rerank_seconds", 4)]
_TEXT = [("clips", "clips_with_text", 0), ("texts", "texts", 0), *_recalls("speech_to_text", "text_to_speech")]
"""Heading, key in a line, and decimals of the columns; those without a value in any line are not shown."""


@dataclass(frozen=True)
class System:
    """A model or a cascade with its results."""

    name: str  # in the tables
    results: Sequence[EvaluationResult]  # one for each corpus
    about: Mapping[str, Any] = field(default_factory=dict)  # what it is, for JSON: ``model`` or ``cascade``
    # about the run that trained it, as ``SpeechImageModel.trained``; None is a row of its own
    facts: Mapping[str, Any] | None = None

    def reranked(self, results: Sequence[EvaluationResult]) -> "System":
        """The same system with its first results re-ranked, for the row below its own."""
        first = results[0].rerank and results[0].rerank.first
        facts = self.facts and {**self.facts, "recipe": {**self.facts["recipe"], "rerank": first}}
        return System(f"{self.name}, first {first} re-ranked", results, self.about, facts)


@dataclass(frozen=True)
class Comparison:
    """The results of systems on corpora."""

    corpora: Sequence[str]  # their names
    systems: Sequence[System]  # in order; the first row is the one that the others are compared with
    mteb: bool = False  # with MTEB's measures, under its names

    @cached_property
    def rows(self) -> list[list[System]]:
        """The systems of each row: runs that differ in their seed alone, or a single one."""
        rows: dict[str, list[System]] = {}
        for position, system in enumerate(self.systems):
            key = _without_seed(system.facts) or str(position)
            if any(_seed(other) == _seed(system) for other in rows.get(key, ())):
                key = str(position)  # the same run twice
            rows.setdefault(key, []).append(system)
        return list(rows.values())

    @cached_property
    def lines(self) -> list[dict[str, Any]]:
        """The rows as plain values, a line for each corpus, row and group of queries; differences to the first row.

        Raises SaySeeError if systems were scored on other queries.
        """
        return [line for corpus in range(len(self.corpora)) for line in self._lines(corpus)]

    def tables(self) -> list[Table]:
        """Retrieval of images; of texts if there are any; and MTEB's measures if asked for."""
        splits = ", ".join(dict.fromkeys(repr(result.split) for result in self.systems[0].results))
        tables = [self._table(f"Retrieval on {splits}, percent", _MAIN, self.lines, self._notes())]
        if lines := [line for line in self.lines if line.get("texts")]:
            notes = ["each text once in the gallery; text to speech: right is any clip of the text"]
            texts = [result.speech_text for result in self.systems[0].results]
            without = sum(each.clips_without_text for each in texts if each)
            notes += [f"{without:,} clips without text skipped"] if without else []
            tables.append(self._table(f"Speech and text on {splits}, percent", _TEXT, lines, notes))
        if self.mteb:
            names = list(mteb_measures(self.systems[0].results[0].overall)["speech_to_image"])
            for way in WAYS:
                columns = [(name, f"{way}_{name}", 4) for name in names]
                title = f"MTEB's measures on {splits}, {way.replace('_', ' ')}, 0 to 1"
                tables.append(self._table(title, columns, self.lines, []))
        return tables

    def to_dict(self, manifests: Sequence[str]) -> dict[str, Any]:
        """Plain JSON values, of corpora with these paths: of one model, else of ``models`` and the ``rows`` of the
        table.
        """
        models = []
        for system in self.systems:
            pairs = zip(manifests, system.results, strict=True)
            corpora = [{"manifest": manifest, **result.to_dict()} for manifest, result in pairs]
            models.append({**system.about, **(corpora[0] if len(corpora) == 1 else {"corpora": corpora})})
        return models[0] if len(models) == 1 else {"models": models, "rows": self.lines}

    def _lines(self, corpus: int) -> Iterator[dict[str, Any]]:
        first: dict[str, Any] = {}
        above: dict[str, Any] = {}
        for row in self.rows:
            results = [system.results[corpus] for system in row]
            head: dict[str, Any] = {"corpus": self.corpora[corpus], "split": results[0].split, "model": row_name(row)}
            head |= {"seeds": len(row)} if len(row) > 1 else {}
            groups = {_ALL: [result.overall for result in results]} | {
                f"{column} = {value}": [result.groups[column][value] for result in results]
                for column, values in results[0].groups.items()
                for value in values
            }
            for queries, measures in groups.items():
                values = [
                    each.named() | (_mteb(each) if self.mteb else {}) | (_others(result) if queries == _ALL else {})
                    for each, result in zip(measures, results, strict=True)
                ]
                line = head | {"queries": queries, "clips": measures[0].clips, "images": measures[0].images}
                if (line["clips"], line["images"]) != first.setdefault(queries, (line["clips"], line["images"])):
                    raise SaySeeError(f"{line['model']} was scored on other queries than the first model")
                resampled = mean_resamples(measures)
                line |= _statistics(values, resampled)
                baseline = first.setdefault(f"{queries} values", (line, resampled))
                if results[0].rerank:
                    baseline = above.get(queries, baseline)
                above[queries] = (line, resampled)
                yield line | (_differences(line, resampled, *baseline) if baseline[0] is not line else {})

    def _table(
        self, title: str, columns: Sequence[tuple[str, str, int]], lines: Sequence[dict[str, Any]], notes: Sequence[str]
    ) -> Table:
        several = {"corpus": len(self.corpora) > 1, "model": len(self.rows) > 1}
        several["queries"] = any(line["queries"] != _ALL for line in lines) or not any(several.values())
        labels = [name for name, shown in several.items() if shown]
        shown = [column for column in columns if any(line.get(column[1]) is not None for line in lines)]
        if any("seeds" in line for line in lines):
            shown = [("seeds", "seeds", 0), *shown]
        rows, sections = list[list[str]](), list[int]()
        for above, line in zip([lines[0], *lines], lines, strict=False):
            if above["corpus"] != line["corpus"] or above["queries"] == _ALL != line["queries"]:
                sections.append(len(rows))
            rows.append([str(line[name]) for name in labels] + [_cell(line, key, n) for _, key, n in shown])
        return Table(title, [*labels, *(heading for heading, _, _ in shown)], rows, len(labels), notes, sections)

    def _notes(self) -> list[str]:
        """What a reader needs below the first table."""
        notes, result = [], self.systems[0].results[0]
        if len(self.corpora) == 1:
            notes.append(f"gallery: {result.overall.gallery_images:,} images, {result.overall.gallery_clips:,} clips")
            if result.overall.chance_mean_recall_at_1 is not None:
                notes.append(f"chance mean R@1: {result.overall.chance_mean_recall_at_1:.2f}")
            if result.twin_accuracy is not None:
                notes.append(f"hard twins: of {result.twin_accuracy.clips:,} clips, chance 50")
            errors = [each.results[0].word_errors for each in self.systems]
            for words in list(filter(None, errors))[:1]:
                notes.append(f"word error rate: {words.words:,} words in {words.clips:,} clips")
        else:
            notes.append("each corpus against its own gallery")
        if len(self.rows) > 1:
            reranked = any(row[0].results[0].rerank for row in self.rows)
            also = "; of a re-ranked row, to the row above it" if reranked else ""
            notes.append(f"difference: in mean R@1, to {row_name(self.rows[0])}, paired over images{also}")
        if any(len(row) > 1 for row in self.rows):
            notes.append("±: standard deviation over seeds; intervals: over images")
        return notes


def row_name(row: Sequence[System]) -> str:
    """The name of a single system, or what the names of several have in common."""
    names = [system.name for system in row]
    if len(names) == 1:
        return names[0]
    start = _common_start(names)
    end = _common_start([name[len(start) :][::-1] for name in names])[::-1]
    return f"{start}*{end}" if start or end else ", ".join(names)


def _common_start(names: Sequence[str]) -> str:
    return "".join(letters[0] for letters in takewhile(lambda each: len(set(each)) == 1, zip(*names, strict=False)))


def short_names(places: Sequence[str], splits: Sequence[str] = ()) -> list[str]:
    """Short names of models or of manifests: the folder of ``best`` and of ``manifest.parquet``, else the own name.

    Names that two would share are whole paths. If the ``splits``, one for each manifest, differ, ":SPLIT" is appended.
    """

    of_place = {place: short_name(place) for place in places}
    for place, name in of_place.items():
        if name == Path(place).name and not Path(place).is_dir():
            of_place[place] = place  # on the hub
    common = list(of_place.values())
    names = [of_place[place] if common.count(of_place[place]) == 1 else place for place in places]
    return [f"{name}:{split}" for name, split in zip(names, splits, strict=True)] if len(set(splits)) > 1 else names


def _without_seed(facts: Mapping[str, Any] | None) -> str | None:
    """Data and recipe of a run but for its seed, as text."""
    if facts is None:
        return None
    training = {name: value for name, value in facts["recipe"].get("training", {}).items() if name != "seed"}
    return json.dumps([facts["data"], facts["recipe"] | {"training": training}], sort_keys=True)


def _seed(system: System) -> Any:
    return system.facts and system.facts["recipe"].get("training", {}).get("seed")


def _mteb(measures: RetrievalMeasures) -> dict[str, float]:
    return {f"{way}_{name}": value for way, of in mteb_measures(measures).items() for name, value in of.items()}


def _others(result: EvaluationResult) -> dict[str, float]:
    """The values of a result besides the retrieval of images."""
    found: dict[str, float] = {}
    if text := result.speech_text:
        ways = product(("speech_to_text", "text_to_speech"), CUTOFFS)
        found = {f"{way}_R@{k}": getattr(text, way)[f"R@{k}"] for way, k in ways}
        found |= {"clips_with_text": text.clips, "texts": text.texts}
    if twins := result.twin_accuracy:
        found |= {"hard_twins": twins.accuracy, "twin_is_nearest_picture": twins.nearest}
    found |= {"rerank_seconds": result.rerank.seconds} if result.rerank else {}
    return found | ({"word_error_rate": result.word_errors.rate} if result.word_errors else {})


def _statistics(values: Sequence[Mapping[str, float]], resampled: Mapping[str, Any]) -> dict[str, float]:
    """Mean, deviation and interval of each value."""
    line: dict[str, float] = {}
    for name in values[0]:
        of_runs = [each[name] for each in values]
        line[name] = fmean(of_runs)
        line |= {f"{name}_deviation": stdev(of_runs)} if len(values) > 1 else {}
        line |= with_interval(name, line[name], resampled[name]) if name in resampled else {}
    return line


def _differences(
    line: Mapping[str, Any], resampled: Mapping[str, Any], first: Mapping[str, Any], of_first: Mapping[str, Any]
) -> dict[str, float]:
    """Difference to the first row and its paired interval, of each measure that is resampled."""
    found: dict[str, float] = {}
    for name in sorted(resampled.keys() & of_first.keys()):
        found |= with_interval(f"{name}_difference", line[name] - first[name], resampled[name] - of_first[name])
    return found


def _cell(line: Mapping[str, Any], key: str, decimals: int) -> str:
    """A value with its deviation; mean R@1 and its difference with their intervals."""
    ends = [line.get(f"{key}_{end}") for end in ("low", "high")] if key.startswith(MEAN) else [None]
    interval: Any = None if None in ends else ends
    spread = line.get(f"{key}_deviation") if decimals else None
    return number(line.get(key), decimals, spread=spread, interval=interval, sign=key.endswith("_difference"))
