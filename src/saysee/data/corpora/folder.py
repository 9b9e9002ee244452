"""Your own audio files and images, paired by a CSV table, by equal stems, or by sub-folder.

- csv: one row for each clip, with a column ``clip`` and a column ``image``; further columns as in ``finding.COLUMNS``.
- stem: ``dog.wav`` or ``dog_2.wav`` describes ``dog.jpg``, in the same folder or in another.
- sub-folder: each sub-folder has one image, which all clips in it describe.
"""

from __future__ import annotations

import csv
import hashlib
import io
import os
import posixpath
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, get_args

from saysee.data.corpora.finding import FileIndex, plain, read_utf8, role_of, stem_key
from saysee.data.corpora.preparing import Caption, Expected, Prepared, check_target, prepare
from saysee.errors import ConfigError, ManifestError, SaySeeError
from saysee.media.folders import Listing
from saysee.media.formats import AUDIO_SUFFIXES, IMAGE_SUFFIXES

PairBy = Literal["auto", "csv", "stem", "sub-folder"]

_NUMBERED = re.compile(r"^(.+?)[ _-]\d+$")


def prepare_folder(
    folder: str | os.PathLike[str],
    to: str | os.PathLike[str],
    *,
    pair_by: PairBy = "auto",
    table: str | os.PathLike[str] | None = None,
    val_share: float = 0.1,
    test_share: float = 0.1,
    seed: int = 0,
    language: str | None = None,
    allow_missing: int = 0,
) -> Prepared:
    """Write the manifest of a folder of audio files and images.

    Each image is in one split: the table's, or one chosen by a hash of its image id, so that images that are added
    later move no other image. The text is the table's, or that of a ``.txt`` file with the stem of the clip.

    Args:
        folder: of the files.
        to: the manifest, ``.parquet`` or ``.jsonl``.
        pair_by: how clips are paired with images; "auto" uses a table if there is one, otherwise what pairs more clips.
        table: the CSV table; None looks for it in the folder.
        val_share, test_share: shares of the images for validation and testing, if no table says the split.
        seed: another seed selects other images.
        language: of the speech, if no table says it.
        allow_missing: how many clips and images may be missing or empty; a clip without an image counts as one.

    Raises:
        SaySeeError: the folder is missing, nothing pairs, or more files are missing than allowed.
        ManifestError: the table cannot be read or contradicts itself, or two images fit a clip equally well.
        ConfigError: invalid settings, or settings that cannot be combined.
    """
    if pair_by not in get_args(PairBy):
        raise ConfigError(f"--pair-by is {pair_by!r}; set it to one of {', '.join(get_args(PairBy))}")
    if table is not None and pair_by not in ("auto", "csv"):
        raise ConfigError(f"--csv cannot be combined with --pair-by {pair_by}; omit one of them")
    check_shares(val_share, test_share)
    target = check_target(to, allow_missing)
    listing = Listing(folder, "DIR")
    clips, images = FileIndex(listing, AUDIO_SUFFIXES), FileIndex(listing, IMAGE_SUFFIXES)
    for index, what in ((clips, "audio file"), (images, "image")):
        if not index.paths:
            raise SaySeeError(f"{folder}: no {what} in it; name the folder that holds audio files and images")
    path = Path(table) if table is not None else _find_table(listing, pair_by)
    unpaired: list[str] = []
    if path is None:
        captions, unpaired, how = _pair(listing, clips, images, pair_by, language)
    else:
        captions, how = _read_table(path, language), f"the table {path}"
    captions = _with_texts(captions, listing)
    notes = [f"paired by {how}"]
    if not captions[0].split:  # then no row of the table has one
        captions, note = divide(captions, val_share, test_share, seed)
        notes.append(note)
    return prepare(
        captions,
        clips,
        images,
        target,
        allow_missing=allow_missing,
        expected=Expected("folder"),
        clips_without_image=unpaired,
        notes=notes,
    )


