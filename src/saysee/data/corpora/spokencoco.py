"""SpokenCOCO (Hsu et al., ACL 2021): the images of COCO 2014, with about five read captions each.

As published: ``SpokenCOCO/SpokenCOCO_{train,val}.json`` with ``{"data": [{"image": "val2014/COCO_val2014_….jpg",
"captions": [{"text", "speaker", "uttid", "wav": "wavs/val/0/….wav"}, …]}, …]}``, and COCO's ``train2014/`` and
``val2014/``. Results are reported on Karpathy's split, given by his ``dataset_coco.json`` or by JSON files that are
already split so (``SpokenCOCO_{train,val,test}_karpathy.json``). The images may have the shorter names of COCO 2017.
"Unrolled" files, with one ``caption`` in each entry, are read as well.
"""

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from saysee.data.corpora import finding
from saysee.data.corpora.finding import stem_key
from saysee.data.corpora.preparing import Expected, Prepared, check_target, listed_caption, prepare
from saysee.data.manifest import Row
from saysee.errors import ManifestError, SaySeeError
from saysee.media.folders import Listing

_WITHIN = 0.02  # published counts of clips are between 605,495 and 617,222
OFFICIAL = Expected(
    "SpokenCOCO (official split)", images={"train": 82_783, "val": 40_504}, clips={"all": 605_495}, clips_within=_WITHIN
)
KARPATHY = Expected(
    "SpokenCOCO (Karpathy's split)",
    images={"train": 113_287, "val": 5000, "test": 5000},
    clips={"all": 605_495, "test": 25_031},
    clips_within=_WITHIN,
)

_JSON = re.compile(r"^spoken[ _-]?coco.*\.json$", re.IGNORECASE)
_ENGLISH_JSON = re.compile(
    r"^SpokenCOCO(?:[ _.-]*(?:train|val|dev|test|karpathy|unrolled|wparse|\d+))+\W*json$", re.IGNORECASE
)
_COCO_NAME = re.compile(r"^(?:coco_)?(?:train|val)20\d\d_(\d{12})$")


def coco_key(name: str) -> str:
    """The key under which an image of COCO is found: its number, with or without a split in its name."""
    key = stem_key(name)
    found = _COCO_NAME.match(key)
    return found[1] if found else key


def prepare_spokencoco(
    audio: str | os.PathLike[str],
    images: str | os.PathLike[str],
    to: str | os.PathLike[str],
    *,
    karpathy: str | os.PathLike[str] | None = None,
    language: str | None = None,
    allow_missing: int = 0,
) -> Prepared:
    """Write the manifest of a copy of SpokenCOCO.

    Args:
        audio: folder of the clips and of SpokenCOCO's JSON files, in any layout; the JSON files may be beside it.
        images: folder of COCO's images, in any layout.
        to: the manifest, ``.parquet`` or ``.jsonl``.
        karpathy: Karpathy's ``dataset_coco.json``, which then gives the splits; ``restval`` becomes train.
        language: of the speech; by default English for files named as published, otherwise none.
        allow_missing: how many clips and images may be missing or empty.

    Raises:
        SaySeeError: no folder or no JSON file, one that cannot be read or contradicts another, or too much is missing.
    """
    target = check_target(to, allow_missing)
    splits = None if karpathy is None else _karpathy_splits(Path(karpathy))
    clip_files, image_files = finding.index_folders(audio, images, coco_key)
    files, note = _choose_files([clip_files.listing, image_files.listing], official=splits is not None)
    notes = [note]
    captions: list[Row] = []
    without_clip: list[str] = []
    outside: set[str] = set()
    for split, path in files.items():
        for image, caption in _entries(path, split):
            if splits is not None and coco_key(image) not in splits:
                outside.add(image)
            elif caption is None:
                without_clip.append(image)
            else:
                captions.append(caption if splits is None else replace(caption, split=splits[coco_key(image)]))
    if outside:
        notes.append(f"{len(outside):,} images are not in {karpathy} and are skipped, such as {min(outside)}")
    spoken = {coco_key(caption.image) for caption in captions}
    if not language and all(_ENGLISH_JSON.match(path.name) for path in files.values()):
        language = "en" if finding.can_be_english(caption.text for caption in captions) else None
    captions = [replace(caption, language=language) for caption in captions]
    silent = [image for image in dict.fromkeys(without_clip) if coco_key(image) not in spoken]
    about = target, allow_missing, KARPATHY if splits is not None or "test" in files else OFFICIAL
    return prepare(captions, clip_files, image_files, *about, images_without_clip=silent, notes=notes)


def _choose_files(listings: Sequence[Listing], *, official: bool) -> tuple[dict[str, Path], str]:
    """The JSON file of each split, and a note: of several families the fullest; of equally full ones Karpathy's.

    With ``official``, families in Karpathy's split come last, because they may not have all images.
    """
    families = finding.split_families(finding.find_lists(listings, _JSON, (".json",)))
    if not families:
        what = "no SpokenCOCO_train.json or SpokenCOCO_val.json in or beside it; put them there"
        raise SaySeeError(f"{listings[0].folder}: {what} (--audio)")

    def rank(family: str) -> tuple[bool, int, bool, int, str]:
        is_karpathy = "karpathy" in family or "test" in families[family]
        return official and is_karpathy, -len(families[family]), not is_karpathy, len(family), family

    files = families.pop(min(families, key=rank))
    note = f"captions are from {', '.join(path.name for path in files.values())}"
    unused = ", ".join(path.name for family in families.values() for path in family.values())
    return files, f"{note}; not used: {unused}" if unused else note


def _entries(path: Path, split: str) -> Iterator[tuple[str, Row | None]]:
    """Each image with each of its captions; with None if it has no caption."""
    for number, record in enumerate(finding.read_json_records(path, "data"), 1):
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
                raise ManifestError(f"{where} has a caption that is not an object; copy the file again")
            yield image, listed_caption(caption, "text", image, split, where)


def _karpathy_splits(path: Path) -> dict[str, str]:
    """Karpathy's split of each image, by ``coco_key``."""
    splits: dict[str, str] = {}
    for number, record in enumerate(finding.read_json_records(path, "images"), 1):
        image, split = record.get("filename"), record.get("split")
        if not isinstance(image, str) or split not in ("train", "restval", "val", "test"):
            what = f"image {number} has no valid 'filename' or 'split'"
            raise ManifestError(f"{path}: {what}; name Karpathy's dataset_coco.json")
        splits[coco_key(image)] = "train" if split == "restval" else split
    return splits
