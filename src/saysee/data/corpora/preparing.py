"""From what a corpus lists to a manifest of the files that exist: the last step of every reader.

Files are not decoded; ``saysee data verify`` does that.
"""

import json
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from saysee.data.corpora.finding import FileIndex
from saysee.data.manifest import Manifest, Row, check_suffix, relative_to
from saysee.data.tables import split_name
from saysee.errors import ConfigError, ManifestError, SaySeeError
from saysee.files import write_text
from saysee.log import progress_bar

_SHOWN = 5  # names in one line: enough to see a pattern


@dataclass(frozen=True)
class Expected:
    """The published numbers of images and clips of a corpus in each split; "all" stands for the sum.

    ``clips_within`` is a tolerance as a share of the count, because copies and papers disagree.
    """

    corpus: str
    images: Mapping[str, int] = field(default_factory=dict)
    clips: Mapping[str, int] = field(default_factory=dict)
    clips_within: float = 0.0

    def differences(self, images: Mapping[str, int], clips: Mapping[str, int]) -> list[str]:
        """One phrase for each count that differs."""
        phrases = []
        for what, published, counted, within in (
            ("images", self.images, images, 0.0),
            ("clips", self.clips, clips, self.clips_within),
        ):
            for split, count in published.items():
                here = sum(counted.values()) if split == "all" else counted.get(split, 0)
                if abs(here - count) > within * count:
                    phrases.append(f"{here:,} {what} in {split}, not {count:,}")
        return phrases


def _nothing() -> dict[str, list[str]]:
    return {"clips": [], "images": []}


@dataclass
class Problems:
    """Names of clips and images that are listed but missing or empty, and of extra ones, which are not listed."""

    missing: dict[str, list[str]] = field(default_factory=_nothing)
    empty: dict[str, list[str]] = field(default_factory=_nothing)
    extra: dict[str, list[str]] = field(default_factory=_nothing)

    @property
    def unusable(self) -> int:
        """Number of missing and empty files, on which ``allow_missing`` is the limit."""
        counts = self.counts()
        return counts["missing"] + counts["empty"]

    def counts(self) -> dict[str, int]:
        """Number of missing, empty and extra files."""
        return {state: sum(map(len, names.values())) for state, names in vars(self).items()}

    def describe(self, *states: str) -> str:
        """The files of some states as one phrase, with the first names."""
        phrases = []
        for state in states:
            for what, names in vars(self)[state].items():
                if names:
                    shown = ", ".join(names[:_SHOWN])
                    more = f" and {len(names) - _SHOWN:,} more" if len(names) > _SHOWN else ""
                    phrases.append(f"{len(names):,} {state} {_noun(what[:-1], len(names))} ({shown}{more})")
        return ", ".join(phrases)


@dataclass(frozen=True)
class Prepared:
    """A manifest that was written, with the numbers of clips and images in each split."""

    manifest: Path
    clips: dict[str, int]
    images: dict[str, int]
    problems: Problems
    problems_file: Path | None  # JSON file with all names in ``problems``; None if there are none
    notes: tuple[str, ...]  # what a user should know, one line each

    def to_dict(self) -> dict[str, Any]:
        """As plain values for JSON."""
        return {
            "manifest": str(self.manifest),
            "splits": {split: {"images": self.images[split], "clips": count} for split, count in self.clips.items()},
            **self.problems.counts(),
            "problems": None if self.problems_file is None else str(self.problems_file),
            "notes": list(self.notes),
        }

    def to_line(self) -> str:
        """As one line."""
        both = ((split, count, self.images[split]) for split, count in self.clips.items())
        parts = [f"{split} {n:,} {_noun('clip', n)} of {m:,} {_noun('image', m)}" for split, n, m in both]
        return f"{self.manifest}: {', '.join(parts)}"


