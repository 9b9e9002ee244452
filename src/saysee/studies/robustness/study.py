"""Models scored on changed speech and images: one change at a time, at several strengths."""

from __future__ import annotations

import io
import json
import logging
import math
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from saysee.data.manifest import Manifest
from saysee.encoding.encoder import BATCH, Encoder
from saysee.encoding.reading import or_error, read_ahead
from saysee.errors import ConfigError, MediaError
from saysee.evaluation.cascade import heard_vectors
from saysee.evaluation.comparison import Comparison, System, row_name
from saysee.evaluation.protocols import numbered_images
from saysee.evaluation.recall import RetrievalRanks, retrieval_ranks
from saysee.evaluation.table import write_tables
from saysee.files import fingerprint, write_bytes
from saysee.log import progress_bar
from saysee.media.audio import load_audio
from saysee.media.images import load_image
from saysee.studies.robustness.conditions import (
    Condition,
    Draw,
    builtin_conditions,
    choose,
    noise_conditions,
    room_conditions,
)
from saysee.studies.robustness.result import CLEAN, Point, RobustnessResult, Scored, lines_of, points_of

logger = logging.getLogger(__name__)

POOL = 64  # clips that a second speaker and babble are drawn from
NOTHING_LEFT = ("silent", "no-speech", "too-short", "empty")  # codes of a changed clip that counts as unheard
KEPT_FORMAT = 1  # part of the key of every kept result: increase it when a condition comes to change something else


@dataclass(frozen=True)
class RobustnessSettings:
    """What is measured."""

    conditions: str = ""  # names and strengths, see ``choose``; empty for all
    split: str = "test"
    clips: int | None = None  # number of clips that are queries, drawn by the seed; None is all
    seed: int = 0
    by: Sequence[str] = ()  # columns that divide the queries into groups
    # folders of the user's own
    noises: Path | None = None
    rooms: Path | None = None


def run_robustness(
    models: Mapping[str, Callable[[], Encoder]], manifest: Manifest, to: Path, settings: RobustnessSettings
) -> RobustnessResult:
    """Scores models at every point, keeps what is finished in ``to``, and writes the tables and the picture there.

    The same call again computes only what is missing. ``models`` are what loads each, by name; one at a time is in
    memory.

    Raises SaySeeError: no such condition, strength, split or column; the split has one image only; a file cannot be
    decoded; a model has no speech side.
    """
    study = _Study(manifest, to, settings)
    systems, scored = [], []
    for name, load in models.items():
        encoder = load()
        scored.append(study.score(name, encoder))
        facts = getattr(encoder.model, "trained", None) or {}
        systems.append(System(name, [], {}, facts if "recipe" in facts and encoder.recognizer is None else None))
        del encoder  # before the next is loaded: memory for one
    rows = Comparison([], systems).rows
    names = [row_name(row) for row in rows]
    runs = [[scored[systems.index(system)] for system in row] for row in rows]
    lines = lines_of(study.points, names, runs, study.groups)
    unheard = {name: sum(line["unheard"] or 0 for line in lines if line["model"] == name) for name in names}
    notes = [
        *study.notes,
        *(
            f"{name}: nothing was heard in {count:,} clips, over all conditions"
            for name, count in unheard.items()
            if count
        ),
    ]
    result = RobustnessResult(study.conditions, names, lines, notes)
    write_tables(to, "Robustness", [result.table(), *filter(None, [result.groups()])], result.to_dict())
    write_bytes(to / "robustness.png", result.picture())
    return result


