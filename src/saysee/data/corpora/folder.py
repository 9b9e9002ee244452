"""Your own sounds and pictures: paired by a CSV table, by equal stems, or by sub-folder.

- csv: a row for each clip, with a column ``clip`` and a column ``image``; more columns as in ``finding.COLUMNS``.
- stem: ``dog.wav`` or ``dog_2.wav`` speaks of ``dog.jpg``, in the same folder or in another.
- sub-folder: each sub-folder has one picture, and all clips in it speak of it.
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
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from saysee.data.corpora.finding import (
    FileIndex,
    plain,
    read_utf8,
    role_of,
    stem_key,
)
from saysee.data.corpora.preparing import Caption, Expected, Prepared, check_target, prepare
from saysee.errors import ConfigError, ManifestError, SaySeeError
from saysee.media.folders import Listing
from saysee.media.formats import AUDIO_SUFFIXES, IMAGE_SUFFIXES

Way = Literal["auto", "csv", "stem", "sub-folder"]
WAYS: tuple[Way, ...] = ("auto", "csv", "stem", "sub-folder")

_NUMBERED = re.compile(r"^(.+?)[ _-]\d+$")


@dataclass(frozen=True)
class FolderSettings:
    """How a folder is read.

    Attributes:
        pair_by: one of ``WAYS``; "auto" takes a table where there is one, else what pairs more clips.
        table: the CSV table; None looks for the one in the folder.
        val_share: share of pictures to validate on, where no table says the split.
        test_share: share of pictures to test on, likewise.
        seed: another seed, other pictures.
        language: of the speech, where no table says it.
    """

    pair_by: Way = "auto"
    table: str | os.PathLike[str] | None = None
    val_share: float = 0.1
    test_share: float = 0.1
    seed: int = 0
    language: str | None = None

    def check(self) -> None:
        """Refuses what cannot be.

        Raises:
            ConfigError: an unknown way, shares that leave no training pictures, or a table with another way.
        """
        if self.pair_by not in WAYS:
            raise ConfigError(f"--pair-by is {self.pair_by!r}; set it to one of {', '.join(WAYS)}")
        check_shares(self.val_share, self.test_share)
        if self.table is not None and self.pair_by not in ("auto", "csv"):
            raise ConfigError(f"--csv does not go with --pair-by {self.pair_by}; leave one out")


def prepare_folder(
    folder: str | os.PathLike[str],
    to: str | os.PathLike[str],
    settings: FolderSettings | None = None,
    *,
    allow_missing: int = 0,
) -> Prepared:
    """Write the manifest of a folder of sounds and pictures.

    Every picture lies in one split: that of the table, or one that a hash of its image id chooses, so that pictures
    that come later move none of the others. The text is the table's, or that of a ``.txt`` file of the clip's stem.

    Args:
        folder: where the files lie.
        to: the manifest, ``.parquet`` or ``.jsonl``.
        settings: how to read it.
        allow_missing: how many clips and pictures may be missing or empty; a clip without a picture is one.

    Raises:
        SaySeeError: the folder is missing, nothing pairs, or more files are lacking than allowed.
        ManifestError: the table cannot be read or contradicts itself, or two pictures fit a clip equally.
        ConfigError: the settings cannot be, or ``allow_missing`` is negative.
    """
    settings = settings or FolderSettings()
    settings.check()
    target = check_target(to, allow_missing)
    listing = Listing(folder, "DIR")
    clips, images = FileIndex(listing, AUDIO_SUFFIXES), FileIndex(listing, IMAGE_SUFFIXES)
    for index, what in ((clips, "sound"), (images, "picture")):
        if not index.paths:
            raise SaySeeError(f"{folder}: no {what} in it; name the folder that holds sounds and pictures")
    table = _find_table(listing, settings)
    unseen: list[str] = []
    if table is None:
        captions, unseen, how = _pair(listing, clips, images, settings)
    else:
        captions, how = _read_table(table, settings.language), f"the table {table}"
    captions = _with_texts(captions, listing)
    notes = [f"paired by {how}"]
    if not captions[0].split:  # then no row of the table has one
        shares = settings.val_share, settings.test_share
        captions = [
            replace(caption, split=split_by_hash(caption.image_id, *shares, settings.seed)) for caption in captions
        ]
        notes.append(
            f"splits by a hash of the picture's id: val {settings.val_share:g}, test {settings.test_share:g}, "
            f"seed {settings.seed}"
        )
    expected = Expected("folder")
    return prepare(
        captions, clips, images, target, allow_missing=allow_missing, expected=expected, unseen=unseen, notes=notes
    )


def check_shares(val_share: float, test_share: float) -> None:
    """Refuses shares that cannot be.

    Raises:
        ConfigError: a share is negative, or both leave no training pictures.
    """
    if not (val_share >= 0 and test_share >= 0 and val_share + test_share < 1):
        raise ConfigError(
            f"--val-share {val_share} and --test-share {test_share}: set both to at least 0 and their sum below 1"
        )


def split_by_hash(image_id: str, val_share: float, test_share: float, seed: int) -> str:
    """The split of a picture by a hash of its id, with about the shares given: others may come without moving it."""
    name = unicodedata.normalize("NFC", image_id)  # systems store accents in two ways
    digest = hashlib.sha256(f"{seed}:{name}".encode("utf-8", "surrogateescape")).digest()
    place = int.from_bytes(digest[:8], "big") / 2**64
    if place < test_share:
        return "test"
    return "val" if place < test_share + val_share else "train"


# --- which clip speaks of which picture -------------------------------------------------------------------------------


@dataclass
class _Pairs:
    """Clips and their pictures, as paths from the folder on; ``doubt`` is a clip that two pictures fit equally."""

    pictures: dict[str, str] = field(default_factory=dict)
    doubt: tuple[str, str, str] | None = None


def _pair(
    listing: Listing, clips: FileIndex, images: FileIndex, settings: FolderSettings
) -> tuple[list[Caption], list[str], str]:
    """The captions, the clips that pair with no picture, and in words how they were paired."""
    sounds = [listing.relative(path) for path in clips.paths]
    pictures = [listing.relative(path) for path in images.paths]
    tried: dict[str, _Pairs] = {}
    if settings.pair_by in ("auto", "stem"):
        tried["equal stems"] = _by_stem(sounds, pictures)
    if settings.pair_by in ("auto", "sub-folder"):
        tried["sub-folder"] = _by_folder(sounds, pictures)
    how = max(tried, key=lambda name: len(tried[name].pictures))  # of equals the first
    paired, doubt = tried[how].pictures, tried[how].doubt
    if doubt:
        raise ManifestError(
            f"{listing.folder}: clip {doubt[0]!r} fits two pictures, {doubt[1]!r} and {doubt[2]!r}; rename one, or "
            "pair them in a table (--csv)"
        )
    if not paired:
        raise SaySeeError(
            f"{listing.folder}: no clip pairs with a picture by {' or '.join(tried)}; give clips the stems of their "
            "pictures, or pair them in a table (--csv)"
        )
    captions = [Caption(clip, image, image, "", language=settings.language) for clip, image in paired.items()]
    unseen = [clip for clip in sounds if clip not in paired]
    return captions, unseen, f"{how}: {len(paired):,} of {len(sounds):,} clips"


def _by_stem(sounds: Sequence[str], pictures: Sequence[str]) -> _Pairs:
    by_stem = _PicturesByStem(pictures)
    pairs = _Pairs()
    for clip in sounds:
        stem = stem_key(clip)
        numbered = _NUMBERED.match(stem)
        fitting = by_stem.find(clip, stem) or (by_stem.find(clip, numbered[1]) if numbered else [])
        if len(fitting) > 1:
            pairs.doubt = (clip, fitting[0], fitting[1])
        elif fitting:
            pairs.pictures[clip] = fitting[0]
    return pairs


class _PicturesByStem:
    """Pictures by stem, by folder and stem, and by the folder's own name and stem."""

    def __init__(self, pictures: Sequence[str]) -> None:
        self._found: dict[tuple[str, ...], list[str]] = defaultdict(list)
        for picture in pictures:
            for key in self._keys(picture, stem_key(picture)):
                self._found[key].append(picture)

    def find(self, clip: str, stem: str) -> list[str]:
        """The pictures of a stem that lie nearest to the clip: in its folder, in one of that name, anywhere."""
        return next((self._found[key] for key in self._keys(clip, stem) if key in self._found), [])

    def _keys(self, path: str, stem: str) -> list[tuple[str, ...]]:
        folder = posixpath.dirname(plain(path))
        return [("in", folder, stem), ("named", posixpath.basename(folder), stem), (stem,)]


