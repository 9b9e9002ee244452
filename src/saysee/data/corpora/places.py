"""Places audio captions (Harwath et al., NeurIPS 2016; 400k release): scenes of Places205, described freely.

As published: ``metadata/{train,val}.json`` with ``{"image_base_path", "audio_base_path", "data": [{"uttid", "speaker",
"asr_text", "wav", "image"}, …]}``. The base paths are those of another machine and are not used. The text is that of a
speech recognizer. The splits of 2020 (``test_seen_2020.json`` and so on) keep their names.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from saysee.data.corpora.finding import index_folders, read_json_records, split_families
from saysee.data.corpora.preparing import Expected, Prepared, check_target, listed_caption, prepare
from saysee.errors import SaySeeError
from saysee.media.folders import Listing

EXPECTED = Expected(
    "Places audio (400k)",
    clips={"train": 400_000, "val": 1000},
    clips_within=0.01,  # "400k" is rounded: releases have some thousand more
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
        metadata: the folder of the JSON files, or the files themselves; the name of a file says its split.
        audio: folder of the clips, in any layout.
        images: folder of the images of Places205, in any layout.
        to: the manifest, ``.parquet`` or ``.jsonl``.
        allow_missing: how many clips and images may be missing or empty.

    Raises:
        SaySeeError: no folder or no JSON file, one that cannot be read or contradicts another, or too much is missing.
    """
    target = check_target(to, allow_missing)
    files, note = _choose_files([metadata] if isinstance(metadata, str | os.PathLike) else metadata)
    clip_files, image_files = index_folders(audio, images)
    captions = [
        listed_caption(record, "asr_text", record.get("image"), split, f"{path}: entry {number}")
        for split, path in files
        for number, record in enumerate(read_json_records(path, "data"), 1)
    ]
    return prepare(
        captions,
        clip_files,
        image_files,
        target,
        allow_missing=allow_missing,
        expected=EXPECTED,
        notes=[note],
    )


def _choose_files(given: Sequence[str | os.PathLike[str]]) -> tuple[list[tuple[str, Path]], str]:
    """The JSON files with their splits, and a note: all files that were named, and one family of each folder."""
    files: list[tuple[str, Path]] = []
    unused: list[str] = []
    for path in map(Path, given):
        is_folder = path.is_dir()
        found = [Path(name) for name in Listing(path, "--metadata").files((".json",))] if is_folder else [path]
        found.sort(key=lambda name: len(name.parts))
        families = split_families(found)
        if not families:
            what = "no train.json or val.json in it" if is_folder else "no split in its name; rename it to train.json"
            raise SaySeeError(f"{path}: {what} (--metadata)")
        chosen = min(families, key=lambda family: (len(family), family))
        files += families[chosen].items()
        unused += [name.name for family in families if family != chosen for name in families[family].values()]
    note = f"captions are from {', '.join(path.name for _, path in files)}"
    return files, f"{note}; not used: {', '.join(unused)} (name files by --metadata)" if unused else note