def check_shares(val_share: float, test_share: float) -> None:
    """Raises ConfigError if a share of images is negative, or no training images are left."""
    if not (val_share >= 0 and test_share >= 0 and val_share + test_share < 1):
        raise ConfigError(
            f"--val-share {val_share} and --test-share {test_share}: set both to at least 0 and their sum below 1"
        )


def divide(captions: Sequence[Caption], val_share: float, test_share: float, seed: int) -> tuple[list[Caption], str]:
    """The captions with splits by a hash of the image id alone, in about these shares, and a note that says so."""

    def split(image_id: str) -> str:
        name = unicodedata.normalize("NFC", image_id)  # file systems store accents in two ways
        digest = hashlib.sha256(f"{seed}:{name}".encode("utf-8", "surrogateescape")).digest()
        position = int.from_bytes(digest[:8], "big") / 2**64
        return "test" if position < test_share else "val" if position < test_share + val_share else "train"

    note = f"splits by a hash of the image id: val {val_share:g}, test {test_share:g}, seed {seed}"
    return [replace(caption, split=split(caption.image_id)) for caption in captions], note


def _pair(
    listing: Listing, clips: FileIndex, images: FileIndex, pair_by: PairBy, language: str | None
) -> tuple[list[Caption], list[str], str]:
    """The captions, the clips that pair with no image, and a phrase that says how they were paired."""
    clip_names = [listing.relative(path) for path in clips.paths]
    image_names = [listing.relative(path) for path in images.paths]
    tried: dict[str, dict[str, list[str]]] = {}
    if pair_by in ("auto", "stem"):
        tried["equal stems"] = _pair_by_stem(clip_names, image_names)
    if pair_by in ("auto", "sub-folder"):
        tried["sub-folder"] = _pair_by_folder(clip_names, image_names)
    how = max(tried, key=lambda name: sum(len(fitting) == 1 for fitting in tried[name].values()))  # the first of equals
    paired = tried[how]
    for clip, fitting in reversed(paired.items()):
        if len(fitting) > 1:
            raise ManifestError(
                f"{listing.folder}: clip {clip!r} fits two images, {fitting[0]!r} and {fitting[1]!r}; rename one, or "
                "pair them in a table (--csv)"
            )
    if not paired:
        raise SaySeeError(
            f"{listing.folder}: no clip pairs with an image by {' or '.join(tried)}; give clips the stems of their "
            "images, or pair them in a table (--csv)"
        )
    captions = [Caption(clip, fitting[0], fitting[0], "", language=language) for clip, fitting in paired.items()]
    unpaired = [clip for clip in clip_names if clip not in paired]
    return captions, unpaired, f"{how}: {len(paired):,} of {len(clip_names):,} clips"


def _pair_by_stem(clips: Sequence[str], images: Sequence[str]) -> dict[str, list[str]]:
    """Each clip with the images of its stem that are nearest: in its folder, in one of that name, anywhere."""

    def keys(path: str, stem: str) -> list[tuple[str, ...]]:
        folder = posixpath.dirname(plain(path))
        return [("in", folder, stem), ("named", posixpath.basename(folder), stem), (stem,)]

    by_key: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for image in images:
        for key in keys(image, stem_key(image)):
            by_key[key].append(image)

    def find(clip: str, stem: str) -> list[str]:
        return next((by_key[key] for key in keys(clip, stem) if key in by_key), [])

    paired: dict[str, list[str]] = {}
    for clip in clips:
        stem = stem_key(clip)
        numbered = _NUMBERED.match(stem)
        if fitting := find(clip, stem) or (find(clip, numbered[1]) if numbered else []):
            paired[clip] = fitting
    return paired


def _pair_by_folder(clips: Sequence[str], images: Sequence[str]) -> dict[str, list[str]]:
    """Each clip with the only image of its folder; not in the top folder."""
    by_folder: dict[str, list[str]] = defaultdict(list)
    for image in images:
        by_folder[posixpath.dirname(image)].append(image)
    folders = {clip: posixpath.dirname(clip) for clip in clips}
    return {clip: by_folder[at] for clip, at in folders.items() if at and len(by_folder.get(at, ())) == 1}


