"""Data sets of the Hugging Face hub, and WebDataset tars, which hold audio and images in their files (extra ``hub``).

The ``datasets`` library finds the files of a data set with their splits, and reads its tables. Nothing is decoded: the
bytes of clips and images become files beside the manifest; files to which a table refers stay where they are.
"""

from __future__ import annotations

import io
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from saysee.data.corpora.folder import check_shares, divide
from saysee.data.corpora.hub_files import BrokenPartError, Part, find_parts
from saysee.data.corpora.hub_pairs import find_tables, join_tables
from saysee.data.corpora.hub_rows import FLAGS, OF_CLIP, Values, read_table
from saysee.data.corpora.hub_tars import read_tar
from saysee.data.corpora.preparing import Caption, Expected, Prepared, Problems, check_target, prepare
from saysee.data.tables import word
from saysee.errors import ConfigError, ManifestError, SaySeeError
from saysee.files import fingerprint, write_bytes
from saysee.log import progress_bar
from saysee.media.folders import Listing
from saysee.media.formats import AUDIO_SUFFIXES, IMAGE_SUFFIXES, Kind, file_kind, kind_by_suffix


def prepare_hub(
    sources: Sequence[str | os.PathLike[str]],
    to: str | os.PathLike[str],
    *,
    config: str | None = None,
    audio_column: str | None = None,
    image_column: str | None = None,
    text_column: str | None = None,
    speaker_column: str | None = None,
    language_column: str | None = None,
    id_column: str | None = None,
    split_column: str | None = None,
    splits: Mapping[str, str] | None = None,
    val_share: float = 0.0,
    test_share: float = 0.0,
    seed: int = 0,
    language: str | None = None,
    allow_missing: int = 0,
) -> Prepared:
    """Write the manifest of a data set, and its clips and images as files into ``STEM.files`` beside it.

    Files are named by their contents and written atomically: the same command continues an interrupted run, and an
    image of several rows is one file. The manifest is written last.

    Args:
        sources: an OWNER/NAME on the hub; folders; ``.parquet``, ``.arrow`` or ``.tar`` files, where braces stand for
            numbers or words (``{000..010}``, ``{train,val}``).
        to: the manifest, ``.parquet`` or ``.jsonl``.
        config: configuration ("subset") of a data set that has several.
        audio_column: column, member or JSON key of the clips, if types and titles do not identify it.
        image_column: that of the images.
        text_column: that of the spoken text; "" for none.
        speaker_column: that of the speaker; "" for none.
        language_column: that of the language; "" for none.
        id_column: that of what the captions of one image share; without one, equal images are one.
        split_column: that of the split, in place of the splits of the files.
        splits: new name of each split that is renamed; by default, validation and dev become val.
        val_share: share of the images for validation, if the data set has one split.
        test_share: share of the images for testing, likewise.
        seed: another seed selects other images.
        language: of the speech, if no column says it.
        allow_missing: how many clips, images and files may be missing, empty or damaged.

    Raises:
        SaySeeError: ``datasets`` or a source is missing, a column is missing or does not fit, an image is in two
            splits, settings are invalid, or more is missing than allowed.
    """
    columns = (audio_column, image_column, text_column, speaker_column, language_column, id_column, split_column)
    names = {role: name for role, name in zip(FLAGS, columns, strict=True) if name is not None}
    for role in ("clip", "image"):
        if names.get(role) == "":
            raise ConfigError(f"{FLAGS[role]} is empty; name a column, or omit the flag")
    check_shares(val_share, test_share)
    target = check_target(to, allow_missing)
    parts, roots, missing = find_parts([os.fspath(source) for source in sources], config)
    rows = _Rows(target.with_name(f"{target.stem}.files"), roots, language)
    rows.problems.missing |= {"shards": missing} if missing else {}
    with progress_bar("reading files of the data set", len(parts)) as rows.bar:
        notes = _read(parts, names, rows)
    captions, split_notes = _with_splits(rows.captions, splits or {}, val_share, test_share, seed)
    rows.find_extra()
    forms = Counter(part.form for part in parts)
    read = ", ".join(f"{count:,} {form} {'file' if count == 1 else 'files'}" for form, count in forms.items())
    return prepare(
        captions,
        None,
        None,
        target,
        allow_missing=allow_missing,
        expected=Expected("the data set"),
        splits=splits,
        problems=rows.problems,
        notes=[f"read from {read}; audio and images are in {rows.folder}", *notes, *split_notes],
    )


