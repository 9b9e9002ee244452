"""Places audio captions (Harwath et al., NeurIPS 2016; 400k release): scenes of Places205, described freely.

As published: ``metadata/{train,val}.json`` with ``{"image_base_path", "audio_base_path", "data": [{"uttid", "speaker",
"asr_text", "wav", "image"}, …]}``. The base paths are those of another machine and are not used. The text is that of a
speech recognizer. The splits of 2020 are ``train_2020.json``, ``dev_seen_2020.json``, ``test_unseen_2020.json`` …

The same images are described in Hindi (``PlacesHindi100k_train.json``, or ``hindi_english_100k_train.json`` with
``hindi_wav`` and ``english_wav`` in each entry) and in Japanese (``PlacesAudioJpn_100k_image2audio_train.txt`` with
``<image> <clip>`` in each line). Names of images may begin with "/".
"""

import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from saysee.data.corpora import finding
from saysee.data.corpora.preparing import Expected, Prepared, check_target, listed_caption, prepare
from saysee.data.manifest import Row
from saysee.errors import ConfigError, ManifestError, SaySeeError
from saysee.media.folders import Listing

EXPECTED = Expected(
    "Places audio (400k)",
    clips={"train": 400_000, "val": 1000},
    clips_within=0.01,  # "400k" is rounded: releases have some thousand more
)

_Path = str | os.PathLike[str]

_METADATA = re.compile(r"\.json$|image2audio.*\.txt$", re.IGNORECASE)
_ENGLISH_CLIP = re.compile(r"^/?wavs/\d+/utterance_")


def prepare_places(
    metadata: tuple[_Path, ...] | Sequence[_Path] | _Path,
    audio: str | os.PathLike[str],
    images: str | os.PathLike[str],
    to: str | os.PathLike[str],
    *,
    language: str | None = None,
    allow_missing: int = 0,
) -> Prepared:
    """Write the manifest of a copy of the Places audio captions.

    Args:
        metadata: the folder of the JSON files, or the files themselves; the name of a file says its split.
        audio: folder of the clips, in any layout.
        images: folder of the images of Places205, in any layout.
        to: the manifest, ``.parquet`` or ``.jsonl``.
        language: of the speech; by default what the files prove, otherwise none. Of entries in several languages, this
            one is used.
        allow_missing: how many clips and images may be missing or empty.

    Raises:
        SaySeeError: no folder or no JSON file, one that cannot be read or contradicts another, or too much is missing.
        ConfigError: the entries are in several languages, and not in this one.
    """
    target = check_target(to, allow_missing)
    files, note = _choose_files([metadata] if isinstance(metadata, str | os.PathLike) else metadata)
    clip_files, image_files = finding.index_folders(audio, images)
    captions = [caption for split, path in files for caption in _entries(path, split)]
    captions, notes = _in_language(captions, language, clip_files)
    return prepare(captions, clip_files, image_files, target, allow_missing, EXPECTED, notes=[note, *notes])


def _choose_files(given: Sequence[str | os.PathLike[str]]) -> tuple[list[tuple[str, Path]], str]:
    """The files of metadata with their splits, and a note: all that were named, and one family of each folder."""
    files: list[tuple[str, Path]] = []
    unused: list[str] = []
    for path in map(Path, given):
        is_folder = path.is_dir()
        found = [Path(name) for name in Listing(path, "--metadata").files((".json", ".txt"))] if is_folder else [path]
        found = sorted((each for each in found if _METADATA.search(each.name)), key=lambda each: len(each.parts))
        families = finding.split_families(found)
        if not families:
            what = "no train.json or val.json in it" if is_folder else "no split in its name; rename it to train.json"
            raise SaySeeError(f"{path}: {what} (--metadata)")
        chosen = families.pop(min(families, key=lambda family: (len(family), family)))
        files += chosen.items()
        unused += [each.name for family in families.values() for each in family.values()]
    note = f"captions are from {', '.join(path.name for _, path in files)}"
    return files, f"{note}; not used: {', '.join(unused)} (name files by --metadata)" if unused else note


def _entries(path: Path, split: str) -> list[Row]:
    """The captions of a file: one for each entry, or for each language of an entry."""
    captions = []
    for number, record in enumerate(_records(path), 1):
        image = record.get("image")
        keys = [key for key in record if key.endswith("_wav")]
        for key in keys or ["wav"]:
            of_language = {name: record.get(key.removesuffix("wav") + name) for name in ("wav", "speaker", "asr_text")}
            plain = {} if len(keys) > 1 else record
            found = plain | {name: value for name, value in of_language.items() if value is not None}
            image = image.lstrip("/") if isinstance(image, str) else image
            caption = listed_caption(found, "asr_text", image, split, f"{path}: entry {number}")
            captions.append(replace(caption, language=finding.named_language(key) or finding.named_language(path.name)))
    english = all(_ENGLISH_CLIP.match(caption.clip) and not caption.language for caption in captions)
    if english and finding.can_be_english(caption.text for caption in captions):
        return [replace(caption, language="en") for caption in captions]
    return captions


def _records(path: Path) -> Iterator[dict[str, Any]]:
    if path.suffix.lower() == ".json":
        yield from finding.read_json_records(path, "data")
        return
    for number, line in enumerate(finding.read_lines(path), 1):
        names = line.split()
        if len(names) != 2:
            raise ManifestError(f"{path}: line {number} {line[:60]!r} is not '<image> <clip>'; fix or delete it")
        yield {"image": names[0], "wav": names[1].lstrip("/")}


def _in_language(captions: list[Row], language: str | None, clips: finding.FileIndex) -> tuple[list[Row], list[str]]:
    """The captions in a language, or in those of which there are clips, and a note on those that are not used."""
    listed = Counter(caption.language for caption in captions)
    named = {tag: tag or "an unknown language" for tag in listed}
    used = set(listed)
    if len(listed) > 1 and language:
        if language not in listed:
            have = ", ".join(named.values())
            raise ConfigError(f"--language is {language}, and the entries are in {have}; name one of them")
        used = {language}
    elif len(listed) > 1:
        exists = clips.match(caption.clip for caption in captions)
        used = {caption.language for caption in captions if exists[caption.clip]} or used
    unused = ", ".join(f"{count:,} in {named[tag]}" for tag, count in listed.items() if tag not in used)
    chosen = [replace(each, language=language or each.language) for each in captions if each.language in used]
    return chosen, [f"captions not used: {unused} (--language chooses)"] if unused else []
