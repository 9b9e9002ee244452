"""WebDataset tars: members of one stem that follow each other are one sample.

``000001.jpg``, ``000001.wav``, ``000001.txt`` and ``000001.json`` are a picture, what is said of it, its text, and an
object that may hold text, speaker, language, image id and split. A picture with several captions has ``000001.0.wav``,
``000001.1.wav``, … with ``000001.0.txt``, …, or a list of texts in the object. The stem ends at the first dot.
"""

from __future__ import annotations

import json
import os
import re
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

from saysee.data.corpora.finding import role_of
from saysee.data.corpora.records import (
    FLAGS,
    BrokenShardError,
    ColumnNames,
    Media,
    Record,
    Shard,
    texts_of_sounds,
)
from saysee.errors import ManifestError
from saysee.media.formats import AUDIO_SUFFIXES, IMAGE_SUFFIXES

_TAR_BLOCK = 512
_MEMBER = re.compile(r"^((?:.*/)?[^./][^./]*)\.([^/]+)$")
_BRACES = re.compile(r"\{([^{}]*)\}")


@dataclass
class _Sample:
    """The members of one stem, by what stands behind its dot, in lower case."""

    key: str
    members: dict[str, bytes] = field(default_factory=dict)


def expand(pattern: str) -> list[str]:
    """The names that braces stand for: ``{000..010}`` are numbers of that width, ``{a,b}`` words.

    Raises:
        ManifestError: braces with neither.
    """
    parts: list[list[str]] = []
    end = 0
    for braces in _BRACES.finditer(pattern):
        numbers = re.fullmatch(r"(\d+)\.\.(\d+)", braces[1])
        if numbers:
            first, last = int(numbers[1]), int(numbers[2])
            words = [str(number).zfill(len(numbers[1])) for number in range(first, last + 1)]
        else:
            words = braces[1].split(",") if "," in braces[1] else []
        if not words:
            raise ManifestError(f"{pattern}: {braces[0]} names no files; write {{000..010}} or {{a,b}}")
        parts += [[pattern[end : braces.start()]], words]
        end = braces.end()
    return ["".join(words) for words in product(*parts, [pattern[end:]])]


def read_tar(shard: Shard, names: ColumnNames) -> Iterator[Record]:
    """The samples of a tar as records, streamed; a sample without sound and picture has neither.

    Raises:
        BrokenShardError: it is damaged, or cut short.
        ManifestError: a sample holds a member twice, two pictures, or an object that is no JSON; no sample has what was
            named.
    """
    seen: set[str] = set()
    try:
        for sample in _samples(shard.path):
            words = _words(sample, f"{sample.key} of {shard.path.name}")
            seen |= {*sample.members, *words}
            yield _record(sample, words, names, shard)
        _refuse_unseen(names, seen, shard.path)
    except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
        raise BrokenShardError(f"damaged or cut short: {str(error).strip() or type(error).__name__:.80}") from None


def _samples(path: Path) -> Iterator[_Sample]:
    sample: _Sample | None = None
    for name, data in _members(path):
        matched = _MEMBER.match(name)
        if matched is None or "__MACOSX" in name:
            continue
        key, extension = matched[1], matched[2].lower()
        if sample is None or sample.key != key:
            if sample is not None:
                yield sample
            sample = _Sample(key)
        if extension in sample.members:
            raise ManifestError(f"{path}: two members {name!r}; a sample has each once")
        sample.members[extension] = data
    if sample is not None:
        yield sample


def _members(path: Path) -> Iterator[tuple[str, bytes]]:
    with tarfile.open(path, "r:*") as tar:
        while (member := tar.next()) is not None:
            tar.members = []  # type: ignore[attr-defined]  # they would pile up
            if member.isfile():
                content = tar.extractfile(member)
                assert content is not None
                yield member.name.removeprefix("./"), _whole(content.read(), member)
        # tarfile takes a tar that was cut off between two members for whole; a block of zeros says whether it is.
        assert tar.fileobj is not None
        tar.fileobj.seek(tar.offset)
        if tar.fileobj.read(_TAR_BLOCK) != bytes(_TAR_BLOCK):
            raise EOFError("the end mark is missing")


