"""From what a corpus lists to a manifest of what is there: every reader ends here.

What is missing or empty is counted against a limit, what is extra is told, and so is a difference from the counts that
the corpus was published with. Files are not decoded: that is ``saysee data verify``.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from saysee.data.corpora.finding import FileIndex
from saysee.data.manifest import Manifest, Row
from saysee.errors import ConfigError, ManifestError, SaySeeError
from saysee.files import write_text
from saysee.log import progress_bar

_SHOWN = 5  # names in a line of notes: enough to see a pattern; the file beside the manifest has all


@dataclass(frozen=True, slots=True)
class Caption:
    """One spoken caption as a corpus lists it.

    Attributes:
        clip: name or path of the sound, as listed.
        image: name or path of the picture, as listed.
        image_id, split, text, speaker, language: as in a manifest's ``Row``.
    """

    clip: str
    image: str
    image_id: str
    split: str
    text: str | None = None
    speaker: str | None = None
    language: str | None = "en"


@dataclass(frozen=True)
class Expected:
    """What a corpus was published with.

    Attributes:
        corpus: its name in messages.
        images: images of each split; "all" stands for the sum.
        clips: clips of each split, likewise.
        clips_within: share of a count by which clips may differ untold, as copies and papers do not agree on them.
    """

    corpus: str
    images: Mapping[str, int] = field(default_factory=dict)
    clips: Mapping[str, int] = field(default_factory=dict)
    clips_within: float = 0.0

    def differences(self, images: Mapping[str, int], clips: Mapping[str, int]) -> list[str]:
        """One phrase for each count that differs."""
        told = []
        for what, known, counted, within in (
            ("images", self.images, images, 0.0),
            ("clips", self.clips, clips, self.clips_within),
        ):
            for split, count in known.items():
                here = sum(counted.values()) if split == "all" else counted.get(split, 0)
                if abs(here - count) > within * count:
                    told.append(f"{here:,} {what} in {split}, not {count:,}")
        return told


@dataclass
class Problems:
    """What a copy lacks and what it has too much: "clips" or "images" → names.

    Attributes:
        missing: listed, but not there.
        empty: listed and there, but of zero bytes.
        extra: there, but not listed.
    """

    missing: dict[str, list[str]] = field(default_factory=lambda: {"clips": [], "images": []})
    empty: dict[str, list[str]] = field(default_factory=lambda: {"clips": [], "images": []})
    extra: dict[str, list[str]] = field(default_factory=lambda: {"clips": [], "images": []})

    @property
    def lacking(self) -> int:
        """How many files are missing or empty: what the limit is on."""
        return _count(self.missing) + _count(self.empty)

    def counts(self) -> dict[str, int]:
        """How many files are missing, empty and extra."""
        return {"missing": _count(self.missing), "empty": _count(self.empty), "extra": _count(self.extra)}

    def tell_lacking(self) -> str:
        """Missing and empty files as one phrase, with the first names."""
        return ", ".join([*_phrases("missing", self.missing), *_phrases("empty", self.empty)])

    def tell_extra(self) -> str:
        """Extra files as one phrase, with the first names."""
        return ", ".join(_phrases("extra", self.extra))


@dataclass(frozen=True)
class Prepared:
    """A manifest that was written, and what there is to say of it.

    Attributes:
        manifest: its path.
        clips: clips of each split.
        images: images of each split.
        problems: what is missing, empty or extra.
        problems_file: all names of it as JSON; None if there is nothing to list.
        notes: what a user should know, a line each.
    """

    manifest: Path
    clips: dict[str, int]
    images: dict[str, int]
    problems: Problems
    problems_file: Path | None
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """As plain values."""
        return {
            "manifest": str(self.manifest),
            "splits": {split: {"images": self.images[split], "clips": count} for split, count in self.clips.items()},
            **self.problems.counts(),
            "problems": None if self.problems_file is None else str(self.problems_file),
            "notes": list(self.notes),
        }

    def to_line(self) -> str:
        """In one line."""

        def counted(number: int, noun: str) -> str:
            return f"{number:,} {noun if number == 1 else noun + 's'}"

        splits = ", ".join(
            f"{split} {counted(count, 'clip')} of {counted(self.images[split], 'picture')}"
            for split, count in self.clips.items()
        )
        return f"{self.manifest}: {splits}"


def listed_caption(record: Mapping[str, Any], text: str, image: str, split: str, where: str) -> Caption:
    """A caption from the object that SpokenCOCO and Places have for it: ``wav``, ``speaker``, ``uttid`` and a text.

    Args:
        record: the object.
        text: the key of its text.
        image: path of its picture, as listed.
        split: its split.
        where: file and entry, for the message.

    Raises:
        ManifestError: it names no sound, or something in it is no string.
    """
    for key in ("wav", "uttid", "speaker", text):
        if not isinstance(record.get(key), str | None):
            raise ManifestError(f"{where}: {key!r} is {record[key]!r:.40}; make it a string")
    clip = record.get("wav") or record.get("uttid")  # the sound has the utterance's name
    if not clip:
        raise ManifestError(f"{where} has no 'wav'; copy the file again")
    image_id = os.path.splitext(image.replace("\\", "/"))[0]
    return Caption(clip, image, image_id, split, text=record.get(text), speaker=record.get("speaker"))


def check_target(to: str | os.PathLike[str], allow_missing: int) -> Path:
    """The manifest's path, before a long walk over files begins.

    Raises:
        ManifestError: its suffix is no manifest's.
        ConfigError: ``allow_missing`` is negative.
    """
    path = Path(to)
    if path.suffix.lower() not in (".parquet", ".jsonl"):
        raise ManifestError(f"{path}: the suffix {path.suffix!r} is no manifest's; use .parquet or .jsonl (--to)")
    if allow_missing < 0:
        raise ConfigError(f"--allow-missing is {allow_missing}; set it to at least 0")
    return path


def prepare(
    captions: Iterable[Caption],
    clips: FileIndex,
    images: FileIndex,
    to: Path,
    *,
    allow_missing: int,
    expected: Expected,
    unspoken: Sequence[str] = (),
    unseen: Sequence[str] = (),
    notes: Sequence[str] = (),
) -> Prepared:
    """Write the manifest of those captions whose sound and picture are there and not empty.

    Args:
        captions: what the corpus lists.
        clips: the sounds there are.
        images: the pictures there are.
        to: the manifest; ``PATH.problems.json`` beside it lists what is missing, empty or extra, if anything is.
        allow_missing: how many files may be missing or empty.
        expected: the published counts.
        unspoken: pictures that the corpus lists and has no caption of; each counts as a missing clip.
        unseen: clips that speak of no picture; each counts as a missing picture.
        notes: what the reader has to say, put in front.

    Raises:
        ManifestError: a clip of two pictures, or a picture in two splits.
        SaySeeError: none of the clips or pictures is there, or more files are missing or empty than allowed.
    """
    listed = list(captions)
    problems = Problems()
    problems.missing["clips"] += [f"any clip of {name}" for name in unspoken]
    problems.missing["images"] += [f"the picture of {name}" for name in unseen]
    sounds = _usable("clips", [caption.clip for caption in listed], unseen, clips, problems)
    pictures = _usable("images", [caption.image for caption in listed], unspoken, images, problems)
    twice = [_tell_twice(index) for index in (clips, images) if index.ambiguous]
    return write_prepared(
        listed, sounds, pictures, to, problems, allow_missing=allow_missing, expected=expected, notes=[*notes, *twice]
    )


def write_prepared(
    captions: Iterable[Caption],
    sounds: Mapping[str, str],
    pictures: Mapping[str, str],
    to: Path,
    problems: Problems,
    *,
    allow_missing: int,
    expected: Expected,
    notes: Sequence[str],
) -> Prepared:
    """Write the manifest of those captions whose files are known.

    Args:
        captions: what the corpus lists.
        sounds: the file of each ``clip`` that can be used.
        pictures: the file of each ``image`` that can be used.
        to, allow_missing, expected, notes: as in ``prepare``.
        problems: what is missing, empty or extra.

    Raises:
        ManifestError: a clip of two pictures, or a picture in two splits.
        SaySeeError: no clip has its picture, or more is missing or empty than allowed.
    """
    listed, doubled = _distinct(captions)
    names = _list_problems(to, problems)
    if problems.lacking > allow_missing:
        raise SaySeeError(
            f"{to}: not written, as files are lacking: {problems.tell_lacking()}; bring them, or go on without by "
            f"--allow-missing {problems.lacking} (all names are in {names})"
        )
    rows = _rows(listed, sounds, pictures, to.parent)
    if not rows:
        raise SaySeeError(f"{to}: not written, as no clip has its picture; check the folders")
    manifest = Manifest(rows, to.parent)
    manifest.write(to)
    counts = manifest.splits()
    image_counts = dict(Counter(row.split for row in manifest.images()))
    told = [*notes, *_notes(problems, len(listed) - len(rows), doubled, names)]
    if differences := expected.differences(image_counts, counts):
        told.append(f"not {expected.corpus} as it was published: {'; '.join(differences)}")
    return Prepared(to, counts, image_counts, problems, names, tuple(told))


def _distinct(captions: Iterable[Caption]) -> tuple[list[Caption], int]:
    """The captions without those that come again, and how many these were.

    Raises:
        ManifestError: a clip of two pictures, or a picture in two splits.
    """
    clips: dict[str, Caption] = {}
    splits: dict[str, str] = {}
    doubled = 0
    for caption in captions:
        first = clips.setdefault(caption.clip, caption)
        if first is not caption:
            if first.image_id != caption.image_id:
                both = f"{first.image!r} and {caption.image!r}"
                raise ManifestError(
                    f"clip {caption.clip!r} is listed for two pictures, {both}; take one out of the lists"
                )
            doubled += 1
        split = splits.setdefault(caption.image_id, caption.split)
        if split != caption.split:
            raise ManifestError(
                f"picture {caption.image!r} is listed in the splits {split!r} and {caption.split!r}; keep it in one"
            )
    return list(clips.values()), doubled


def _usable(what: str, names: list[str], alone: Sequence[str], index: FileIndex, problems: Problems) -> dict[str, str]:
    """The file of each name that has one with something in it; the others, and what is extra, go into ``problems``.

    Files of the names in ``alone``, which lack their other half, are not extra.

    Raises:
        SaySeeError: none of the names has a file.
    """
    found = index.match(names)
    if names and not any(found.values()):
        raise SaySeeError(
            f"{index.listing.folder}: none of the {len(found):,} listed {what} is there (such as {names[0]!r}); "
            f"name the folder that holds them"
        )
    usable: dict[str, str] = {}
    with progress_bar(f"looking at {what}", len(found)) as bar:
        for name, path in found.items():
            size = None if path is None else _size(path)
            if path is None or size is None:
                problems.missing[what].append(name)
            elif size == 0:
                problems.empty[what].append(name)
            else:
                usable[name] = path
            bar.advance()
    taken = {*found.values(), *index.match(alone).values()}
    problems.extra[what] += [index.listing.relative(path) for path in index.paths if path not in taken]
    return usable


def _size(path: str) -> int | None:
    """A file's size in bytes; None for a link that leads nowhere."""
    try:
        return os.stat(path).st_size
    except FileNotFoundError:
        return None