class _Study:
    """The queries and the gallery, what is kept of them, and the points."""

    def __init__(self, manifest: Manifest, to: Path, settings: RobustnessSettings) -> None:
        split = manifest.select(settings.split)
        gallery, _ = numbered_images(split)
        if len(gallery) < 2:
            raise ConfigError(f"the split {settings.split!r} has one image; a study needs at least two")
        if settings.clips is not None and settings.clips < 1:
            raise ConfigError(f"--clips is {settings.clips}; give a number of clips")
        count = len(split) if settings.clips is None else min(settings.clips, len(split))
        chosen = sorted(np.random.default_rng(settings.seed).choice(len(split), count, replace=False))
        self._queries = Manifest([split.rows[place] for place in chosen], split.root)
        self.groups = {name: self._queries.column(name) for name in settings.by}
        self._split, self._settings, self._folder = split, settings, to / "kept"
        self._own = np.array([gallery[row.image_id] for row in self._queries])
        self._clips = [split.clip_path(row) for row in self._queries]
        self._images = [split.image_path(row) for row in split.images()]
        self._others: list[tuple[str, NDArray[np.float32]]] = []
        self._gallery = _fingerprint(self._images)
        places = np.random.default_rng(settings.seed).permutation(len(split))[:POOL]
        self._pool = [split.rows[place] for place in places]  # the clips that babble is made of
        clips = [*self._clips, *map(split.clip_path, self._pool)]
        self._corpus = _fingerprint(clips, [row.image_id for row in self._queries], self._gallery)
        own = noise_conditions(settings.noises.absolute(), settings.seed) if settings.noises else []
        own += room_conditions(settings.rooms.absolute(), settings.seed) if settings.rooms else []
        self.conditions = choose(settings.conditions, [*builtin_conditions(), *own])
        self.points = points_of(self.conditions)
        to.mkdir(parents=True, exist_ok=True)

    def score(self, name: str, encoder: Encoder) -> dict[Point, Scored]:
        """The ranks of one model at all points; those that are missing are computed and kept."""
        keys = {point: self._key(_identity(encoder), point) for point in self.points}
        missing = [point for point in keys if not (self._folder / f"{keys[point]}.npz").exists()]
        sizes = {point: len(self._images if _of_images(point) else self._clips) for point in missing}
        found: dict[Point, Scored] = {}
        with progress_bar(f"{name}: changed clips and images", sum(sizes.values())) as bar:
            for point, key in keys.items():
                end = bar.n + sizes.get(point, 0)
                arrays = self._kept(key, partial(self._ranks, encoder, point, bar))
                bar.update(end - bar.n)  # also where vectors were kept
                ranks = RetrievalRanks(arrays["images"], arrays["clips"], self._own, len(self._images))
                found[point] = Scored(ranks, int(arrays["unheard"]))
        if missing:
            logger.info("%s: %d conditions and strengths scored, %d kept", name, len(missing), len(keys) - len(missing))
        return found

    @property
    def notes(self) -> list[str]:
        """What a reader needs below a table."""
        few = len(self._own) < len(self._split)
        queries = f"{len(self._own):,} of the " * few + f"{len(self._split):,} clips of {self._settings.split!r}"
        return [
            f"{queries}, {len(self._images):,} images in the gallery, seed {self._settings.seed}",
            "intervals: bootstrap over images; drop: from clean; difference: to the first model, both paired by query",
        ]

    def _ranks(self, encoder: Encoder, point: Point, bar: tqdm) -> dict[str, Any]:
        images = self._image_vectors(encoder, point if _of_images(point) else Point(), bar)
        if point.condition is None or _of_images(point):
            key = self._key([*_identity(encoder), "vectors"], Point())
            speech = self._kept(key, partial(self._clean_speech, encoder))
        else:
            speech = self._changed_speech(encoder, point, bar)
        ranks = retrieval_ranks(speech["vectors"], images, self._own)
        return {"images": ranks.speech_to_image, "clips": ranks.clip_positions, "unheard": speech["unheard"]}

    def _clean_speech(self, encoder: Encoder) -> dict[str, Any]:
        vectors, unheard = heard_vectors(encoder, self._clips)
        return {"vectors": vectors, "unheard": unheard}

    def _changed_speech(self, encoder: Encoder, point: Point, bar: tqdm) -> dict[str, Any]:
        """Vectors [N, D] of changed clips; a zero vector, which finds nothing, where nothing is left to hear."""
        assert point.condition is not None
        condition, others = point.condition, self._other_clips()

        def prepare(place: int) -> Any:
            image = self._queries.rows[place].image_id
            draw = Draw(self._rng_of(condition, place), [clip for other, clip in others if other != image])
            changed = condition.change(load_audio(self._clips[place]), point.strength, draw)
            return encoder.prepare("clip", changed, max_seconds=math.inf)  # slower speech may be longer than a file may

        vectors, unheard = np.zeros((len(self._clips), encoder.dimension), np.float32), 0
        for places, prepared in read_ahead(_batches(len(self._clips)), or_error(prepare), encoder.workers):
            clips = {}
            for place, each in zip(places, prepared, strict=True):
                if not isinstance(each, MediaError):
                    clips[place] = each
                elif each.code not in NOTHING_LEFT:
                    raise each
            if clips:
                vectors[list(clips)] = encoder.encode_prepared("clip", list(clips.values()))
            unheard += len(places) - len(clips)
            bar.update(len(places))
        return {"vectors": vectors, "unheard": unheard}

    def _image_vectors(self, encoder: Encoder, point: Point, bar: tqdm) -> NDArray[np.float32]:
        """Vectors [M, D] of the gallery: kept once for all models with the same image encoder."""

        def make() -> dict[str, Any]:
            condition = point.condition
            if condition is None:
                return {"vectors": encoder.encode_images(self._images)}

            def change(place: int) -> Any:
                draw = Draw(self._rng_of(condition, place), [])
                return condition.change(load_image(self._images[place]), point.strength, draw)

            parts = []
            for places, images in read_ahead(_batches(len(self._images)), change, encoder.workers):
                parts.append(encoder.encode_images(images, progress=False))
                bar.update(len(places))
            return {"vectors": np.concatenate(parts)}

        key = self._key([encoder.fingerprint("image"), "vectors"], point, self._gallery)
        vectors: NDArray[np.float32] = self._kept(key, make)["vectors"]
        return vectors

    def _other_clips(self) -> list[tuple[str, NDArray[np.float32]]]:
        """Image id and samples of the clips that babble is made of."""
        if not self._others:
            self._others = [(row.image_id, load_audio(self._split.clip_path(row))) for row in self._pool]
        return self._others

    def _rng_of(self, condition: Condition, place: int) -> np.random.Generator:
        """The same draws for an item at all strengths and for all models, in any order."""
        return np.random.default_rng([self._settings.seed, zlib.crc32(condition.name.encode()), place])

    def _key(self, identity: Sequence[Any], point: Point, files: str = "") -> str:
        """Of everything that a result depends on: nothing that is kept is ever of another corpus, model or seed."""
        condition = point.condition
        what = [CLEAN] if condition is None else [condition.name, point.strength, self._settings.seed]
        if condition and condition.files:
            what.append(_fingerprint(condition.files))
        return fingerprint(json.dumps([KEPT_FORMAT, files or self._corpus, *identity, *what]).encode())

    def _kept(self, key: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Arrays by name, from the folder, or made and kept."""
        path = self._folder / f"{key}.npz"
        if not path.exists():
            buffer = io.BytesIO()
            np.savez(buffer, **make())
            path.parent.mkdir(parents=True, exist_ok=True)
            write_bytes(path, buffer.getvalue())
        with np.load(path) as arrays:
            return dict(arrays)


def _identity(encoder: Encoder) -> list[Any]:
    """What the vectors of a model depend on."""
    image, recognizer = encoder.fingerprint("image"), encoder.recognizer
    if recognizer is None:
        return ["speech", encoder.fingerprint("clip"), image]
    place = Path(recognizer.name)
    files = [_fingerprint(sorted(each for each in place.iterdir() if each.is_file()))] if place.is_dir() else []
    return ["asr", recognizer.name, recognizer.language, *files, image]


def _fingerprint(files: Sequence[Path], *others: Any) -> str:
    """Of the names, sizes and times of files, and of other values."""
    states = [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    return fingerprint(json.dumps([states, *others]).encode())


def _of_images(point: Point) -> bool:
    return point.condition is not None and point.condition.kind == "image"


def _batches(count: int) -> Iterable[range]:
    return (range(start, min(start + BATCH, count)) for start in range(0, count, BATCH))