def _whole(data: bytes, member: tarfile.TarInfo) -> bytes:
    if len(data) != member.size:
        raise EOFError(f"{member.name} is cut off")
    return data


def _refuse_unseen(names: ColumnNames, seen: set[str], path: Path) -> None:
    for role, name in names.named.items():
        if name.lstrip(".") not in {"", *seen}:
            have = ", ".join(sorted(seen))
            raise ManifestError(f"{path}: no sample has {name!r} ({FLAGS[role]}); they have: {have}")


def _record(sample: _Sample, words: dict[str, Any], names: ColumnNames, shard: Shard) -> Record:
    place = f"{sample.key} of {shard.path.name}"
    sounds = _media_named(sample, names, "clip", AUDIO_SUFFIXES)
    pictures = _media_named(sample, names, "image", IMAGE_SUFFIXES)
    if len(pictures) > 1:
        both = ", ".join(pictures)
        raise ManifestError(f"{place}: several pictures ({both}); name one by {FLAGS['image']}")
    return Record(
        place,
        _word(words, names, "split") or shard.split,
        list(sounds.values()) or [None],
        texts_of_sounds(_texts(list(sounds), words, names), len(sounds) or 1, place),
        next(iter(pictures.values()), None),
        image_id=_word(words, names, "image_id"),
        speaker=_word(words, names, "speaker"),
        language=_word(words, names, "language"),
    )


def _media_named(sample: _Sample, names: ColumnNames, role: str, suffixes: frozenset[str]) -> dict[str, Media]:
    """The members that are sounds or pictures, in the order of their numbers; or the one that was named."""
    named = (names.get(role) or "").lstrip(".")
    found = [
        extension
        for extension in sample.members
        if (extension == named if named else os.path.splitext(f"x.{extension}")[1] in suffixes)
    ]
    found.sort(key=lambda extension: [(not part.isdigit(), part.zfill(9)) for part in extension.split(".")])
    return {
        extension: Media(sample.members[extension], f"{os.path.basename(sample.key)}.{extension}")
        for extension in found
    }


def _words(sample: _Sample, place: str) -> dict[str, Any]:
    """What the sample has in words: the values of its object, and its text members by what stands before ``.txt``."""
    words: dict[str, Any] = {}
    for extension, data in sample.members.items():
        if extension == "json":
            try:
                content = json.loads(data)
            except (ValueError, RecursionError) as error:
                raise ManifestError(f"{place}: its .json is not JSON ({error}); make the tar again") from None
            words |= content if isinstance(content, dict) else {}
        elif extension in ("txt", "text", "cls") or extension.endswith(".txt"):
            try:
                words[extension] = data.decode("utf-8-sig").strip()
            except UnicodeDecodeError:
                raise ManifestError(f"{place}: its .{extension} is not UTF-8; make the tar again") from None
    return words


def _texts(sounds: list[str], words: dict[str, Any], names: ColumnNames) -> object:
    """The text of each sound: a list, or one for all."""
    named = names.get("text")
    if named is not None:
        return words.get(named.lstrip(".")) if named else None
    own = [words.get(f"{os.path.splitext(extension)[0]}.txt") for extension in sounds]
    if any(own):
        return own
    return words.get("txt") or _value(words, "text")


def _word(words: dict[str, Any], names: ColumnNames, role: str) -> str | None:
    named = names.get(role)
    value = words.get(named.lstrip(".")) if named else _value(words, role) if named is None else None
    return None if value is None or value == "" else str(value)


def _value(words: dict[str, Any], role: str) -> Any:
    return next((value for name, value in words.items() if role_of(name.removesuffix(".txt")) == role), None)