def listed_caption(record: Mapping[str, Any], text: str, image: object, split: str, where: str) -> Row:
    """A row from an object of SpokenCOCO's or Places's JSON: ``wav``, ``speaker``, ``uttid`` and the key ``text``.

    Raises ManifestError if it names no clip or no image, or a value is not a string.
    """
    if not isinstance(image, str) or not image:
        raise ManifestError(f"{where} has no 'image'; copy the file again")
    for key in ("wav", "uttid", "speaker", text):
        if not isinstance(record.get(key), str | None):
            raise ManifestError(f"{where}: {key!r} is {record[key]!r:.40}; make it a string")
    clip = record.get("wav") or record.get("uttid")  # the clip is named after the utterance
    if not clip:
        raise ManifestError(f"{where} has no 'wav'; copy the file again")
    image_id = os.path.splitext(image.replace("\\", "/"))[0]
    return Row(clip, image, image_id, split, text=record.get(text), speaker=record.get("speaker"))


def check_target(to: str | os.PathLike[str], allow_missing: int) -> Path:
    """Checks what all readers share, before a long walk over files begins; returns ``to`` as a path."""
    path = check_suffix(to)
    if allow_missing < 0:
        raise ConfigError(f"--allow-missing is {allow_missing}; set it to at least 0")
    return path


def prepare(
    captions: Iterable[Row],
    clips: FileIndex | None,
    images: FileIndex | None,
    to: Path,
    allow_missing: int,
    expected: Expected,
    *,
    splits: Mapping[str, str] | None = None,
    images_without_clip: Sequence[str] = (),
    clips_without_image: Sequence[str] = (),
    problems: Problems | None = None,
    notes: Sequence[str] = (),
) -> Prepared:
    """Write the manifest of those captions whose clip and image exist and are not empty.

    Args:
        captions: what the corpus lists, with its names or paths of clips and images.
        clips, images: the files that exist; None if captions have the paths of existing files.
        to: the manifest; ``PATH.problems.json`` beside it lists what is missing, empty or extra, if anything is.
        allow_missing: how many files may be missing or empty.
        splits: new names of some splits; the others are renamed by :func:`saysee.data.tables.split_name`.
        images_without_clip, clips_without_image: listed without counterpart; each counts as one missing file.
        problems, notes: those of the reader.

    Raises ManifestError for a clip of two images or an image in two splits; SaySeeError if none of the clips or images
    exists, or more files are missing or empty than allowed.
    """
    captions, split_notes = _with_splits(captions, splits or {})
    problems = problems or Problems()
    problems.missing["clips"] += [f"any clip of {name}" for name in images_without_clip]
    problems.missing["images"] += [f"the image of {name}" for name in clips_without_image]
    clip_files = _usable("clips", [caption.clip for caption in captions], clips_without_image, clips, problems)
    image_files = _usable("images", [caption.image for caption in captions], images_without_clip, images, problems)
    ambiguous = [_describe_ambiguous(index) for index in (clips, images) if index and index.ambiguous]
    notes = [*notes, *split_notes, *ambiguous]
    listed, repeated = _distinct(captions)
    problems_file = _write_problems(to, problems)
    unusable, described = problems.unusable, problems.describe("missing", "empty")
    if unusable > allow_missing:
        fix = f"add them, or continue without them by --allow-missing {unusable} (all names are in {problems_file})"
        raise SaySeeError(f"{to}: not written, because files are missing: {described}; {fix}")
    relative = relative_to(to.parent)
    rows = []
    for row in listed:
        if row.clip in clip_files and row.image in image_files:
            clip, image = relative(clip_files[row.clip]), relative(image_files[row.image])
            rows.append(replace(row, clip=clip, image=image, text=row.text or None, speaker=row.speaker or None))
    if not rows:
        raise SaySeeError(f"{to}: not written, because no clip has its image; check the folders")
    manifest = Manifest(rows, to.parent)
    manifest.write(to)
    counts = manifest.splits()
    image_counts = dict(Counter(row.split for row in manifest.images()))
    extra, unknown = problems.describe("extra"), sum(row.language is None for row in rows)
    differences = expected.differences(image_counts, counts)
    for is_so, note in (
        (unusable, f"{described}; {len(listed) - len(rows):,} listed clips skipped"),
        (extra, f"not in the manifest: {extra}"),
        (problems_file, f"all these names are in {problems_file}"),
        (repeated, f"{repeated:,} clips are listed more than once; used once"),
        (unknown, f"the language of {unknown:,} clips is unknown; name it by --language"),
        (differences, f"differs from {expected.corpus} as published: {'; '.join(differences)}"),
    ):
        notes += [note] if is_so else []
    return Prepared(to, counts, image_counts, problems, problems_file, tuple(notes))


