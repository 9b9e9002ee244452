"""Data sets as the Hugging Face hub and WebDataset have them: sounds and pictures within tables or tars.

- Parquet files, as the hub has them: ``data/train-00000-of-00002.parquet``, or ``default/train/0000.parquet``.
- folders of ``Dataset.save_to_disk`` and ``DatasetDict.save_to_disk``: Arrow files beside ``state.json``.
- WebDataset tars: ``train-{000..010}.tar``.

Sounds and pictures that the data set holds are put into files beside the manifest; those that it refers to stay where
they are. Neither ``datasets`` nor ``webdataset`` is needed.
"""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from saysee.data.corpora.folder import check_shares, split_by_hash
from saysee.data.corpora.preparing import Caption, Expected, Prepared, Problems, check_target, write_prepared
from saysee.data.corpora.records import (
    FLAGS,
    SUFFIXES,
    BrokenShardError,
    ColumnNames,
    LackingError,
    MediaFiles,
    Record,
    Shard,
)
from saysee.data.corpora.tables import read_table
from saysee.data.corpora.webdataset import expand, read_tar
from saysee.errors import ConfigError, ManifestError, SaySeeError
from saysee.log import progress_bar
from saysee.media.folders import Listing

_KINDS = {".parquet": "parquet", ".arrow": "arrow", ".tar": "tar", ".tgz": "tar", ".gz": "tar"}
_HUB_NAME = re.compile(r"^(.+?)-(\d{5})-of-(\d{5})(?:-[0-9a-f]+)?$")
_SPLIT_WORD = re.compile(
    r"(?:^|[ _.-])(train(?:ing)?|val(?:id(?:ation)?)?|dev|test(?:ing)?)(?=[ _.-]|\d|$)", re.IGNORECASE
)
_SPLITS = {"training": "train", "validation": "val", "valid": "val", "dev": "val", "testing": "test"}
"""What other names of splits are in a manifest."""
_READERS = {"parquet": read_table, "arrow": read_table, "tar": read_tar}


@dataclass(frozen=True)
class HfSettings:
    """How a data set is read.

    Attributes:
        columns: the column of a role, where it is not found by type and name; roles are the keys of ``FLAGS``.
        splits: a split of the data set → its name in the manifest; others keep theirs, but validation is val.
        val_share: share of pictures to validate on, where the data set is of one split.
        test_share: share of pictures to test on, likewise.
        seed: another seed, other pictures.
        language: of the speech, where no column says it.
    """

    columns: Mapping[str, str] = field(default_factory=dict)
    splits: Mapping[str, str] = field(default_factory=dict)
    val_share: float = 0.0
    test_share: float = 0.0
    seed: int = 0
    language: str | None = None

    def check(self) -> None:
        """Refuses what cannot be.

        Raises:
            ConfigError: a column of sounds or pictures that is none, or shares that leave no training pictures.
        """
        for role in ("clip", "image"):
            if self.columns.get(role) == "":
                raise ConfigError(f"{FLAGS[role]} is empty; name a column, or leave the flag out")
        check_shares(self.val_share, self.test_share)


def prepare_hf(
    sources: Sequence[str | os.PathLike[str]],
    to: str | os.PathLike[str],
    settings: HfSettings | None = None,
    *,
    allow_missing: int = 0,
) -> Prepared:
    """Write the manifest of a data set, and its sounds and pictures as files into ``STEM.files`` beside it.

    Files are named by their contents and written whole, so the same command goes on where it was broken off, and the
    same picture in several rows is one. The manifest comes last.

    Args:
        sources: folders, ``.parquet``, ``.arrow`` or ``.tar`` files; tars with braces (``{000..010}``).
        to: the manifest, ``.parquet`` or ``.jsonl``.
        settings: how to read it.
        allow_missing: how many clips, pictures and shards may be missing, empty or damaged.

    Raises:
        SaySeeError: a source is missing, or more is lacking than allowed.
        ManifestError: a column is missing, or does not fit; a picture in two splits.
        ConfigError: the settings cannot be, or ``allow_missing`` is negative.
    """
    settings = settings or HfSettings()
    settings.check()
    target = check_target(to, allow_missing)
    shards, lacking = _find_shards([os.fspath(source) for source in sources])
    folders = dict.fromkeys([*(Path(source) for source in sources), *(shard.path.parent for shard in shards)])
    files = MediaFiles(target.with_name(f"{target.stem}.files"), [path for path in folders if path.is_dir()])
    taking = _Taking(files, settings)
    if lacking:
        taking.problems.missing["shards"] = lacking
    with progress_bar("reading shards", len(shards)) as bar:
        for shard in shards:
            taking.take(shard)
            bar.advance()
    captions, notes = _with_splits(taking.captions, settings)
    _list_unused(files.folder, captions, taking.problems)
    kinds = Counter(shard.kind for shard in shards)
    told = ", ".join(f"{count:,} {kind} {'file' if count == 1 else 'files'}" for kind, count in kinds.items())
    return write_prepared(
        captions,
        {caption.clip: caption.clip for caption in captions},
        {caption.image: caption.image for caption in captions},
        target,
        taking.problems,
        allow_missing=allow_missing,
        expected=Expected("the data set"),
        notes=[f"read from {told}; files are in {files.folder}", *notes],
    )


