"""Flickr8k with the Flickr Audio Caption Corpus (Harwath and Glass, ASRU 2015): 8,000 photos, five clips each.

As published: ``flickr_audio/wavs/<image stem>_<n>.wav``, ``wav2capt.txt`` (``<wav> <image> #<n>``), ``wav2spk.txt``
(``<wav> <speaker>``); ``Flickr8k_text/`` with ``Flickr8k.token.txt`` (``<image>#<n><tab><caption>``) and
``Flickr_8k.{train,dev,test}Images.txt``; images in ``Flicker8k_Dataset/``. Copies differ: folders are renamed, captions
may be in ``captions.txt`` (a CSV table), splits and captions in Karpathy's ``dataset_flickr8k.json``, and
``wav2capt.txt`` may be missing, because the names of the clips say the same.
"""

from __future__ import annotations

import csv
import io
import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from saysee.data.corpora.finding import (
    FileIndex,
    find_lists,
    index_folders,
    read_json_records,
    read_lines,
    read_utf8,
    stem_key,
)
from saysee.data.corpora.preparing import Caption, Expected, Prepared, check_target, prepare
from saysee.errors import ManifestError, SaySeeError
from saysee.media.folders import Listing

ALLOW_MISSING = 10
"""In known copies a few clips are missing or empty; a failed download lacks hundreds."""

EXPECTED = Expected(
    "Flickr8k",
    images={"train": 6000, "val": 1000, "test": 1000},
    clips={"train": 30_000, "val": 5000, "test": 5000},
    clips_within=ALLOW_MISSING / 5000,
)

_SPLIT_LIST = re.compile(r"(?:^|[ _.-])(train|dev|val|test)[ _-]?images\b.*\.txt$", re.IGNORECASE)
_DATASET = re.compile(r"^dataset(?:_flickr8k)?\.json$", re.IGNORECASE)
_TOKENS = re.compile(r"^flickr_?8k\.token\b.*\.txt$", re.IGNORECASE)
_CAPTIONS = re.compile(r"^captions\.(?:txt|csv)$", re.IGNORECASE)
_CLIPS = re.compile(r"^wav2capt\b.*\.txt$", re.IGNORECASE)
_SPEAKERS = re.compile(r"^wav2spk\b.*\.txt$", re.IGNORECASE)

_TOKEN_LINE = re.compile(r"^(?P<image>.+?)#(?P<number>\d+)\s+(?P<text>.*)$")
# Names may contain spaces, so a name ends with the suffix of an audio file.
_CLIP_LINE = re.compile(r"^(?P<clip>.+?\.(?:wav|flac|mp3|ogg))\s+(?P<image>.+?)\s*#(?P<number>\d+)$", re.IGNORECASE)
_SPEAKER_LINE = re.compile(r"^(?P<clip>.+?\.(?:wav|flac|mp3|ogg))\s+(?P<speaker>\S.*)$", re.IGNORECASE)
_CLIP_NAME = re.compile(r"^(?P<image>.+)_(?P<number>\d+)$")


def prepare_flickr8k(
    audio: str | os.PathLike[str],
    images: str | os.PathLike[str],
    to: str | os.PathLike[str],
    *,
    text: str | os.PathLike[str] | None = None,
    allow_missing: int = ALLOW_MISSING,
) -> Prepared:
    """Write the manifest of a copy of Flickr8k with its spoken captions.

    Args:
        audio: folder of the clips, in any layout.
        images: folder of the images, in any layout.
        to: the manifest, ``.parquet`` or ``.jsonl``.
        text: folder of the lists, if they are neither in the other folders nor beside them.
        allow_missing: how many clips and images may be missing or empty.

    Raises:
        SaySeeError: no folder or no split lists, a list that cannot be read or contradicts another, or too much is
            missing.
    """
    target = check_target(to, allow_missing)
    clip_files, image_files = index_folders(audio, images)
    listings = [clip_files.listing, image_files.listing]
    lists = _read_lists(listings if text is None else [Listing(text, "--text"), *listings], clip_files)
    captions = list(_captions(lists))
    spoken = {stem_key(caption.image) for caption in captions}
    return prepare(
        captions,
        clip_files,
        image_files,
        target,
        allow_missing=allow_missing,
        expected=EXPECTED,
        images_without_clip=[image for key, image in lists.images.items() if key not in spoken],
        notes=[] if lists.texts else ["no Flickr8k.token.txt or captions.txt found: the manifest has no text (--text)"],
    )


@dataclass
class _Lists:
    """The contents of the lists; images by ``stem_key``, captions by image and number."""

    splits: dict[str, str] = field(default_factory=dict)
    images: dict[str, str] = field(default_factory=dict)
    texts: dict[tuple[str, int], str] = field(default_factory=dict)
    clips: dict[tuple[str, int], str] = field(default_factory=dict)
    speakers: dict[str, str] = field(default_factory=dict)

    def add(self, image: str, split: str, source: Path) -> None:
        key = stem_key(image)
        if self.splits.setdefault(key, split) != split:
            raise ManifestError(
                f"{source}: image {image!r} is in the splits {self.splits[key]!r} and {split!r}; keep it in one"
            )
        self.images.setdefault(key, image)