def _with_splits(captions: Iterable[Row], named: Mapping[str, str]) -> tuple[list[Row], list[str]]:
    """The captions with the splits of the manifest, and a note on those that were renamed."""
    captions = list(captions)
    splits = {name: split_name(name) for name in dict.fromkeys(caption.split for caption in captions)} | dict(named)
    renamed = {name: split for name, split in splits.items() if name != split}
    if not renamed:
        return captions, []
    note = f"splits: {', '.join(f'{name} → {split}' for name, split in renamed.items())}"
    return [replace(caption, split=splits[caption.split]) for caption in captions], [note]


def _distinct(captions: Iterable[Row]) -> tuple[list[Row], int]:
    """The captions without repeated clips, and the number of repetitions."""
    clips: dict[str, Row] = {}
    splits: dict[str, str] = {}
    repeated = 0
    for caption in captions:
        first = clips.setdefault(caption.clip, caption)
        if first is not caption:
            if first.image_id != caption.image_id:
                both = f"{first.image!r} and {caption.image!r}"
                raise ManifestError(f"clip {caption.clip!r} is listed for two images, {both}; remove one of them")
            repeated += 1
        split = splits.setdefault(caption.image_id, caption.split)
        if split != caption.split:
            both = f"{split!r} and {caption.split!r}"
            raise ManifestError(f"image {caption.image!r} is listed in the splits {both}; keep it in one")
    return list(clips.values()), repeated


def _usable(
    what: str, names: list[str], unpaired: Sequence[str], index: FileIndex | None, problems: Problems
) -> dict[str, str]:
    """The non-empty file of each name. Others are problems, and extra files, but for those of names in ``unpaired``."""
    if index is None:
        return {name: name for name in names}
    found = index.match(names)
    if names and not any(found.values()):
        none = f"none of the {len(found):,} listed {what} exists (such as {names[0]!r})"
        raise SaySeeError(f"{index.listing.folder}: {none}; name the folder that holds them")
    usable: dict[str, str] = {}
    with progress_bar(f"checking {what}", len(found)) as bar:
        for name, path in found.items():
            if path is None or not os.path.exists(path):  # or a broken link
                problems.missing[what].append(name)
            elif os.path.getsize(path) == 0:
                problems.empty[what].append(name)
            else:
                usable[name] = path
            bar.update()
    used = {*found.values(), *index.match(unpaired).values()}
    problems.extra[what] += [index.listing.relative(path) for path in index.paths if path not in used]
    return usable


def _write_problems(to: Path, problems: Problems) -> Path | None:
    """Writes all names to ``PATH.problems.json``, or deletes the file of an earlier run if there are none."""
    path = to.with_name(f"{to.name}.problems.json")
    try:
        if not any(problems.counts().values()):
            path.unlink(missing_ok=True)
            return None
        to.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps(vars(problems), ensure_ascii=False, indent=1)
        # Names that are not valid Unicode become JSON escapes.
        write_text(path, text.encode("utf-8", "backslashreplace").decode() + "\n")
    except OSError as error:
        raise ManifestError(f"{path}: cannot be written ({error.strerror or error}); choose another --to") from None
    return path


def _describe_ambiguous(index: FileIndex) -> str:
    name, chosen, other = index.ambiguous[0]
    relative = index.listing.relative
    first = f"{relative(chosen)!r} was chosen for {name!r}, not {relative(other)!r}"
    return f"{len(index.ambiguous):,} names have several files; {first}"


def _noun(noun: str, count: int) -> str:
    return noun if count == 1 else f"{noun}s"
