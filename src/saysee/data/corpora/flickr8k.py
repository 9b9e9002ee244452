"""Flickr8k with the Flickr Audio Caption Corpus (Harwath and Glass, ASRU 2015): 8,000 photos, five clips each.

As published: ``flickr_audio/wavs/<image stem>_<n>.wav``, ``wav2capt.txt`` (``<wav> <image> #<n>``), ``wav2spk.txt``
(``<wav> <speaker>``); ``Flickr8k_text/`` with ``Flickr8k.token.txt`` (``<image>#<n><tab><caption>``) and
``Flickr_8k.{train,dev,test}Images.txt``; images in ``Flicker8k_Dataset/``. Copies differ: folders are renamed, captions
may be in ``captions.txt`` (a CSV table), splits and captions in Karpathy's ``dataset_flickr8k.json``, and
``wav2capt.txt`` may be missing, because the names of the clips say the same. FaST-VGS has all of it in
``flickr8k_{train,dev,test}.json``, in the form of Places.

Copies of other languages, such as Yoruba (Olaleye et al., SLT 2022), have one clip of an image:
``flickr_audio_yoruba_<split>/<speaker>_<image stem>_<n>.wav`` and ``Flickr8k.token.<split>_yoruba.txt``.
"""

import csv
import io
import os
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Container, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from saysee.data.corpora import finding
from saysee.data.corpora.finding import FileIndex, stem_key
from saysee.data.corpora.preparing import Expected, Prepared, check_target, listed_caption, prepare
from saysee.data.manifest import Row
from saysee.errors import ManifestError, SaySeeError
from saysee.media.folders import Listing

ALLOW_MISSING = 10  # in known copies a few clips are missing or empty; a failed download lacks hundreds

EXPECTED = Expected(
    "Flickr8k",
    images={"train": 6000, "val": 1000, "test": 1000},
    clips={"train": 30_000, "val": 5000, "test": 5000},
    clips_within=ALLOW_MISSING / 5000,
)

_SPLIT_LIST = re.compile(r"(?:^|[ _.-])(train|dev|val|test)[ _-]?images\b.*\.txt$", re.IGNORECASE)
_DATASET = re.compile(r"^dataset(?:_flickr8k)?\.json$", re.IGNORECASE)
_ENTRIES = re.compile(r"^flickr_?8k[ _-](?:train|dev|val|test)\b.*\.json$", re.IGNORECASE)
_TOKENS = re.compile(r"^flickr_?8k\.token(?![a-z]).*\.txt$", re.IGNORECASE)
_ENGLISH_TOKENS = re.compile(r"^flickr_?8k\.token\W*(?:\d\W*)?txt$", re.IGNORECASE)  # "Flickr8k.token (1).txt" too
_CAPTIONS = re.compile(r"^captions\.(?:txt|csv)$", re.IGNORECASE)
_CLIPS = re.compile(r"^wav2capt\b.*\.txt$", re.IGNORECASE)
_SPEAKERS = re.compile(r"^wav2spk\b.*\.txt$", re.IGNORECASE)

_TOKEN_FORM = "<image>#<n><tab><caption>"
_TOKEN_LINE = re.compile(r"^(?P<image>.+?)#(?P<number>\d+)\s+(?P<text>.*)$")
# Names may contain spaces, so a name ends with the suffix of an audio file.
_CLIP_LINE = re.compile(r"^(?P<clip>.+?\.(?:wav|flac|mp3|ogg))\s+(?P<image>.+?)\s*#(?P<number>\d+)$", re.IGNORECASE)
_SPEAKER_LINE = re.compile(r"^(?P<clip>.+?\.(?:wav|flac|mp3|ogg))\s+(?P<speaker>\S.*)$", re.IGNORECASE)
_CLIP_NAME = re.compile(r"^(?P<image>.+)_(?P<number>\d+)$")


