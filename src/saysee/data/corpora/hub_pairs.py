"""Data sets for retrieval in MTEB's form: a table of queries, a table of the corpus, and their pairs (``qrels``).

One of the tables holds clips, the other images; which is which depends on the direction. A pair has the ids of a query
and of an item of the corpus and a relevance, as in BEIR, or the ids of an image and a clip. The tables are
configurations, splits, folders or files; they are recognized by their columns.
"""

import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from saysee.data.corpora.hub_files import BrokenPartError, Part
from saysee.data.corpora.hub_rows import FLAGS, OF_CLIP, TYPES, Rows, Values, choose_columns, read_columns
from saysee.data.tables import role_of, word
from saysee.errors import ManifestError

_QUERY = ("queryid", "qid")
_CORPUS = ("corpusid", "docid", "documentid", "did")
_CLIP = ("clipid", "audioid", "wavid", "uttid", "utteranceid")
_IMAGE = ("imageid", "imgid")
_SCORE = ("score", "relevance", "label")
_IDS = ("id", "_id", "name")
_NUMBER = re.compile(r"\d+")
_NO_SPLITS = ("corpus", "query", "queries", "qrels", "default", "")


Tables = dict[str, list[Part]]  # the parts of such a data set by what they are tables of: "images", "clips" and "pairs"


def find_tables(parts: Sequence[Part]) -> Tables | None:
    """The tables of such a data set; None for another one.

    Raises ManifestError if there are pairs, but a table is neither of clips nor of images.
    """
    if len(parts) < 2 or any(part.form == "tar" for part in parts):
        return None
    series = [(os.path.dirname(part.path), part.config, part.split, _NUMBER.sub("", part.name)) for part in parts]
    of_series: dict[Any, str] = {}  # kind of the table of which a part is a shard, by the first that can be read
    for key, part in zip(series, parts, strict=True):
        of_series[key] = of_series.get(key) or _kind(part)
    kinds = [of_series[key] for key in series]
    if "pairs" not in kinds:
        return None
    tables: Tables = {"images": [], "clips": [], "pairs": []}
    for part, kind in zip(parts, kinds, strict=True):
        if not kind:
            try:
                have = ", ".join(part.kinds)
            except BrokenPartError as error:
                raise ManifestError(f"{part.name}: damaged or cut short ({error}); get it again") from None
            raise ManifestError(f"{part.name}: neither clips nor images nor pairs of them (there are: {have}); omit it")
        tables[kind].append(part)
    for kind, found in tables.items():
        if not found:
            raise ManifestError(f"{', '.join(part.name for part in parts[:3])}: no table of {kind} among them; add it")
    return tables


def _kind(part: Part) -> str:
    try:
        titles = {_plain(column) for column in part.kinds}
    except BrokenPartError:
        return ""
    media = [
        kind
        for kind, media_type in TYPES.items()
        if any(found == media_type or role_of(column) == kind for column, found in part.kinds.items())
    ]
    pairs = (titles & {*_QUERY} and titles & {*_CORPUS}) or (titles & {*_CLIP} and titles & {*_IMAGE})
    return "pairs" if pairs and not media else f"{media[0]}s" if len(media) == 1 else ""


def _plain(column: str) -> str:
    return re.sub(r"[\s-]|(?<=.)_", "", column.casefold())


def join_tables(tables: Tables, names: Mapping[str, str], rows: Rows) -> list[str]:
    """Adds each clip with its image to ``rows``, and to its problems what has no counterpart; returns notes.

    Only images of pairs are stored. Raises ManifestError if an id is twice in a table, or no table is that of queries.
    """
    wanted, notes = _read_pairs(tables, rows)
    stored: dict[tuple[str, str], Any] = {}
    images = dict.fromkeys((at, image) for at, pairs in wanted.items() for each in pairs.values() for image in each)
    splits_of = Counter(image for _, image in images)
    seen: dict[tuple[str, str], tuple[Part, str]] = {}
    for part, place, key, row in _read_items(tables["images"], "image", names, rows):
        splits = [split for split in _splits(part, wanted) if (split, key) in images]
        _check_once(seen, place, part, key)
        if splits:
            value = rows.store(row["image"], "image", place)
            stored.update({(split, key): value for split in splits})
        else:
            rows.problems.extra["images"].append(f"{key} of {part.name}: in no pair")
    absent = dict.fromkeys(image for split, image in images if (split, image) not in stored)
    rows.problems.missing["images"] += [f"{image}: in pairs, but in no table" for image in absent]
    seen, found = {}, set()
    for part, place, key, row in _read_items(tables["clips"], "clip", names, rows):
        splits = [split for split in _splits(part, wanted) if key in wanted[split]]
        _check_once(seen, place, part, key)
        found |= {(split, key) for split in splits}
        if not splits:
            rows.problems.extra["clips"].append(f"{key} of {part.name}: in no pair")
        for split in splits:
            for image in wanted[split][key]:
                if stored.get((split, image)):
                    image_id = image if splits_of[image] == 1 else f"{split}/{image}"  # ids may begin anew
                    rows.add(place, {**row, "image": stored[split, image], "image_id": image_id, "split": None}, split)
    absent = dict.fromkeys(clip for split in wanted for clip in wanted[split] if (split, clip) not in found)
    rows.problems.missing["clips"] += [f"{clip}: in pairs, but in no table" for clip in absent]
    return notes