def _read(parts: Sequence[Part], names: Mapping[str, str], rows: _Rows) -> list[str]:
    """Adds the captions of all parts to ``rows``; returns notes."""
    if tables := find_tables(parts):
        return join_tables(tables, names, rows)
    forms = sorted({part.form for part in parts})
    paths = ", ".join(part.path for part in parts[:3])
    if "text" in forms:
        raise SaySeeError(f"{paths}: not .parquet, .arrow or .tar files; name such files, or a folder of them")
    if len(forms) > 1:
        raise SaySeeError(f"{paths}: files of several kinds ({', '.join(forms)}); name those of one kind")
    empty: list[str] = []
    for part in parts:
        with rows.reading(part):
            samples = 0
            for place, values in (read_tar if part.form == "tar" else read_table)(part, names):
                rows.add(place, values, part.split)
                samples += 1
            empty += [] if samples else [part.name]
    return [f"nothing is in {', '.join(empty)}"] if empty else []


def _with_splits(
    captions: list[Caption], splits: Mapping[str, str], val_share: float, test_share: float, seed: int
) -> tuple[list[Caption], list[str]]:
    """The captions, divided if asked for, and notes on their splits."""
    without = [caption for caption in captions if not caption.split]
    if without and len(without) < len(captions):
        raise ManifestError(
            f"{without[0].clip}: no split, and so {len(without) - 1:,} more clips, while others have one; fill the "
            f"column of splits, or omit it by {FLAGS['split']} ''"
        )
    have = list(dict.fromkeys(caption.split or "train" for caption in captions))
    for name in splits:
        if name not in have:
            raise ConfigError(f"--split {name}=…: the data set has no such split; it has {', '.join(have) or 'none'}")
    if val_share or test_share:
        if len(have) > 1:
            raise ConfigError(
                f"--val-share and --test-share require a data set of one split; this has {', '.join(have)} (omit them)"
            )
        captions, note = divide(captions, val_share, test_share, seed)
        return captions, [note]
    notes = ["all captions are in train; --val-share and --test-share divide them"] if have == ["train"] else []
    return [caption if caption.split else replace(caption, split="train") for caption in captions], notes


class _UnusableError(Exception):
    """A clip or an image cannot be used; arguments are "missing" or "empty", and why."""


class _Stored(NamedTuple):
    """A clip or an image that is a file: its path, and the fingerprint of its contents."""

    path: str
    digest: str


