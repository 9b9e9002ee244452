"""Data sets of the Hugging Face hub, and WebDataset tars, which hold audio and images in their files (extra ``hub``).

The ``datasets`` library finds the files of a data set with their splits, and reads its tables. Nothing is decoded: the
bytes of clips and images become files beside the manifest; files to which a table refers stay where they are.
"""

from __future__ import annotations

import glob
import io
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from saysee.data.corpora.finding import split_word
from saysee.data.corpora.folder import check_shares, divide
from saysee.data.corpora.hub_rows import FLAGS, BrokenPartError, Values, first_line, read_table, read_tar
from saysee.data.corpora.preparing import Caption, Expected, Prepared, Problems, check_target, prepare
from saysee.errors import ConfigError, ManifestError, SaySeeError, extra_needed
from saysee.files import fingerprint, write_bytes
from saysee.log import progress_bar
from saysee.media.folders import Listing
from saysee.media.formats import AUDIO_SUFFIXES, IMAGE_SUFFIXES, Kind, file_kind, kind_by_suffix

_FORMS = {".parquet": "parquet", ".arrow": "arrow", ".tar": "tar", ".tgz": "tar", ".gz": "tar"}
_SHARD = re.compile(r"^(.+?)-\d{5}-of-(\d{5})")
_HUB_NAME = re.compile(r"^[\w-][\w.-]*/[\w-][\w.-]*$", re.ASCII)
_BRACES = re.compile(r"\{(?:(\d+)\.\.(\d+)|([^{}]*,[^{}]*))\}")


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
    parts, roots, missing = _find_parts([os.fspath(source) for source in sources], config)
    rows = _Rows(target.with_name(f"{target.stem}.files"), roots, language)
    rows.problems.missing |= {"shards": missing} if missing else {}
    empty: list[str] = []
    with progress_bar("reading files of the data set", len(parts)) as bar:
        for part in parts:
            samples = 0
            try:
                for place, values in part.read(names, part.name):
                    rows.add(place, values, part.split)
                    samples += 1
                if not samples:
                    empty.append(part.name)
            except BrokenPartError as error:
                broken = rows.problems.missing.setdefault("shards", [])
                broken.append(f"{part.name}: damaged or cut short: {error}")
            bar.advance()
    captions, notes = _with_splits(rows.captions, splits or {}, val_share, test_share, seed)
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
        notes=[
            f"read from {read}; audio and images are in {rows.folder}",
            *([f"nothing is in {', '.join(empty)}"] if empty else []),
            *notes,
        ],
    )


