"""One image of the corpus with its clips: drawn, spoken, written. This is what the worker processes run.

It imports neither torch nor pyarrow, so that a worker starts in half a second.
"""

from __future__ import annotations

import io
import json
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from numpy.typing import NDArray

from saysee.data.scenes.drawing import draw_scene
from saysee.data.scenes.planning import PlannedScene, image_id
from saysee.data.scenes.speakers import speakers_of
from saysee.data.scenes.speech import SAMPLE_RATE, synthesise

# Files are written under a name of this beginning and then renamed, so that a file of the corpus is always whole.
UNFINISHED = ".unfinished-"
RECORDS = "records"
"""The folder in which the rows of finished images wait."""


def image_path(index: int) -> str:
    """Where the picture lies in the corpus; a thousand to a folder."""
    return f"images/{index // 1000:03d}/{image_id(index)}.png"


def clip_path(index: int, caption: int) -> str:
    """Where the clip of this caption lies in the corpus."""
    return f"clips/{index // 1000:03d}/{image_id(index)}-{caption}.flac"


def record_path(index: int) -> str:
    """Where the image's rows wait until all images are made."""
    return f"{RECORDS}/{index // 1000:03d}/{image_id(index)}.json"


def make_image(folder: Path, seed: int, picture_size: int, planned: PlannedScene) -> None:
    """Draws the picture, speaks its captions, and writes them; the record comes last, and says that all is there.

    Raises:
        MissingExtraError: if the synthesiser is not installed.
        OSError: if a file cannot be written.
    """
    index, scene = planned.index, planned.scene
    picture = draw_scene(scene, picture_size)
    write_whole(folder / image_path(index), lambda path: picture.save(path, "PNG", compress_level=3))
    objects = [
        {"shape": item.shape, "color": item.color, "size": item.size, "fill": item.fill, "box": list(item.box)}
        for item in scene.objects
    ]
    speakers = speakers_of(seed, index, planned.split, len(planned.captions))
    rows: list[dict[str, Any]] = []
    for number, (caption, speaker) in enumerate(zip(planned.captions, speakers, strict=True)):
        utterance = synthesise(caption.text, speaker)
        samples = np.clip(np.rint(utterance.samples * 32768), -32768, 32767).astype(np.int16)
        write_whole(folder / clip_path(index, number), partial(_write_flac, samples))
        rows.append(
            {
                "clip": clip_path(index, number),
                "image": image_path(index),
                "image_id": planned.image_id,
                "split": planned.split,
                "text": caption.text,
                "speaker": speaker.id,
                "language": "en",
                "extra": {
                    "seconds": round(utterance.seconds, 4),
                    "accent": speaker.accent,
                    "novel_pair": planned.novel_pair,
                    "hard_twin": planned.twin_index is not None,
                    "twin_of": None if planned.twin_index is None else image_id(planned.twin_index),
                    "objects": objects,
                    "words": [
                        {"word": said.word, "start": said.start, "end": said.end, "objects": list(spoken_of)}
                        for said, (_, spoken_of) in zip(utterance.words, caption.words, strict=True)
                    ],
                },
            }
        )
    write_whole(folder / record_path(index), lambda path: path.write_text(json.dumps(rows)))


def _write_flac(samples: NDArray[np.int16], path: Path) -> None:
    # By way of memory: libsndfile itself does not say why a file could not be written (a full disk, say).
    encoded = io.BytesIO()
    soundfile.write(encoded, samples, SAMPLE_RATE, format="FLAC", subtype="PCM_16")
    path.write_bytes(encoded.getbuffer())


def read_record(folder: Path, index: int) -> list[dict[str, Any]] | None:
    """The rows of a finished image; None if it must be made, or made again (after a power cut, files may be empty)."""
    try:
        rows: list[dict[str, Any]] = json.loads((folder / record_path(index)).read_bytes())
        files = [rows[0]["image"], *(row["clip"] for row in rows)]
        return rows if all((folder / file).stat().st_size > 0 for file in files) else None
    except (OSError, ValueError):
        return None


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Writes a file that is either whole or not there.

    It is not forced to disk: a killed process loses nothing that it has renamed, but a power cut may. To force each of
    a corpus's files would take longer than to make them; a file that a power cut emptied is made again on the next
    call.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"{UNFINISHED}{os.getpid()}-{path.name}")
    try:
        write(unfinished)
        os.replace(unfinished, path)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise


# --- what the processes of a pool run ---


def start_worker() -> None:
    """Prepares a worker: the parent alone answers Ctrl-C, and a worker does not outlive a killed parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: Any) -> None:
    parent.join()
    os._exit(1)


def make_images(folder: Path, seed: int, picture_size: int, batch: list[PlannedScene]) -> int:
    """Makes several images, and returns how many."""
    for planned in batch:
        make_image(folder, seed, picture_size, planned)
    return len(batch)