class _Rows:
    """Turns rows into captions, and their clips and images into files of ``folder``.

    Files are named by their contents, in ``clips/`` and ``images/``, each with up to 256 folders by the first two
    digits of the name. Existing files stay.
    """

    def __init__(self, folder: Path, roots: Sequence[Path], language: str | None) -> None:
        self.folder = folder
        self.captions: list[Caption] = []
        self.problems = Problems()
        self._roots, self._language = roots, language
        self._image_of_clip: dict[str, str] = {}  # fingerprint of a clip → id of its first image
        self.bar: Any = None

    @contextmanager
    def reading(self, part: Part) -> Iterator[None]:
        """While a part is read: a damaged one becomes a problem."""
        try:
            yield
        except BrokenPartError as error:
            broken = self.problems.missing.setdefault("shards", [])
            broken.append(f"{part.name}: damaged or cut short: {error}")
        self.bar.advance()

    def add(self, place: str, values: Values, split: str | None) -> None:
        """Adds the captions of a row, and to the problems the clips and images that cannot be used."""
        clips, images = _as_list(values["clip"]), _as_list(values["image"])
        if len(images) > 1:
            raise ManifestError(f"{place}: {len(images)} images in one row; name a column of one by {FLAGS['image']}")
        texts, speakers, languages = (_of_clips(values, role, len(clips), place) for role in OF_CLIP[1:])
        image = images[0] if isinstance(images[0], _Stored) else self.store(images[0], "image", place)
        image_id = word(values.get("image_id"), place, FLAGS["image_id"]) or (image.digest if image else "")
        split = word(values.get("split"), place, FLAGS["split"]) or split
        for number, value in enumerate(clips):
            clip = self.store(value, "clip", place if len(clips) == 1 else f"{place} ({number + 1})")
            # A manifest has each clip once, so the same audio for another image becomes a file of its own.
            if clip and image and self._image_of_clip.setdefault(clip.digest, image_id) != image_id:
                clip = self.store(value, "clip", place, image_id)
            if clip and image:
                self.captions.append(
                    Caption(
                        clip=clip.path,
                        image=image.path,
                        image_id=image_id,
                        split=split or "",
                        text=texts[number],
                        speaker=speakers[number],
                        language=languages[number] or self._language,
                    )
                )

    def find_extra(self) -> None:
        """Adds to the problems the files of earlier runs that no caption uses."""
        if self.folder.is_dir():
            used = {path for caption in self.captions for path in (caption.clip, caption.image)}
            listing = Listing(self.folder, "--to")
            for what, suffixes in (("clips", AUDIO_SUFFIXES), ("images", IMAGE_SUFFIXES)):
                extra = [listing.relative(path) for path in listing.files(suffixes) if path not in used]
                self.problems.extra[what] += extra

    def store(self, value: Any, kind: Kind, place: str, other: str = "") -> _Stored | None:
        """A clip or an image as a file; None, and a problem, if it cannot be used."""
        fields = value if isinstance(value, dict) else {"bytes" if isinstance(value, bytes) else "path": value}
        data, name = fields.get("bytes"), fields.get("path")
        try:
            if data is not None:
                return self._write(data, name, kind, other)
            path = self._existing(name)
        except _UnusableError as error:
            state, why = error.args
            self.problems.names()[state][f"{kind}s"].append(f"{place}: {why}")
            return None
        with path.open("rb") as file:
            return _Stored(os.fspath(path), fingerprint(file))

    def _write(self, data: bytes, name: str | None, kind: Kind, other: str) -> _Stored:
        if not data:
            raise _UnusableError("empty", "no bytes")
        found = file_kind(io.BytesIO(data))
        suffix = found.suffix if found else os.path.splitext(name or "")[1].lower()
        if kind_by_suffix(f"x{suffix}") != kind:
            raise _UnusableError("missing", f"the bytes are not {'audio' if kind == 'clip' else 'an image'}")
        digest = fingerprint(data)
        name = f"{digest}-{fingerprint(other.encode())[:8]}{suffix}" if other else digest + suffix
        path = self.folder / f"{kind}s" / name[:2] / name
        # The name tells the contents. After a power cut a file may exist without them, so its size is checked.
        if not path.exists() or path.stat().st_size != len(data):
            path.parent.mkdir(parents=True, exist_ok=True)
            write_bytes(path, data, durable=False)
        return _Stored(os.fspath(path), digest)

    def _existing(self, name: Any) -> Path:
        if not isinstance(name, str) or not name:
            raise _UnusableError("missing", "no bytes and no path")
        path = next((root / name for root in self._roots if (root / name).is_file()), None)
        if path is None:
            is_url = "://" in name
            raise _UnusableError(
                "missing", f"{name:.60} is a URL, not a file" if is_url else f"no bytes, no file {name}"
            )
        if path.stat().st_size == 0:
            raise _UnusableError("empty", f"{name} has no bytes")
        return path


def _as_list(value: Any) -> list[Any]:
    return (value if isinstance(value, list) else [value]) or [None]


def _of_clips(values: Values, role: str, count: int, place: str) -> list[str | None]:
    """The text, speaker or language of each clip of a row."""
    found = values.get(role)
    each = found if isinstance(found, list) else [found] * count
    if len(each) != count or any(isinstance(value, list | dict) for value in each):
        raise ManifestError(
            f"{place}: {role} {found!r:.60} does not fit {count} clips; name its column by {FLAGS[role]}, or omit it "
            f"by {FLAGS[role]} ''"
        )
    return [word(value, place, FLAGS[role]) for value in each]