def _with_texts(captions: list[Caption], listing: Listing) -> list[Caption]:
    """The captions; those without a text get that of the ``.txt`` file with the stem of the clip, if there is one."""
    beside: dict[str, str] = {}
    by_name: dict[str, list[str]] = defaultdict(list)
    for path in listing.files((".txt",)):
        stem = _stem_path(listing.relative(path))
        beside[stem] = path
        by_name[posixpath.basename(stem)].append(path)
    clips = Counter(posixpath.basename(_stem_path(caption.clip)) for caption in captions)

    def find(clip: str) -> str | None:
        stem = _stem_path(clip)
        name = posixpath.basename(stem)
        # A file in another folder counts only if the name identifies the clip.
        unique = clips[name] == 1 and len(by_name.get(name, ())) == 1
        return beside.get(stem) or (by_name[name][0] if unique else None)

    found = []
    for caption in captions:
        file = None if caption.text else find(caption.clip)
        found.append(replace(caption, text=" ".join(read_utf8(Path(file)).split())) if file else caption)
    return found


def _stem_path(path: str) -> str:
    return posixpath.splitext(plain(path))[0]


def _find_table(listing: Listing, pair_by: PairBy) -> Path | None:
    """The table in the folder; None if clips are to be paired without one."""
    if pair_by not in ("auto", "csv"):
        return None
    tables = [path for path in map(Path, listing.files((".csv", ".tsv"))) if _columns_of(next(_reader(path), []))]
    if len(tables) > 1:
        raise ManifestError(f"{listing.folder}: two tables, {tables[0].name} and {tables[1].name}; name one by --csv")
    if pair_by == "csv" and not tables:
        raise SaySeeError(f"{listing.folder}: no .csv or .tsv with the columns clip and image; name it by --csv")
    return tables[0] if tables else None


def _reader(path: Path) -> Any:
    text = read_utf8(path)
    return csv.reader(io.StringIO(text, newline=""), delimiter=max(",;\t", key=text.partition("\n")[0].count))


def _columns_of(header: Sequence[str]) -> dict[str, int] | None:
    """The position of each column of a manifest; None without a clip and an image."""
    found: dict[str, int] = {}
    for position, title in enumerate(header):
        if role := role_of(title):
            found.setdefault(role, position)
    return found if {"clip", "image"} <= found.keys() else None


def _read_table(path: Path, language: str | None) -> list[Caption]:
    reader = _reader(path)
    header: list[str] = next(reader, [])
    columns = _columns_of(header)
    if columns is None:
        raise ManifestError(f"{path}: columns are {', '.join(header)[:80]!r}; add a 'clip' and an 'image' column")
    captions: list[Caption] = []
    for row in reader:
        if not any(cell.strip() for cell in row):
            continue
        cell = {name: row[at].strip() if at < len(row) else "" for name, at in columns.items()}
        if not cell["clip"] or not cell["image"]:
            raise ManifestError(f"{path}: line {reader.line_num} has no clip or no image; fill or delete it")
        image = posixpath.normpath(cell["image"].replace("\\", "/"))
        captions.append(
            Caption(
                clip=posixpath.normpath(cell["clip"].replace("\\", "/")),
                image=image,
                image_id=cell.get("image_id") or image,
                split=cell.get("split", ""),
                text=cell.get("text") or None,
                speaker=cell.get("speaker") or None,
                language=cell.get("language") or language,
            )
        )
        if bool(captions[0].split) != bool(captions[-1].split):
            raise ManifestError(
                f"{path}: line {reader.line_num}: only some rows have a split; fill all of them or none"
            )
    if not captions:
        raise ManifestError(f"{path}: no rows; a table has at least one")
    return captions
