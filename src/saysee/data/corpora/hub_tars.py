"""The samples of a WebDataset tar, as values by role: clip, image, text and so on.

Consecutive members of a tar with the same stem (up to the first dot) are one sample: ``000001.jpg``, ``000001.wav``,
``000001.txt`` and ``000001.json`` are an image, its spoken caption, the text, and an object that may hold text,
speaker, language, image id and split. An image with several captions has ``000001.0.wav``, ``000001.1.wav`` and so on,
with ``000001.0.txt`` and so on, or a list of texts in the object.

Tars are not read by ``datasets``: version 5.2 needs torchcodec for audio in them, ignores members that the first sample
does not have, and takes a tar that was cut between two members for complete.
"""

import bz2
import gzip
import itertools
import json
import lzma
import os
import re
import tarfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from saysee.data.corpora.hub_files import BrokenPartError, Part, open_file
from saysee.data.corpora.hub_rows import FLAGS, Values
from saysee.data.tables import role_of
from saysee.errors import ManifestError
from saysee.media.formats import Kind, kind_by_suffix
from saysee.media.source import reason

_TAR_BLOCK = 512
_COMPRESSIONS: Mapping[bytes, Callable[[Any], Any]] = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ": lzma.open}
_MEMBER = re.compile(r"^((?:.*/)?[^./][^./]*)\.([^/]+)$")


def read_tar(part: Part, names: Mapping[str, str]) -> Iterator[tuple[str, Values]]:
    """The samples of a tar, each with its place for error messages; a sample may have no clip or no image.

    ``names`` are member suffixes or JSON keys, otherwise as in :func:`saysee.data.corpora.hub_rows.read_table`.

    Raises BrokenPartError if the tar is damaged or cut short, ManifestError if a sample has a member twice, two images,
    or JSON or text that cannot be read, or no sample has a named member.
    """
    names = {role: name.lstrip(".") for role, name in names.items()}
    seen: set[str] = set()
    for key, members in _samples(part.path, part.name):
        place = f"{key} of {part.name}"
        words = _words(members, place)
        seen |= {*members, *words}
        clips, images = (_media_members(key, members, names.get(kind), kind) for kind in ("clip", "image"))
        if len(images) > 1:
            what = f"several images ({', '.join(images)}), because the stem of a sample ends at its first dot"
            raise ManifestError(f"{place}: {what}; rename them, or name one by {FLAGS['image']}")
        values: Values = {role: _word(words, names.get(role), role) for role in FLAGS}
        if "text" not in names:
            own = [words.get(f"{os.path.splitext(suffix)[0]}.txt") for suffix in clips]
            values["text"] = own if any(own) else words.get("txt") or values["text"]
        yield place, values | {"clip": list(clips.values()), "image": next(iter(images.values()), None)}
    for role, name in names.items():
        if name and name not in seen:
            have = ", ".join(sorted(seen))
            raise ManifestError(f"{part.name}: no sample has {name!r} ({FLAGS[role]}); they have: {have}")


def _samples(path: str, part: str) -> Iterator[tuple[str, dict[str, bytes]]]:
    """The key and the members of each sample, by their lower-case suffix."""
    key, members = None, dict[str, bytes]()
    seen: set[tuple[int, str]] = set()
    try:
        for archive, name, data in _members(path):
            matched = _MEMBER.match(name)
            if matched is None or "__MACOSX" in name:
                continue
            if (archive, matched[1]) != key:
                if key:
                    yield key[1], members
                key, members = (archive, matched[1]), {}
                if key in seen:
                    apart = f"members of {matched[1]!r} are apart, such as {name!r}"
                    raise ManifestError(f"{part}: not sorted by stem: {apart}; sort it (tar --sort=name)")
                seen.add(key)
            suffix = matched[2].lower()
            if suffix in members:
                raise ManifestError(f"{part}: two members {name!r}; make the tar again with one of each name")
            members[suffix] = data
    except (tarfile.TarError, EOFError, OSError, zlib.error, lzma.LZMAError) as error:
        raise BrokenPartError(reason(error)) from None
    if key:
        yield key[1], members


def _members(path: str) -> Iterator[tuple[int, str, bytes]]:
    """The files of each archive in a file, with the number of the archive: ``cat`` joins tars to one file."""
    with open_file(path) as raw:
        start = raw.read(max(map(len, _COMPRESSIONS)))
        raw.seek(0)
        file = next((opened(raw) for magic, opened in _COMPRESSIONS.items() if start.startswith(magic)), raw)
        for archive in itertools.count():
            with tarfile.open(fileobj=file, mode="r:") as tar:
                while (member := tar.next()) is not None:
                    tar.members = []  # type: ignore[attr-defined]  # they would accumulate
                    if member.isfile():
                        content = tar.extractfile(member)
                        assert content is not None
                        data = content.read()
                        if len(data) != member.size:
                            raise EOFError(f"{member.name} is cut off")
                        yield archive, member.name.removeprefix("./"), data
                file.seek(tar.offset)
            # tarfile takes a tar that was cut between two members for complete. A complete one ends with zeros.
            block = file.read(_TAR_BLOCK)
            if block != bytes(_TAR_BLOCK):
                raise EOFError("the end mark is missing")
            while block == bytes(_TAR_BLOCK):
                block = file.read(_TAR_BLOCK)
            if not block.strip(b"\0"):
                return
            file.seek(-len(block), os.SEEK_CUR)


def _words(members: Mapping[str, bytes], place: str) -> dict[str, Any]:
    """The keys of a sample's JSON object, and its text members by suffix."""
    words: dict[str, Any] = {}
    for suffix, data in members.items():
        try:
            if suffix == "json":
                content = json.loads(data)
                words |= content if isinstance(content, dict) else {}
            elif suffix.rpartition(".")[2] in ("txt", "text", "cls"):
                words[suffix] = data.decode("utf-8-sig").strip()
        except (ValueError, RecursionError) as error:
            raise ManifestError(f"{place}: its .{suffix} cannot be read ({error}); make the tar again") from None
    return words


def _media_members(key: str, members: Mapping[str, bytes], named: str | None, kind: Kind) -> Values:
    """The members that are clips or images, in the order of their numbers; or the one that was named."""
    found = [suffix for suffix in members if (suffix == named if named else kind_by_suffix(f"x.{suffix}") == kind)]
    found.sort(key=lambda suffix: [(not part.isdigit(), part.zfill(9)) for part in suffix.split(".")])
    return {suffix: {"bytes": members[suffix], "path": f"{os.path.basename(key)}.{suffix}"} for suffix in found}


def _word(words: Mapping[str, Any], named: str | None, role: str) -> Any:
    if named is not None:
        return words.get(named)
    return next((value for name, value in words.items() if role_of(name.removesuffix(".txt")) == role), None)
