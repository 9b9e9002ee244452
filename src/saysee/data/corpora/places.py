"""Places audio captions (Harwath and others, NeurIPS 2016; 400k release): scenes of Places205, described freely.

As published: ``metadata/{train,val}.json`` with ``{"image_base_path", "audio_base_path", "data": [{"uttid", "speaker",
"asr_text", "wav", "image"}, …]}``. The base paths are those of another machine and are not used. The text is a
recogniser's, not a person's. The splits of 2020 (``test_seen_2020.json`` and the like) keep their names.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from saysee.data.corpora.finding import (
    FileIndex,
    list_folders,
    read_json_records,
    split_families,
)
from saysee.data.corpora.preparing import Caption, Expected, Prepared, check_target, listed_caption, prepare
from saysee.errors import ManifestError, SaySeeError
from saysee.media.folders import Listing
from saysee.media.formats import AUDIO_SUFFIXES, IMAGE_SUFFIXES

EXPECTED = Expected(
    "Places audio (400k)",
    clips={"train": 400_000, "val": 1000},
    clips_within=0.01,  # "400k" is round: releases have some thousand more
)


def prepare_places(
    metadata: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    audio: str | os.PathLike[str],
    images: str | os.PathLike[str],
    to: str | os.PathLike[str],
    *,
    allow_missing: int = 0,
) -> Prepared:
    """Write the manifest of a copy of the Places audio captions.

    Args:
        metadata: the folder of the JSON files, or the files themselves; a file's name says its split.
        audio: folder of the clips, in whatever layout.
        images: folder of Places205's pictures, likewise.
        to: the manifest, ``.parquet`` or ``.jsonl``.
        allow_missing: how many clips and pictures may be missing or empty.

    Raises:
        SaySeeError: a folder is missing, there are no JSON files, or more files are lacking than allowed.
        ManifestError: a JSON file cannot be read, or contradicts another.
        ConfigError: ``allow_missing`` is negative.
    """
    target = check_target(to, allow_missing)
    files, notes = _choose_files([metadata] if isinstance(metadata, str | os.PathLike) else metadata)
    sounds, pictures = list_folders(audio, images)
    return prepare(
        [caption for split, path in files for caption in _captions(path, split)],
        FileIndex(sounds, AUDIO_SUFFIXES),
        FileIndex(pictures, IMAGE_SUFFIXES),
        target,
        allow_missing=allow_missing,
        expected=EXPECTED,
        notes=notes,
    )


def _choose_files(given: Sequence[str | os.PathLike[str]]) -> tuple[list[tuple[str, Path]], list[str]]:
    """The JSON files with their splits, and notes; files that are named are all taken, of a folder one set."""
    files: list[tuple[str, Path]] = []
    others: list[str] = []
    for path in map(Path, given):
        folder = path.is_dir()
        found = [Path(name) for name in Listing(path, "--metadata").files((".json",))] if folder else [path]
        found.sort(key=lambda name: len(name.parts))
        families = split_families(found)
        if not families:
            what = "no train.json or val.json in it" if folder else "no split in its name; rename it train.json, say"
            raise SaySeeError(f"{path}: {what} (--metadata)")
        chosen = min(families, key=lambda family: (len(family), family))
        files += families[chosen].items()
        others += [name.name for family in families if family != chosen for name in families[family].values()]
    note = f"captions are from {', '.join(path.name for _, path in files)}"
    return files, [f"{note}; not used: {', '.join(others)} (name files by --metadata)" if others else note]


def _captions(path: Path, split: str) -> Iterator[Caption]:
    for number, record in enumerate(read_json_records(path, "data"), 1):
        where = f"{path}: entry {number}"
        image = record.get("image")
        if not isinstance(image, str) or not image:
            raise ManifestError(f"{where} has no 'image'; copy the file again")
        yield listed_caption(record, "asr_text", image, split, where)