def _captions(lists: _Lists) -> Iterator[Caption]:
    """The captions of the images that have a split, in the order of the split lists."""
    numbers: dict[str, set[int]] = defaultdict(set)
    for key, number in (*lists.texts, *lists.clips):
        numbers[key].add(number)
    for key, split in lists.splits.items():
        image = lists.images[key]
        image_id = os.path.splitext(image)[0]
        for number in sorted(numbers[key]):
            clip = lists.clips.get((key, number)) or f"{image_id}_{number}.wav"
            text, speaker = lists.texts.get((key, number)), lists.speakers.get(stem_key(clip))
            yield Caption(clip, image, image_id, split, text, speaker)


def _read_lists(listings: Sequence[Listing], clips: FileIndex) -> _Lists:
    lists = _Lists()
    if found := find_lists(listings, _SPLIT_LIST, (".txt",)):
        _read_split_lists(found, lists)
    elif found := find_lists(listings, _DATASET, (".json",)):
        _read_dataset(found[0], lists)
    else:
        raise SaySeeError(
            f"{listings[0].folder}: no Flickr_8k.trainImages.txt, devImages or testImages (nor dataset_flickr8k.json) "
            "in it or beside it; name their folder by --text"
        )
    if found := find_lists(listings, _TOKENS, (".txt",)):
        for line in _matches(found[0], _TOKEN_LINE, "<image>#<n><tab><caption>"):
            lists.texts[stem_key(line["image"]), int(line["number"])] = line["text"]
    elif found := find_lists(listings, _CAPTIONS, (".txt", ".csv")):
        _read_captions(found[0], lists)
    if found := find_lists(listings, _CLIPS, (".txt",)):
        for line in _matches(found[0], _CLIP_LINE, "<clip> <image> #<n>"):
            lists.clips[stem_key(line["image"]), int(line["number"])] = line["clip"]
    else:  # the name of a clip says the same: <image stem>_<n>
        for path in clips.paths:
            named = _CLIP_NAME.match(stem_key(path))
            if named and named["image"] in lists.splits:
                lists.clips.setdefault((named["image"], int(named["number"])), os.path.basename(path))
    if found := find_lists(listings, _SPEAKERS, (".txt",)):
        for line in _matches(found[0], _SPEAKER_LINE, "<clip> <speaker>"):
            lists.speakers[stem_key(line["clip"])] = line["speaker"]
    return lists


def _read_split_lists(paths: Sequence[Path], lists: _Lists) -> None:
    by_split: dict[str, Path] = {}
    for path in sorted(paths, key=lambda path: len(path.name)):  # the plain name before "… (1).txt"
        if found := _SPLIT_LIST.search(path.name):
            by_split.setdefault(found[1].lower().replace("dev", "val"), path)
    for split in ("train", "val", "test"):
        for image in read_lines(by_split[split]) if split in by_split else ():
            lists.add(image, split, by_split[split])


def _read_dataset(path: Path, lists: _Lists) -> None:
    """Karpathy's JSON: the published splits, and captions in the order of their numbers."""
    for number, record in enumerate(read_json_records(path, "images"), 1):
        image, split = record.get("filename"), record.get("split")
        if not isinstance(image, str) or not isinstance(split, str):
            raise ManifestError(f"{path}: image {number} has no 'filename' or 'split'; copy it again")
        lists.add(image, split, path)
        for position, sentence in enumerate(record.get("sentences") or ()):
            if isinstance(sentence, dict) and isinstance(sentence.get("raw"), str):
                lists.texts[stem_key(image), position] = sentence["raw"]


def _read_captions(path: Path, lists: _Lists) -> None:
    """A table ``image,caption``, with the captions of an image in the order of their numbers."""
    counts: Counter[str] = Counter()
    for number, row in enumerate(csv.reader(io.StringIO(read_utf8(path), newline="")), 1):
        if not row or row[0].strip().lower() == "image":
            continue
        if len(row) < 2:
            raise ManifestError(f"{path}: line {number} is not '<image>,<caption>'; fix it")
        key = stem_key(row[0].strip())
        lists.texts[key, counts[key]] = ",".join(row[1:]).strip()
        counts[key] += 1


def _matches(path: Path, line: re.Pattern[str], form: str) -> Iterator[re.Match[str]]:
    for number, content in enumerate(read_lines(path), 1):
        found = line.match(content)
        if found is None:
            raise ManifestError(f"{path}: line {number} {content[:60]!r} is not '{form}'; fix or delete it")
        yield found
