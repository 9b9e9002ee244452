"""Your own audio files and images, paired by a table, by equal stems, or by sub-folder.

- csv: a table with one row for each clip, a column ``clip`` and a column ``image``; others as in ``tables.COLUMNS``.
- stem: ``dog.wav`` or ``dog_2.wav`` describes ``dog.jpg``, in the same folder or in another.
- sub-folder: each sub-folder has one image, which all clips in it describe.
"""

import hashlib
import math
import os
import posixpath
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, get_args
from urllib.parse import urlsplit
from urllib.request import url2pathname

from saysee.data.corpora.finding import FileIndex, plain, stem_key
from saysee.data.corpora.preparing import Expected, Prepared, check_target, prepare
from saysee.data.manifest import Row
from saysee.data.tables import Table, open_table, read_text, split_name, word
from saysee.errors import ConfigError, ManifestError, SaySeeError
from saysee.media.folders import Listing
from saysee.media.formats import AUDIO_SUFFIXES, IMAGE_SUFFIXES

PairBy = Literal["auto", "csv", "stem", "sub-folder"]

_SHOWN = 5  # notes of one kind
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
        table: the table of pairs: delimited text, JSON lines or Parquet. None looks for it in the folder.
        val_share: share of the images for validation, if no table says the split.
        test_share: share of the images for testing, likewise.
        seed: another seed selects other images.
        language: of the speech, if no table says it.
        allow_missing: how many clips and images, or images of clips, may be missing or empty.

    Raises:
        SaySeeError: the folder is missing, nothing pairs or two images fit a clip, more files are missing than allowed,
            the table cannot be read or contradicts itself, or settings are invalid or cannot be combined.
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
    tables, notes = _find_tables(listing, pair_by, target) if table is None else ([open_table(table)], [])
    unpaired: list[str] = []
    if tables:
        captions, how, about = _read_tables(tables, listing, language)
        notes += about
    else:
        captions, unpaired, how = _pair(listing, clips, images, pair_by, language)
    captions, about = _with_texts(captions, listing)
    notes = [f"paired by {how}", *notes, *about]
    if not captions[0].split:  # then no row of the table has one
        captions, note = divide(captions, val_share, test_share, seed)
        notes.append(note)
    expected = Expected("folder")
    return prepare(captions, clips, images, target, allow_missing, expected, clips_without_image=unpaired, notes=notes)


def check_shares(val_share: float, test_share: float) -> None:
    """Raises ConfigError if a share of images is negative, or no training images are left."""
    if not (val_share >= 0 and test_share >= 0 and val_share + test_share < 1):
        fix = "set both to at least 0 and their sum below 1"
        raise ConfigError(f"--val-share {val_share} and --test-share {test_share}: {fix}")


def divide(captions: Sequence[Row], val_share: float, test_share: float, seed: int) -> tuple[list[Row], str]:
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
) -> tuple[list[Row], list[str], str]:
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
    table = "pair them in a table (--csv)"
    for clip, fitting in reversed(paired.items()):
        if len(fitting) > 1:
            what = f"clip {clip!r} fits two images, {fitting[0]!r} and {fitting[1]!r}"
            raise ManifestError(f"{listing.folder}: {what}; rename one, or {table}")
    if not paired:
        what = f"no clip pairs with an image by {' or '.join(tried)}"
        raise SaySeeError(f"{listing.folder}: {what}; give clips the stems of their images, or {table}")
    captions = []
    for clip, (image, *_) in paired.items():
        captions.append(Row(clip, image, unicodedata.normalize("NFC", image), "", language=language))
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
    alone = {folder: found for folder, found in by_folder.items() if folder and len(found) == 1}
    return {clip: alone[folder] for clip in clips if (folder := posixpath.dirname(clip)) in alone}