def _with_splits(
    captions: list[Caption], splits: Mapping[str, str], val_share: float, test_share: float, seed: int
) -> tuple[list[Caption], list[str]]:
    """The captions, divided if asked for, and notes on their splits."""
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

    def add(self, place: str, values: Values, split: str | None) -> None:
        """Adds the captions of a row, and to the problems the clips and images that cannot be used."""
        clips, images = _as_list(values["clip"]), _as_list(values["image"])
        if len(images) > 1:
            raise ManifestError(f"{place}: {len(images)} images in one row; name a column of one by {FLAGS['image']}")
        texts = values.get("text")
        texts = texts if isinstance(texts, list) else [texts] * len(clips)
        if len(texts) != len(clips) or not all(isinstance(text, str | None) for text in texts):
            raise ManifestError(
                f"{place}: texts {texts!r:.60} do not fit {len(clips)} clips; name the column of the spoken text by "
                f"{FLAGS['text']}, or omit texts by {FLAGS['text']} ''"
            )
        words = {
            role: None if (value := values.get(role)) in (None, "") else str(value)
            for role in ("image_id", "split", "speaker", "language")
        }
        image = self._file(images[0], "image", place)
        image_id = words["image_id"] or (image[1] if image else "")
        for number, (value, text) in enumerate(zip(clips, texts, strict=True), 1):
            clip = self._file(value, "clip", place if len(clips) == 1 else f"{place} ({number})")
            # A manifest has each clip once, so the same audio for another image becomes a file of its own.
            if clip and image and self._image_of_clip.setdefault(clip[1], image_id) != image_id:
                clip = self._file(value, "clip", place, image_id)
            if clip and image:
                self.captions.append(
                    Caption(
                        clip=clip[0],
                        image=image[0],
                        image_id=image_id,
                        split=words["split"] or split or "",
                        text=text or None,
                        speaker=words["speaker"],
                        language=words["language"] or self._language,
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

    def _file(self, value: Any, kind: Kind, place: str, other: str = "") -> tuple[str, str] | None:
        """Path and fingerprint of a clip or an image; None, and a problem, if it cannot be used."""
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
            return os.fspath(path), fingerprint(file)

    def _write(self, data: bytes, name: str | None, kind: Kind, other: str) -> tuple[str, str]:
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
        return os.fspath(path), digest

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


@dataclass(frozen=True)
class _Part:
    """A file of a data set, or ("split") one split of ``save_to_disk``; ``read`` is ``read_table`` or ``read_tar``."""

    name: str
    form: str
    split: str | None
    read: Callable[[Mapping[str, str], str], Iterator[tuple[str, Values]]]


def _find_parts(sources: Sequence[str], config: str | None) -> tuple[list[_Part], list[Path], list[str]]:
    """The parts of a data set in order, the folders of relative paths in it, and the names of missing files."""
    names = [name for pattern in sources for name in _expand(pattern)]
    for name in names:  # before the hub is asked
        if not (os.path.exists(name) or _form(name) or _HUB_NAME.match(name)):
            raise SaySeeError(f"{name}: no such file or folder, and not an OWNER/NAME of the hub; check the path")
    with extra_needed("reading data sets of the Hugging Face hub", "hub"):
        import datasets
    parts: list[_Part] = []
    missing: list[str] = []
    for name in names:
        if os.path.isfile(name):
            parts.append(_file_part(name, _split_of_name(os.path.basename(name)), datasets))
        elif _form(name) and not os.path.isdir(name):
            missing.append(f"{os.path.basename(name)}: no such file")
        else:
            try:
                parts += _resolve(name, config, datasets)
            except SaySeeError:
                raise
            except Exception as error:  # of datasets, the hub client or the network
                raise SaySeeError(
                    f"{name}: not a folder, and not a data set of the hub that can be read ({first_line(error)}); "
                    "check the name"
                ) from None
    if not parts:
        raise SaySeeError(f"{', '.join(sources)}: none of its files exists; check the path")
    forms = sorted({part.form for part in parts})
    if len(forms) > 1:
        raise SaySeeError(f"{', '.join(sources)}: files of several kinds ({', '.join(forms)}); name those of one kind")
    roots = [path for source in sources for path in (Path(source), Path(source).parent) if path.is_dir()]
    return parts, list(dict.fromkeys(roots)), missing + _gaps(parts)


def _resolve(source: str, config: str | None, datasets: Any) -> list[_Part]:
    """The splits of a folder of ``save_to_disk``, or the files of another folder or of a data set on the hub."""
    name = os.path.basename(os.path.abspath(source))
    if any(os.path.isfile(os.path.join(source, file)) for file in ("dataset_dict.json", "state.json")):
        saved = datasets.load_from_disk(source)
        tables = saved if isinstance(saved, dict) else {saved.split: saved}
        return [
            _Part(
                f"{name} {split}" if split else name,
                "split",
                str(split) if split else None,
                partial(read_table, table.to_iterable_dataset().decode(False)),
            )
            for split, table in tables.items()
        ]
    if os.path.isdir(source) and glob.has_magic(os.path.abspath(source)):
        raise SaySeeError(
            f"{source}: datasets takes *, ? and [ in this path for a pattern; rename it, or name the files"
        )
    files = datasets.load_dataset_builder(source, config).config.data_files or {}
    return [_file_part(path, str(split), datasets) for split, paths in files.items() for path in paths]


def _file_part(path: str, split: str | None, datasets: Any) -> _Part:
    form = _form(path)
    if form is None:
        raise SaySeeError(f"{path}: not a .parquet, .arrow or .tar file; name such files, or a folder of them")

    def read_file(names: Mapping[str, str], part: str) -> Iterator[tuple[str, Values]]:
        try:
            pattern = path if "://" in path else glob.escape(path)
            table = datasets.load_dataset(form, data_files=[pattern], split="train", streaming=True).decode(False)
        except Exception as error:
            raise BrokenPartError(first_line(error)) from None
        yield from read_table(table, names, part)

    return _Part(re.split(r"[/\\]", path)[-1], form, split, partial(read_tar, path) if form == "tar" else read_file)


def _form(path: str) -> str | None:
    suffix = os.path.splitext(path)[1].lower()
    return None if suffix == ".gz" and not path.lower().endswith(".tar.gz") else _FORMS.get(suffix)


def _split_of_name(name: str) -> str | None:
    """The split in the name of a file: ``SPLIT-00000-of-00003.parquet``, or the last word such as train."""
    if numbered := _SHARD.match(name):
        return numbered[1]
    word = split_word(name.split(".")[0])
    return "_".join(filter(None, word.groups())).lower() if word else None


def _expand(pattern: str) -> list[str]:
    """The names for which braces stand: ``{000..010}`` are numbers of that width, ``{a,b}`` words."""
    braces = None if os.path.exists(pattern) else _BRACES.search(pattern)
    if braces is None:
        return [pattern]
    first, last, words = braces.groups()
    values = words.split(",") if words else [str(n).zfill(len(first)) for n in range(int(first), int(last) + 1)]
    return [name for value in values for name in _expand(pattern[: braces.start()] + value + pattern[braces.end() :])]


def _gaps(parts: Sequence[_Part]) -> list[str]:
    """The missing ones of files that are numbered ``-00000-of-00003``."""
    shards = [(part.split, found) for part in parts if (found := _SHARD.match(part.name))]
    have = {(split, found[0]) for split, found in shards}
    series = dict.fromkeys((split, found[1], found[2]) for split, found in shards)
    names = [(split, f"{stem}-{n:05d}-of-{total}") for split, stem, total in series for n in range(int(total))]
    return [f"{name}: no such file" for split, name in names if (split, name) not in have]
