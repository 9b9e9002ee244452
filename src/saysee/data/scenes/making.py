"""One image of the corpus with its clips: drawn, spoken and written. Worker processes run this module.

It imports neither torch nor pyarrow, so a worker starts in half a second.
"""

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from saysee.data.scenes.drawing import draw_scene
from saysee.data.scenes.grammar import say
from saysee.data.scenes.planning import PlannedScene, image_id
from saysee.data.scenes.speakers import speakers_of
from saysee.data.scenes.speech import SAMPLE_RATE, Utterance, synthesize
from saysee.files import write_bytes

RECORDS = "records"  # folder of the rows of finished images, until all are made


def image_path(index: int) -> str:
    """The path of an image in the corpus; a thousand images in each folder."""
    return f"images/{index // 1000:03d}/{image_id(index)}.png"


def clip_path(index: int, language: str, caption: int) -> str:
    """The path of the clip of a caption in the corpus."""
    name = image_id(index) if language == "en" else f"{image_id(index)}-{language}"
    return f"clips/{index // 1000:03d}/{name}-{caption}.flac"


def record_path(index: int) -> str:
    """The path of the rows of an image."""
    return f"{RECORDS}/{index // 1000:03d}/{image_id(index)}.json"


def make_image(folder: Path, seed: int, image_size: int, languages: Sequence[str], planned: PlannedScene) -> None:
    """Draws an image, speaks its captions in each language, and writes all files; the record is written last."""
    index, scene = planned.index, planned.scene
    write_file(folder / image_path(index), _png(draw_scene(scene, image_size)))
    kept = ("shape", "color", "size", "fill")
    objects = [{name: getattr(item, name) for name in kept} | {"box": list(item.box)} for item in scene.objects]
    twin = None if planned.twin_index is None else image_id(planned.twin_index)
    about = {"image": image_path(index), "image_id": image_id(index), "split": planned.split}
    rows: list[dict[str, Any]] = []
    for language in languages:
        sentences = [say(caption, language) for caption in planned.captions]
        speakers = speakers_of(seed, index, planned.split, len(sentences), language)
        for number, (sentence, speaker) in enumerate(zip(sentences, speakers, strict=True)):
            utterance = synthesize(sentence.text, speaker)
            clip = clip_path(index, language, number)
            write_file(folder / clip, _flac(utterance))
            words = [
                {"word": word.name, "start": word.start, "end": word.end, "objects": list(described)}
                for word, (_, described) in zip(utterance.words, sentence.words, strict=True)
            ]
            extra = {"seconds": round(utterance.seconds, 4), "accent": speaker.accent}
            extra |= {"novel_pair": planned.novel_pair, "hard_twin": twin is not None, "twin_of": twin}
            extra |= {"objects": objects, "words": words}
            spoken = {"text": sentence.text, "speaker": speaker.id, "language": language, "extra": extra}
            rows.append({"clip": clip, **about, **spoken})
    write_file(folder / record_path(index), json.dumps(rows).encode())


def write_file(path: Path, content: bytes) -> None:
    """Writes a file atomically, but does not wait for the disk: what a power cut left empty is made again."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, content, durable=False)


def read_record(folder: Path, index: int) -> list[dict[str, Any]] | None:
    """The rows of a finished image; None if it must be made (again)."""
    try:
        rows: list[dict[str, Any]] = json.loads((folder / record_path(index)).read_bytes())
        files = [rows[0]["image"], *(row["clip"] for row in rows)]
        return rows if all((folder / file).stat().st_size > 0 for file in files) else None
    except (OSError, ValueError):
        return None


def _png(image: Any) -> bytes:
    encoded = io.BytesIO()
    image.save(encoded, "PNG", compress_level=3)
    return encoded.getvalue()


def _flac(utterance: Utterance) -> bytes:
    samples = np.clip(np.rint(utterance.samples * 32768), -32768, 32767).astype(np.int16)
    encoded = io.BytesIO()
    soundfile.write(encoded, samples, SAMPLE_RATE, format="FLAC", subtype="PCM_16")
    return encoded.getvalue()


def make_images(folder: Path, seed: int, image_size: int, languages: Sequence[str], batch: list[PlannedScene]) -> int:
    """Makes several images, and returns how many."""
    for planned in batch:
        make_image(folder, seed, image_size, languages, planned)
    return len(batch)
