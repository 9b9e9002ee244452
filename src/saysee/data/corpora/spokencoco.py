"""SpokenCOCO (Hsu and others, ACL 2021): the pictures of COCO 2014, with about five read captions each.

As published: ``SpokenCOCO/SpokenCOCO_{train,val}.json`` with ``{"data": [{"image": "val2014/COCO_val2014_….jpg",
"captions": [{"text", "speaker", "uttid", "wav": "wavs/val/0/….wav"}, …]}, …]}``, and COCO's ``train2014/`` and
``val2014/``. Scores are told on Karpathy's split: by his ``dataset_coco.json``, or by JSON files that are split so
already (``SpokenCOCO_{train,val,test}_karpathy.json`` and the like). COCO 2017 has the same pictures under shorter
names; they are found too. "Unrolled" files, which have one ``caption`` an entry, are read as well.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from saysee.data.corpora.finding import (
    FileIndex,
    find_lists,
    list_folders,
    read_json_records,
    split_families,
    stem_key,
)
from saysee.data.corpora.preparing import Caption, Expected, Prepared, check_target, listed_caption, prepare
from saysee.errors import ManifestError, SaySeeError
from saysee.media.folders import Listing
from saysee.media.formats import AUDIO_SUFFIXES, IMAGE_SUFFIXES

_WITHIN = 0.02  # published counts of clips lie between 605,495 and 617,222, by who counted which release
OFFICIAL = Expected(
    "SpokenCOCO (its own split)",
    images={"train": 82_783, "val": 40_504},
    clips={"all": 605_495},
    clips_within=_WITHIN,
)
KARPATHY = Expected(
    "SpokenCOCO (Karpathy's split)",
    images={"train": 113_287, "val": 5000, "test": 5000},
    clips={"all": 605_495, "test": 25_031},
    clips_within=_WITHIN,
)

_JSON = re.compile(r"^spoken[ _-]?coco.*\.json$", re.IGNORECASE)
_COCO_NAME = re.compile(r"^(?:coco_)?(?:train|val)20\d\d_(\d{12})$")


def coco_key(name: str) -> str:
    """What a picture of COCO is found by: its number, whether or not the split is in its name."""
    key = stem_key(name)
    found = _COCO_NAME.match(key)
    return found[1] if found else key


def prepare_spokencoco(
    audio: str | os.PathLike[str],
    images: str | os.PathLike[str],
    to: str | os.PathLike[str],
    *,
    karpathy: str | os.PathLike[str] | None = None,
    allow_missing: int = 0,
) -> Prepared:
    """Write the manifest of a copy of SpokenCOCO.

    Args:
        audio: folder of the clips and of SpokenCOCO's JSON files, in whatever layout; the JSON files may lie beside it.
        images: folder of COCO's pictures, likewise.
        to: the manifest, ``.parquet`` or ``.jsonl``.
        karpathy: Karpathy's ``dataset_coco.json``, to split by it; ``restval`` goes to train.
        allow_missing: how many clips and pictures may be missing or empty.

    Raises:
        SaySeeError: a folder is missing, there are no JSON files, or more files are lacking than allowed.
        ManifestError: a JSON file cannot be read, or contradicts another.
        ConfigError: ``allow_missing`` is negative.
    """
    target = check_target(to, allow_missing)
    splits = None if karpathy is None else _karpathy_splits(Path(karpathy))
    sounds, pictures = list_folders(audio, images)
    files, notes = _choose_files([sounds, pictures], official=splits is not None)
    captions: list[Caption] = []
    unspoken: list[str] = []
    outside: set[str] = set()
    for split, path in files.items():
        for image, caption in _entries(path, split):
            if splits is not None and coco_key(image) not in splits:
                outside.add(image)
            elif caption is None:
                unspoken.append(image)
            elif splits is None:
                captions.append(caption)
            else:
                captions.append(replace(caption, split=splits[coco_key(image)]))
    if outside:
        notes.append(f"{len(outside):,} pictures are not in {karpathy} and are left out, such as {min(outside)}")
    spoken = {coco_key(caption.image) for caption in captions}
    by_karpathy = splits is not None or "test" in files
    return prepare(
        captions,
        FileIndex(sounds, AUDIO_SUFFIXES),
        FileIndex(pictures, IMAGE_SUFFIXES, coco_key),
        target,
        allow_missing=allow_missing,
        expected=KARPATHY if by_karpathy else OFFICIAL,
        unspoken=[image for image in dict.fromkeys(unspoken) if coco_key(image) not in spoken],
        notes=notes,
    )


def _choose_files(listings: Sequence[Listing], *, official: bool) -> tuple[dict[str, Path], list[str]]:
    """The JSON file of each split, and notes: of several sets, the fullest; if equal, Karpathy's.

    With ``official``, sets that are split by Karpathy come last, as they may lack pictures of the whole.
    """
    families = split_families(find_lists(listings, _JSON, (".json",)))
    if not families:
        raise SaySeeError(
            f"{listings[0].folder}: no SpokenCOCO_train.json, SpokenCOCO_val.json or the like there or beside; "
            "put them there (--audio)"
        )

    def rank(family: str) -> tuple[bool, int, bool, int, str]:
        karpathys = "karpathy" in family or "test" in families[family]
        return official and karpathys, -len(families[family]), not karpathys, len(family), family

    chosen = min(families, key=rank)
    files = families[chosen]
    note = f"captions are from {', '.join(path.name for path in files.values())}"
    if others := [path.name for name in families if name != chosen for path in families[name].values()]:
        note += f"; not used: {', '.join(others)}"
    return files, [note]


def _entries(path: Path, split: str) -> Iterator[tuple[str, Caption | None]]:
    """Each picture with a caption, as often as it has one; with None if it has none."""
    for number, record in enumerate(read_json_records(path, "data"), 1):
        where = f"{path}: entry {number}"
        image = record.get("image")
        if not isinstance(image, str) or not image:
            raise ManifestError(f"{where} has no 'image'; copy the file again")
        spoken = record.get("captions", record.get("caption"))
        listed = spoken if isinstance(spoken, list) else [spoken] if spoken else []
        if not listed:
            yield image, None
        for caption in listed:
            if not isinstance(caption, dict):
                raise ManifestError(f"{where} has a caption that is no object; copy the file again")
            yield image, listed_caption(caption, "text", image, split, where)


def _karpathy_splits(path: Path) -> dict[str, str]:
    """Karpathy's split of each picture, by ``coco_key``."""
    splits: dict[str, str] = {}
    for number, record in enumerate(read_json_records(path, "images"), 1):
        image, split = record.get("filename"), record.get("split")
        if not isinstance(image, str) or split not in ("train", "restval", "val", "test"):
            raise ManifestError(
                f"{path}: image {number} lacks 'filename' or 'split'; name Karpathy's dataset_coco.json"
            )
        splits[coco_key(image)] = "train" if split == "restval" else split
    return splits