def _with_texts(captions: list[Row], listing: Listing) -> tuple[list[Row], list[str]]:
    """The captions, and notes; those without a text get that of the ``.txt`` file with the stem of the clip."""
    beside: dict[str, str] = {}
    by_name: dict[str, list[str]] = defaultdict(list)
    for path in listing.files((".txt",)):
        stem = _stem_path(listing.relative(path))
        beside[stem] = path
        by_name[posixpath.basename(stem)].append(path)
    clips = Counter(posixpath.basename(_stem_path(caption.clip)) for caption in captions)

    def find(clip: str) -> str | None:
        stem = _stem_path(clip)
        named = by_name.get(posixpath.basename(stem), [])
        # A file in another folder counts only if the name identifies the clip.
        return beside.get(stem) or (named[0] if clips[posixpath.basename(stem)] == len(named) == 1 else None)

    found, notes = [], Counter[str]()
    for caption in captions:
        if not caption.text and (file := find(caption.clip)):
            try:
                text, guessed = read_text(Path(file))
            except ManifestError as error:
                text, guessed = "", (f"{error}; its clip has no text",)
            notes.update(guessed)
            caption = replace(caption, text=" ".join(text.split()))
        found.append(caption)
    more = len(notes) - _SHOWN
    return found, [*list(notes)[:_SHOWN], *[f"{more:,} more text files like these"] * (more > 0)]


def _stem_path(path: str) -> str:
    return posixpath.splitext(plain(path))[0]


def _find_tables(listing: Listing, pair_by: PairBy, target: Path) -> tuple[list[Table], list[str]]:
    """The tables of pairs in the folder (several are AudioFolder's ``metadata``), and notes on ignored ones."""
    tables: list[Table] = []
    ignored: list[str] = []
    found = map(Path, listing.files((".csv", ".tsv", ".jsonl", ".parquet")))
    for path in found if pair_by in ("auto", "csv") else ():
        if target.exists() and target.samefile(path):
            continue
        if path.suffix.lower() not in (".csv", ".tsv") and path.stem != "metadata":
            ignored.append(f"ignored {path}, which may be a manifest; if it is a table of pairs, name it by --csv")
            continue
        try:
            table = open_table(path)
            _columns_of(table)
            tables.append(table)
        except ManifestError as error:
            ignored.append(f"ignored the table {error}")
    names = {table.path.name for table in tables}
    if len(tables) > 1 and (len(names) > 1 or tables[0].path.stem != "metadata"):
        one, other = (listing.relative(os.fspath(table.path)) for table in tables[:2])
        raise ManifestError(f"{listing.folder}: two tables, {one} and {other}; name one by --csv")
    if pair_by == "csv" and not tables:
        reasons = f" ({ignored[0]})" if ignored else ""
        raise SaySeeError(f"{listing.folder}: no table with the columns clip and image{reasons}; name it by --csv")
    more = len(ignored) - _SHOWN
    return tables, ignored[:_SHOWN] + [f"ignored {more:,} more tables"] * (more > 0)


def _columns_of(table: Table) -> tuple[dict[str, int], list[str]]:
    """The position of each column of a manifest, and notes. Raises ManifestError without a clip or an image."""
    columns, notes = table.columns()
    for role, other in (("clip", "image"), ("image", "clip")):
        if role not in columns and other in columns and "file" in columns:
            columns[role] = columns["file"]
    columns.pop("file", None)
    missing = [role for role in ("clip", "image") if role not in columns]
    if missing:
        needed = (
            f"a table of pairs has a column 'clip' and a column 'image' (there are: {', '.join(table.titles)!r:.80})"
        )
        raise ManifestError(f"{table.path}: no column of the {' and the '.join(missing)}; {needed}")
    return columns, notes