def prepare_flickr8k(
    audio: str | os.PathLike[str],
    images: str | os.PathLike[str],
    to: str | os.PathLike[str],
    *,
    text: str | os.PathLike[str] | None = None,
    language: str | None = None,
    allow_missing: int = ALLOW_MISSING,
) -> Prepared:
    """Write the manifest of a copy of Flickr8k with its spoken captions, in English or another language.

    Args:
        audio: folder of the clips, in any layout.
        images: folder of the images, in any layout.
        to: the manifest, ``.parquet`` or ``.jsonl``.
        text: folder of the lists, if they are neither in the other folders nor beside them.
        language: of the speech; by default what the files prove, otherwise none.
        allow_missing: how many clips and images may be missing or empty.

    Raises:
        SaySeeError: no folder or no split lists, a list that cannot be read or contradicts another, or too much is
            missing.
    """
    target = check_target(to, allow_missing)
    clip_files, image_files = finding.index_folders(audio, images)
    listings = [clip_files.listing, image_files.listing]
    lists = _read_lists(listings if text is None else [Listing(text, "--text"), *listings], clip_files, image_files)
    spoken = {key for key, _ in (*lists.clips, *lists.texts)}
    unspoken, expected = [], Expected("Flickr8k")  # of a translation: one clip for some of the images
    if not lists.translated:
        unspoken, expected = [image for key, image in lists.images.items() if key not in spoken], EXPECTED
    captions, about = _captions(lists, language or _language(lists)), (target, allow_missing, expected)
    return prepare(captions, clip_files, image_files, *about, images_without_clip=unspoken, notes=lists.notes)


@dataclass
class _Lists:
    """The contents of the lists; images by ``stem_key``, captions by image and number."""

    splits: dict[str, str] = field(default_factory=dict)
    images: dict[str, str] = field(default_factory=dict)
    texts: dict[tuple[str, int], str] = field(default_factory=dict)
    unproven: list[str] = field(default_factory=list)  # texts whose numbers are unknown
    clips: dict[tuple[str, int], str] = field(default_factory=dict)
    speakers: dict[str, str] = field(default_factory=dict)
    # whether the clips are named ``<speaker>_<image stem>_<n>``, as in copies of other languages
    translated: bool = False
    published: bool = False  # whether a list of the English corpus has the clips
    sources: set[str] = field(default_factory=set)  # names of the files and folders that were used
    notes: list[str] = field(default_factory=list)

    def add(self, image: str, split: str, source: Path) -> str:
        """Puts an image into a split; returns its key."""
        key = stem_key(image)
        if self.splits.setdefault(key, split) != split:
            both = f"{self.splits[key]!r} and {split!r}"
            raise ManifestError(f"{source}: image {image!r} is in the splits {both}; keep it in one")
        self.images.setdefault(key, image)
        return key

    def add_texts(self, lines: Iterable[re.Match[str]]) -> None:
        """Notes the texts of lines of ``_TOKEN_LINE``."""
        self.texts |= {(stem_key(line["image"]), int(line["number"])): line["text"] for line in lines}


def _captions(lists: _Lists, language: str | None) -> Iterator[Row]:
    """The captions of the images that have a split, in the order of the split lists."""
    numbers: dict[str, set[int]] = defaultdict(set)
    for key, number in (*lists.texts, *lists.clips):
        numbers[key].add(number)
    for key, split in lists.splits.items():
        image = lists.images[key]
        image_id = os.path.splitext(image)[0]
        for number in sorted(numbers[key]):
            clip = lists.clips.get((key, number)) or f"{image_id}_{number}.wav"
            text, speaker = lists.texts.get((key, number)), lists.speakers.get(stem_key(clip))
            yield Row(clip, image, image_id, split, text, speaker, language)


def _language(lists: _Lists) -> str | None:
    """The language that the names of a translated copy have; English if its lists have the clips, several an image."""
    if lists.translated:
        return finding.named_language(" ".join(lists.sources))
    several = len(lists.clips) > len({key for key, _ in lists.clips})
    proven = lists.published and several and finding.can_be_english([*lists.texts.values(), *lists.unproven])
    return "en" if proven else None