def _rows(listed: list[Caption], sounds: Mapping[str, str], pictures: Mapping[str, str], root: Path) -> list[Row]:
    """The rows of those captions that have both files."""
    place = _Placing(root)
    return [
        Row(
            clip=place(sounds[caption.clip]),
            image=place(pictures[caption.image]),
            image_id=caption.image_id,
            split=caption.split,
            text=caption.text or None,
            speaker=caption.speaker or None,
            language=caption.language,
        )
        for caption in listed
        if caption.clip in sounds and caption.image in pictures
    ]


class _Placing:
    """Writes a file's path as from the manifest's folder; absolute where there is no way (another drive)."""

    def __init__(self, root: Path) -> None:
        self._root = os.path.realpath(root)  # ".." climbs from where the folder really is, not from a link to it
        self._folders: dict[str, str] = {}  # a million files lie in few folders

    def __call__(self, path: str) -> str:
        folder, name = os.path.split(path)
        if folder not in self._folders:
            self._folders[folder] = self._relative(os.path.abspath(folder))
        return os.path.join(self._folders[folder], name)

    def _relative(self, folder: str) -> str:
        try:
            relative = os.path.relpath(folder, self._root)
        except ValueError:
            return folder
        return "" if relative == os.curdir else relative


# --- what is told -----------------------------------------------------------------------------------------------------