def _list_unused(folder: Path, captions: Sequence[Caption], problems: Problems) -> None:
    """Tells files of an earlier run that the manifest does not use, and pictures whose clips are lacking."""
    if not folder.is_dir():
        return
    used = {caption.clip for caption in captions} | {caption.image for caption in captions}
    listing = Listing(folder, "--to")
    for what, suffixes in SUFFIXES.items():
        problems.extra[what] += [listing.relative(path) for path in listing.files(suffixes) if path not in used]


class _Taking:
    """Records to captions: what is there goes into files, what is not into problems."""

    def __init__(self, files: MediaFiles, settings: HfSettings) -> None:
        self.captions: list[Caption] = []
        self.problems = Problems()
        self._files, self._settings = files, settings
        self._names = ColumnNames(settings.columns)
        self._picture_of: dict[str, str] = {}  # fingerprint of a clip → the image id that it came with first

    def take(self, shard: Shard) -> None:
        """All records of a file; one that is damaged gives those before the damage, and is told."""
        try:
            for record in _READERS[shard.kind](shard, self._names):
                self._take(record)
        except BrokenShardError as error:
            self.problems.missing.setdefault("shards", []).append(f"{shard.path.name}: {error}")

    def _take(self, record: Record) -> None:
        picture = self._place(record, "images")
        sounds = [self._place(record, "clips", number) for number in range(len(record.sounds))]
        if picture is None:
            return
        image, fingerprint = picture
        image_id = record.image_id or fingerprint
        for number, sound in enumerate(sounds):
            if sound is not None:
                self.captions.append(
                    Caption(
                        clip=self._clip_of(record, number, *sound, image_id),
                        image=os.fspath(image),
                        image_id=image_id,
                        split=record.split or "",
                        text=record.texts[number],
                        speaker=record.speaker,
                        language=record.language or self._settings.language,
                    )
                )

    def _place(self, record: Record, what: str, number: int = 0) -> tuple[Path, str] | None:
        media = record.picture if what == "images" else record.sounds[number]
        try:
            return self._files.place(media, what)
        except LackingError as error:
            of = record.place if len(record.sounds) == 1 or what == "images" else f"{record.place} ({number + 1})"
            states = {"missing": self.problems.missing, "empty": self.problems.empty}
            states[error.state][what].append(f"{of}: {error}")
            return None

    def _clip_of(self, record: Record, number: int, path: Path, fingerprint: str, image_id: str) -> str:
        """A clip's file. A manifest has each once, so the same sound for another picture gets a file of its own."""
        media = record.sounds[number]
        first = self._picture_of.setdefault(fingerprint, image_id)
        if first != image_id and media is not None and media.data:
            path = self._files.again(media, "clips", fingerprint, record.image_id or image_id)
        return os.fspath(path)


# --- splits -----------------------------------------------------------------------------------------------------------


def _with_splits(captions: list[Caption], settings: HfSettings) -> tuple[list[Caption], list[str]]:
    """The captions with the manifest's names of splits, and notes on where these are from.

    Raises:
        ConfigError: ``--split`` names a split that is not there, or shares were given where there are several.
    """
    have = list(dict.fromkeys(caption.split or "train" for caption in captions))
    for name in settings.splits:
        if name not in have:
            raise ConfigError(f"--split {name}=…: the data set has no such split; it has {', '.join(have) or 'none'}")
    if settings.val_share or settings.test_share:
        if len(have) > 1:
            raise ConfigError(
                f"--val-share and --test-share divide a data set of one split; this has {', '.join(have)} (leave them "
                "out)"
            )
        shares = settings.val_share, settings.test_share
        divided = [
            replace(caption, split=split_by_hash(caption.image_id, *shares, settings.seed)) for caption in captions
        ]
        return divided, [
            f"splits by a hash of the picture's id: val {shares[0]:g}, test {shares[1]:g}, seed {settings.seed}"
        ]
    names = {name: settings.splits.get(name) or _SPLITS.get(name.lower(), name) for name in have}
    told = [f"{name} → {split}" if name != split else name for name, split in names.items()]
    named = [replace(caption, split=names[caption.split or "train"]) for caption in captions]
    notes = [f"splits: {', '.join(told)}"] if told else []
    if have == ["train"]:
        notes.append("all is in train; --val-share and --test-share divide it")
    return named, notes