def _read_lists(listings: Sequence[Listing], clips: FileIndex, images: FileIndex) -> _Lists:
    lists = _Lists()
    shown = {stem_key(path) for path in images.paths}
    speakers = [named[0] for path in clips.paths if (named := _parse_name(path, shown))]
    lists.translated = 2 * sum(map(bool, speakers)) > len(speakers)
    tokens = finding.find_lists(listings, _TOKENS, (".txt",))
    english = [path for path in tokens if _ENGLISH_TOKENS.match(path.name)]
    if lists.translated:
        _read_translated([path for path in tokens if path not in english], clips.paths, shown, lists)
        if english and not lists.texts:
            lists.notes.append(f"{english[0]}: not used, because the clips are named as in copies of other languages")
    if not lists.splits:
        _read_splits(listings, lists)
    if not lists.translated:
        _read_texts(english, listings, lists)
    if not lists.texts:
        lists.notes.append("the manifest has no text: no Flickr8k.token.txt or dataset_flickr8k.json found (--text)")
    listed = [] if lists.translated else finding.find_lists(listings, _CLIPS, (".txt",))
    for line in _matches(listed[0], _CLIP_LINE, "<clip> <image> #<n>") if listed else ():
        lists.clips[stem_key(line["image"]), int(line["number"])] = line["clip"]
    for path in [] if lists.clips else clips.paths:  # the name of a clip says the same
        named = _parse_name(path, shown | lists.images.keys())
        if named and named[1] in lists.splits and bool(named[0]) == lists.translated:
            lists.clips.setdefault(named[1:], clips.listing.relative(path))
            lists.speakers.setdefault(stem_key(path), named[0])
    spoken = finding.find_lists(listings, _SPEAKERS, (".txt",))
    for line in _matches(spoken[0], _SPEAKER_LINE, "<clip> <speaker>") if spoken else ():
        lists.speakers[stem_key(line["clip"])] = line["speaker"]
    lists.published = bool(listed or spoken)
    return lists


def _parse_name(path: str, images: Container[str]) -> tuple[str, str, int] | None:
    """Speaker ("" for none), image and number of a clip: ``<image>_<n>.wav`` or ``<speaker>_<image>_<n>.wav``."""
    found = _CLIP_NAME.match(stem_key(path))
    if found is None:
        return None
    name = found["image"]
    marks = [] if name in images else re.finditer("[_-]", name)
    end = next((mark.start() for mark in marks if name[mark.end() :] in images), -1)
    speaker = unicodedata.normalize("NFC", os.path.basename(path))[: max(end, 0)]  # in its own case
    return speaker, name[end + 1 :], int(found["number"])


def _read_translated(tokens: Sequence[Path], clips: Sequence[str], shown: Container[str], lists: _Lists) -> None:
    """The lists of another language, ``Flickr8k.token.<split>_<language>.txt``; the split may be in a folder's name."""
    families = finding.split_families(tokens)
    if len(families) > 1:
        names = ", ".join(path.name for family in families.values() for path in family.values())
        raise ManifestError(f"{tokens[0].parent}: lists of several corpora ({names}); name the folder of one by --text")
    splits = {path: split for family in families.values() for split, path in family.items()}
    for path in splits or tokens:
        lists.sources.add(path.name)
        lines = list(_matches(path, _TOKEN_LINE, _TOKEN_FORM))
        for line in lines if splits else ():
            lists.add(line["image"], splits[path], path)
        lists.add_texts(lines)
    for path, named in ((Path(name), _parse_name(name, shown)) for name in clips):
        folders = path.parent.parts[-2:]
        lists.sources.update(folder for folder in folders if "flickr" in folder.casefold())
        of_folder = [split for family in finding.split_families(map(Path, folders)).values() for split in family]
        if named and named[0] and of_folder and not splits:
            lists.add(f"{named[1]}.jpg", of_folder[0], path)


def _read_splits(listings: Sequence[Listing], lists: _Lists) -> None:
    """The published lists; else Karpathy's JSON; else the JSON files of FaST-VGS, which list the clips too."""
    if found := finding.find_lists(listings, _SPLIT_LIST, (".txt",)):
        _read_split_lists(found, lists)
    elif found := finding.find_lists(listings, _DATASET, (".json",)):
        for image, split, _ in _dataset(found[0]):
            lists.add(image, split, found[0])
    elif families := finding.split_families(finding.find_lists(listings, _ENTRIES, (".json",))):
        for split, path in families[min(families, key=len)].items():
            _read_entries(path, split, lists)
    else:
        what = "no Flickr_8k.trainImages.txt, devImages or testImages (nor dataset_flickr8k.json) in it or beside it"
        raise SaySeeError(f"{listings[0].folder}: {what}; name their folder by --text")