def _list_problems(to: Path, problems: Problems) -> Path | None:
    """Writes all names beside the manifest, or takes an earlier list away if there are none.

    Raises:
        ManifestError: it cannot be written.
    """
    path = to.with_name(f"{to.name}.problems.json")
    try:
        if not any(problems.counts().values()):
            path.unlink(missing_ok=True)
            return None
        to.parent.mkdir(parents=True, exist_ok=True)
        content = {"missing": problems.missing, "empty": problems.empty, "extra": problems.extra}
        text = json.dumps(content, ensure_ascii=False, indent=1)
        # A name that is not valid Unicode becomes an escape, which is JSON too.
        write_text(path, text.encode("utf-8", "backslashreplace").decode() + "\n")
    except OSError as error:
        raise ManifestError(f"{path}: cannot be written ({error.strerror or error}); choose another --to") from None
    return path


def _notes(problems: Problems, left_out: int, doubled: int, names: Path | None) -> list[str]:
    notes = []
    if problems.lacking:
        notes.append(f"lacking: {problems.tell_lacking()}; {left_out:,} listed clips left out")
    if extra := problems.tell_extra():
        notes.append(f"not in the manifest: {extra}")
    if names:
        notes.append(f"all these names are in {names}")
    if doubled:
        notes.append(f"{doubled:,} clips are listed more than once; taken once")
    return notes


def _tell_twice(index: FileIndex) -> str:
    name, taken, other = index.ambiguous[0]
    here = index.listing.relative
    first = f"{here(taken)!r} was taken for {name!r}, not {here(other)!r}"
    return f"{len(index.ambiguous):,} names have several files; {first}"


def _count(names: Mapping[str, list[str]]) -> int:
    return sum(map(len, names.values()))


def _phrases(state: str, names: Mapping[str, list[str]]) -> list[str]:
    phrases = []
    for what, listed in names.items():
        if listed:
            shown = ", ".join(listed[:_SHOWN])
            more = f" and {len(listed) - _SHOWN:,} more" if len(listed) > _SHOWN else ""
            noun = what if len(listed) > 1 else what.removesuffix("s")
            phrases.append(f"{len(listed):,} {state} {noun} ({shown}{more})")
    return phrases