def _by_folder(sounds: Sequence[str], pictures: Sequence[str]) -> _Pairs:
    by_folder: dict[str, list[str]] = defaultdict(list)
    for picture in pictures:
        by_folder[posixpath.dirname(picture)].append(picture)
    alone = {folder: inside[0] for folder, inside in by_folder.items() if folder and len(inside) == 1}
    return _Pairs({clip: alone[posixpath.dirname(clip)] for clip in sounds if posixpath.dirname(clip) in alone})


def _with_texts(captions: list[Caption], listing: Listing) -> list[Caption]:
    """The captions, those without a text with that of the ``.txt`` file of the clip's stem, where there is one."""
    beside: dict[str, str] = {}
    elsewhere: dict[str, list[str]] = defaultdict(list)
    for path in listing.files((".txt",)):
        stem = _stem_path(listing.relative(path))
        beside[stem] = path
        elsewhere[posixpath.basename(stem)].append(path)
    clips = Counter(posixpath.basename(_stem_path(caption.clip)) for caption in captions)

    def find(clip: str) -> str | None:
        stem = _stem_path(clip)
        name = posixpath.basename(stem)
        # In another folder only where the name says enough.
        alone = clips[name] == 1 and len(elsewhere.get(name, ())) == 1
        return beside.get(stem) or (elsewhere[name][0] if alone else None)

    told = []
    for caption in captions:
        file = None if caption.text else find(caption.clip)
        told.append(replace(caption, text=" ".join(read_utf8(Path(file)).split())) if file else caption)
    return told