def _read_split_lists(paths: Sequence[Path], lists: _Lists) -> None:
    by_split: dict[str, Path] = {}
    for path in sorted(paths, key=lambda path: len(path.name)):  # the plain name before "… (1).txt"
        if found := _SPLIT_LIST.search(path.name):
            by_split.setdefault(found[1].lower().replace("dev", "val"), path)
    for split in ("train", "val", "test"):
        for image in finding.read_lines(by_split[split]) if split in by_split else ():
            lists.add(image, split, by_split[split])


def _read_entries(path: Path, split: str, lists: _Lists) -> None:
    """A JSON file like those of Places: one entry for each clip, in the order of the numbers if its name has none."""
    counts: Counter[str] = Counter()
    for at, record in enumerate(finding.read_json_records(path, "data"), 1):
        text = "text" if "text" in record else "asr_text"
        caption = listed_caption(record, text, record.get("image"), split, f"{path}: entry {at}")
        key = lists.add(caption.image, split, path)
        named = _CLIP_NAME.match(stem_key(caption.clip))
        number = int(named["number"]) if named else counts[key]
        counts[key] += 1
        lists.clips[key, number] = caption.clip
        lists.texts |= {(key, number): caption.text} if caption.text else {}
        lists.speakers |= {stem_key(caption.clip): caption.speaker} if caption.speaker else {}


def _dataset(path: Path) -> Iterator[tuple[str, str, list[str]]]:
    """Image, split and captions in the order of their numbers, of each image in Karpathy's JSON."""
    for number, record in enumerate(finding.read_json_records(path, "images"), 1):
        image, split, sentences = record.get("filename"), record.get("split"), record.get("sentences") or ()
        if not isinstance(image, str) or not isinstance(split, str) or not isinstance(sentences, list | tuple):
            raise ManifestError(f"{path}: image {number} has no 'filename', 'split' or 'sentences'; copy it again")
        texts = sentences and [sentence.get("raw") or "" for sentence in sentences if isinstance(sentence, dict)]
        if not all(isinstance(text, str) for text in texts):
            raise ManifestError(f"{path}: image {number} has sentences that are no texts; copy it again")
        yield image, split, list(texts)


def _read_texts(tokens: Sequence[Path], listings: Sequence[Listing], lists: _Lists) -> None:
    """The texts whose numbers are known. Copies of ``captions.txt`` have the captions of an image in any order."""
    if tokens:
        lists.add_texts(_matches(tokens[0], _TOKEN_LINE, _TOKEN_FORM))
    elif found := finding.find_lists(listings, _DATASET, (".json",)):
        for image, _, sentences in _dataset(found[0]):
            lists.texts.update({(stem_key(image), n): text for n, text in enumerate(sentences) if text})
    if not lists.texts and (found := finding.find_lists(listings, _CAPTIONS, (".txt", ".csv"))):
        for row in csv.reader(io.StringIO(finding.read_utf8(found[0]), newline="")):
            if len(row) > 1 and (numbered := _TOKEN_LINE.match(f"{row[0].strip()} {','.join(row[1:]).strip()}")):
                lists.add_texts([numbered])
            elif len(row) > 1 and row[0].strip().lower() != "image":
                lists.unproven.append(row[1])
        if lists.unproven:
            why = "not used, because nothing proves which clip each belongs to"
            fix = "add Flickr8k.token.txt or dataset_flickr8k.json (--text)"
            lists.notes.append(f"{found[0]}: {len(lists.unproven):,} texts {why}; {fix}")


def _matches(path: Path, line: re.Pattern[str], form: str) -> Iterator[re.Match[str]]:
    for number, content in enumerate(finding.read_lines(path), 1):
        if (found := line.match(content)) is None:
            raise ManifestError(f"{path}: line {number} {content[:60]!r} is not '{form}'; fix or delete it")
        yield found