def _splits(part: Part, wanted: Mapping[str, Any]) -> list[str]:
    """The splits of the pairs that a table is for: its own, or all, as a corpus is often that of several splits."""
    return [part.split] if part.split and part.split in wanted else list(wanted)


def _check_once(seen: dict[tuple[str, str], tuple[Part, str]], place: str, part: Part, key: str) -> None:
    first = seen.setdefault((part.split or "", key), (part, place))
    if first[0] is not part or first[1] != place:
        raise ManifestError(f"{place}: the id {key!r} is also that of {first[1]}; give each its own")


def _read_items(
    parts: Sequence[Part], kind: str, names: Mapping[str, str], rows: Rows
) -> Iterator[tuple[Part, str, str, Values]]:
    """The part, place, id and values of each row of tables of one kind of media."""
    for part in parts:
        with rows.reading(part):
            yield from _items_of(part, kind, names)


def _items_of(part: Part, kind: str, names: Mapping[str, str]) -> Iterator[tuple[Part, str, str, Values]]:
    own = (*_IDS, *(_IMAGE if kind == "image" else _CLIP), *_QUERY, *_CORPUS)
    ids = sorted((each for each in part.kinds if _plain(each) in own), key=lambda each: own.index(_plain(each)))
    column = names.get("image_id") or (ids[0] if ids else "")
    if column not in part.kinds:
        fix = f"name that of the ids by {FLAGS['image_id']} (there are: {', '.join(part.kinds)})"
        raise ManifestError(f"{part.name}: no column {column or 'id'!r}; {fix}")
    roles = ("image",) if kind == "image" else OF_CLIP  # a text beside an image is not that of a clip
    columns = choose_columns(part, {role: names.get(role) if role in roles else "" for role in FLAGS}, [kind])
    for place, row in read_columns(part, columns | {"image_id": [column]}):
        key = word(row[column], place, column)
        if key is None:
            raise ManifestError(f"{place}: no id in the column {column!r}; fill it")
        yield part, place, key, {role: row[found[0]] for role, found in columns.items()}


def _read_pairs(tables: Tables, rows: Rows) -> tuple[dict[str, dict[str, list[str]]], list[str]]:
    """Split → id of a clip → ids of its images; and a note on pairs of no relevance."""
    wanted: dict[str, dict[str, list[str]]] = defaultdict(dict)
    unrelated = 0
    for part in tables["pairs"]:
        split = part.split if part.split not in _NO_SPLITS and part.split else "test"  # such tables are for evaluation
        with rows.reading(part):
            ids: tuple[Sequence[str], Sequence[str]] = (_CLIP, _IMAGE)
            if {_plain(column) for column in part.kinds} & {*_QUERY}:
                ids = (_QUERY, _CORPUS) if _clips_are_queries(tables) else (_CORPUS, _QUERY)
            clip, image, score = (
                next((column for column in part.kinds if _plain(column) in titles), "") for titles in (*ids, _SCORE)
            )
            columns = dict.fromkeys(filter(None, (clip, image, score)), "pairs")
            for number, row in enumerate(part.rows((), columns), 1):
                place = f"{part.name} row {number}"
                if score and not _is_relevant(row[score], place, score):
                    unrelated += 1
                    continue
                one, other = (word(row[column], place, column) for column in (clip, image))
                if one is None or other is None:
                    raise ManifestError(f"{place}: a pair without an id; fill or delete it")
                found = wanted[split].setdefault(one, [])
                if other not in found:
                    found.append(other)
    count = sum(len(images) for pairs in wanted.values() for images in pairs.values())
    note = f"{count:,} pairs of clips and images"
    return dict(wanted), [f"{note}; {unrelated:,} of relevance 0 are none" if unrelated else note]


def _is_relevant(value: Any, place: str, column: str) -> bool:
    try:
        return float(value) > 0
    except (TypeError, ValueError):
        raise ManifestError(f"{place}: {column} is {value!r:.40}; make it a number") from None


def _clips_are_queries(tables: Tables) -> bool:
    """Whether the names of tables say that clips are the queries and images the corpus, or the reverse."""
    clips, images = (
        " ".join(f"{os.path.basename(os.path.dirname(part.path))} {part.name} {part.config}" for part in parts)
        for parts in (tables["clips"], tables["images"])
    )
    is_query = "quer" in clips.casefold() or "corpus" in images.casefold()
    is_corpus = "corpus" in clips.casefold() or "quer" in images.casefold()
    if is_query == is_corpus:
        names = ", ".join(tables[kind][0].name for kind in ("clips", "images"))
        fix = "name the files or folders queries and corpus"
        raise ManifestError(f"{names}: nothing says which table is that of queries; {fix}")
    return is_query