# --- which files ------------------------------------------------------------------------------------------------------


def _find_shards(sources: Sequence[str]) -> tuple[list[Shard], list[str]]:
    """The files of a data set in order, and the names of those that should be there and are not.

    Raises:
        SaySeeError: a source is not there, or holds no file of a kind that is read, or of two.
        ManifestError: braces that name no files.
    """
    shards: list[Shard] = []
    lacking: list[str] = []
    for source in sources:
        path = Path(source)
        if path.is_dir():
            shards += _of_folder(path)
        elif path.is_file():
            shards.append(_shard(path, Path(path.name)))
        elif "{" in source:
            for name in expand(source):
                if Path(name).is_file():
                    shards.append(_shard(Path(name), Path(Path(name).name)))
                else:
                    lacking.append(f"{Path(name).name}: no such file")
        else:
            raise SaySeeError(
                f"{source}: no such file or folder; a data set of the hub is fetched first, by 'hf download NAME "
                "--repo-type dataset --local-dir DIR'"
            )
    if not shards:
        raise SaySeeError(f"{', '.join(sources)}: none of its shards is there; check the path")
    kinds = sorted({shard.kind for shard in shards})
    if len(kinds) > 1:
        raise SaySeeError(f"{', '.join(sources)}: files of several kinds ({', '.join(kinds)}); name those of one kind")
    return shards, [*lacking, *_holes(shards)]


def _of_folder(folder: Path) -> list[Shard]:
    """The files under a folder: those that ``save_to_disk`` lists, or all of a kind that is read."""
    if (folder / "dataset_dict.json").is_file():
        splits = _read_json(folder / "dataset_dict.json").get("splits") or []
        return [shard for split in splits for shard in _saved(folder / str(split), str(split))]
    if (folder / "state.json").is_file():
        return _saved(folder, None)
    listing = Listing(folder, "SOURCE")
    paths = [
        path
        for path in listing.files(_KINDS)
        if (not path.endswith(".gz") or path.endswith(".tar.gz")) and not os.path.basename(path).startswith("cache-")
    ]
    if not paths:
        raise SaySeeError(f"{folder}: no .parquet, .arrow or .tar file in it; name the folder that holds the data set")
    return [_shard(Path(path), Path(listing.relative(path))) for path in paths]


def _saved(folder: Path, split: str | None) -> list[Shard]:
    """The Arrow files of one ``Dataset.save_to_disk``.

    Raises:
        SaySeeError: its ``state.json`` is missing, lists a file that is not there, or selects rows by a further file.
    """
    state = _read_json(folder / "state.json")
    names = [str(entry["filename"]) for entry in state.get("_data_files") or []]
    if state.get("_indices_data_files"):
        raise SaySeeError(f"{folder}: its rows are selected by a further file; call flatten_indices and save it again")
    gone = [name for name in names if not (folder / name).is_file()]
    if gone or not names:
        raise SaySeeError(f"{folder}: {gone[0] if gone else 'no file'} of state.json is missing; copy the folder again")
    return [Shard(folder / name, "arrow", split or state.get("_split")) for name in names]


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise ManifestError(f"{path}: no such file; copy the folder again") from None
    except (ValueError, RecursionError) as error:
        raise ManifestError(f"{path}: not JSON ({error}); copy the folder again") from None
    return content if isinstance(content, dict) else {}


def _shard(path: Path, inside: Path) -> Shard:
    """A file; ``inside`` is its path from the source on, whose names say its split."""
    kind = _KINDS.get(path.suffix.lower())
    if kind is None:
        raise SaySeeError(f"{path}: neither .parquet, .arrow nor .tar; name files of a data set or their folder")
    name = path.name.split(".")[0] if kind == "tar" else path.stem
    hub = _HUB_NAME.match(name) if kind == "parquet" else None
    if hub is not None:
        return Shard(path, kind, hub[1])
    for part in (name, *reversed(inside.parent.parts)):
        if words := _SPLIT_WORD.findall(part):
            return Shard(path, kind, words[-1].lower())
    return Shard(path, kind, None)


def _holes(shards: Sequence[Shard]) -> list[str]:
    """Of files numbered ``-00000-of-00003``: those that are not there."""
    found: dict[tuple[Path, str, str], set[int]] = {}
    for shard in shards:
        numbered = re.match(r"^(.*?)-(\d{5})-of-(\d{5})", shard.path.name)
        if numbered:
            found.setdefault((shard.path.parent, numbered[1], numbered[3]), set()).add(int(numbered[2]))
    return [
        f"{stem}-{number:05d}-of-{total}: no such file"
        for (_, stem, total), numbers in found.items()
        for number in range(int(total))
        if number not in numbers
    ]