def _read_tables(tables: Sequence[Table], listing: Listing, language: str | None) -> tuple[list[Row], str, list[str]]:
    """The captions of all tables, with the further columns of all; a phrase that names the tables; notes."""
    captions, notes = list[Row](), list[str]()
    for table, split in zip(tables, _splits_of_folders(tables, listing), strict=True):
        rows, about = _read_table(table, listing, language, split)
        captions += rows
        notes += about
        if bool(rows[0].split) != bool(captions[0].split):
            raise ManifestError(
                f"{table.path} or {tables[0].path}: only one has splits; give all tables a split, or none"
            )
    titles = dict.fromkeys(title for caption in captions for title in caption.extra)
    if len(tables) > 1:
        captions = [replace(one, extra={title: one.extra.get(title) for title in titles}) for one in captions]
    if titles:
        notes.append(f"further columns kept: {', '.join(titles)}")
    return captions, f"the table {', '.join(str(table.path) for table in tables)}", notes


def _read_table(table: Table, listing: Listing, language: str | None, split: str) -> tuple[list[Row], list[str]]:
    """The captions of a table, and notes. ``split`` is that of rows without a column for it."""
    columns, notes = _columns_of(table)
    others = {place: title for place, title in enumerate(table.titles) if place not in columns.values()}
    further = {place: title for place, title in others.items() if title}
    unnamed = others.keys() - further.keys()
    captions: list[Row] = []
    dropped = 0
    for number, values in table.rows():
        place = table.place(number)
        cell = {role: word(values[at], place, table.titles[at]) for role, at in columns.items()}
        clip, image = cell["clip"], cell["image"]
        if not clip or not image:
            raise ManifestError(f"{place} has no clip or no image; fill or delete it")
        dropped += sum(values[at] is not None for at in unnamed)
        clip, image = (_listed(each, table.path, listing) for each in (clip, image))
        image_id = unicodedata.normalize("NFC", cell.get("image_id") or image)
        of_row = cell.get("split") or ("" if "split" in columns else split)
        words = cell.get("text"), cell.get("speaker"), cell.get("language") or language
        extra = {title: _further(values[at], title, place) for at, title in further.items()}
        captions.append(Row(clip, image, image_id, of_row, *words, extra))
        if bool(captions[0].split) != bool(captions[-1].split):
            raise ManifestError(f"{place}: only some rows have a split; fill all of them or none")
    if not captions:
        raise ManifestError(f"{table.path}: no rows; a table has at least one")
    lost = [f"{table.path}: {dropped:,} cells of columns without a title are dropped"] if dropped else []
    return captions, [*table.notes, *notes, *lost]


def _listed(cell: str, table: Path, listing: Listing) -> str:
    """A file that a table names, from its folder or the corpus's: relative to the latter, or absolute if elsewhere."""
    name = url2pathname(urlsplit(cell).path) if cell.startswith("file:") else cell.replace("\\", "/")
    path = os.path.abspath(os.path.join(os.path.dirname(os.path.abspath(table)), name))
    if not os.path.isfile(path):
        return posixpath.normpath(name)
    top = os.path.join(os.path.abspath(listing.folder), "")
    return path.removeprefix(top).replace(os.sep, "/")


def _further(value: Any, title: str, place: str) -> Any:
    """A value of a further column. A manifest's ``seconds`` are a number; other cells of a text file stay text."""
    if title != "seconds" or value is None:
        return value
    try:
        seconds = float(value)
    except (TypeError, ValueError):
        seconds = 0.0
    if not 0 < seconds < math.inf:
        raise ManifestError(f"{place}: seconds is {value!r:.40}; make it a positive number, or rename the column")
    return seconds


def _splits_of_folders(tables: Sequence[Table], listing: Listing) -> list[str]:
    """The split of each of several tables, by the name of a folder in which it is; empty where none is a split."""
    found = []
    for table in tables:
        folders = map(split_name, listing.relative(os.fspath(table.path)).split("/")[:-1])
        found.append([split for split in ("", *folders) if split in ("", "train", "val", "test")][-1])
    return found if len(tables) > 1 and all(found) else [""] * len(tables)