def _stem_path(path: str) -> str:
    return posixpath.splitext(plain(path))[0]


# --- the table --------------------------------------------------------------------------------------------------------


def _find_table(listing: Listing, settings: FolderSettings) -> Path | None:
    """The table to pair by; None if it is to be done without."""
    if settings.table is not None:
        return Path(settings.table)
    if settings.pair_by not in ("auto", "csv"):
        return None
    tables = [path for path in map(Path, listing.files((".csv", ".tsv"))) if _columns_of(_header(path))]
    if len(tables) > 1:
        raise ManifestError(f"{listing.folder}: two tables, {tables[0].name} and {tables[1].name}; name one by --csv")
    if settings.pair_by == "csv" and not tables:
        raise SaySeeError(f"{listing.folder}: no .csv or .tsv with the columns clip and image; name it by --csv")
    return tables[0] if tables else None


def _header(path: Path) -> list[str]:
    first = read_utf8(path).split("\n", 1)[0].rstrip("\r")
    return next(csv.reader([first], delimiter=_delimiter(first)), [])


def _delimiter(header: str) -> str:
    return max(",;\t", key=header.count)


def _columns_of(header: Sequence[str]) -> dict[str, int] | None:
    """Where each column is; None without the two that must be there."""
    found: dict[str, int] = {}
    for at, title in enumerate(header):
        if role := role_of(title):
            found.setdefault(role, at)
    return found if {"clip", "image"} <= found.keys() else None


def _read_table(path: Path, language: str | None) -> list[Caption]:
    text = read_utf8(path)
    header = _header(path)
    columns = _columns_of(header)
    if columns is None:
        raise ManifestError(f"{path}: columns are {', '.join(header)[:80]!r}; it needs one 'clip' and one 'image'")
    captions: list[Caption] = []
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=_delimiter(text.split("\n", 1)[0]))
    next(reader)
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
                f"{path}: line {reader.line_num}: some rows have a split and some none; fill all or none"
            )
    if not captions:
        raise ManifestError(f"{path}: no rows; a table has at least one")
    return captions
