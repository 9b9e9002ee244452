"""An index of vectors that the user already has, from CLIP's image encoder: no image is encoded again."""

import json
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from saysee.encoding.encoder import Encoder
from saysee.errors import MediaError, SaySeeError
from saysee.log import progress_bar
from saysee.media.web import ImageServer
from saysee.search.index.about import IndexReport
from saysee.search.index.index import open_store
from saysee.search.index.readers.given import Given
from saysee.search.index.readers.item_list import Listed
from saysee.search.index.sources import is_upload
from saysee.search.index.store import UNIT_TOLERANCE, Tables, Vectors, batched
from saysee.search.index.updating import begin, check_not_empty, finish, remove_rows

_CHUNK = 8_192  # vectors read and committed together
_SAMPLES = 8  # images that are encoded to check whether the vectors are of this model
_ALIKE = 0.9
"""Least median cosine of these. A choice: another program's resizing changes vectors a little, another model's have
nothing in common with them (a cosine near 0). It is the same for previews that another program has made: a JPEG of
1,440 pixels has all that is left when CLIP scales it to 224 or 336."""
_ROUNDING = (2.0**-11, 2.0**-25)
"""How far the numbers of a unit vector may be from the stored ones, which may be rounded to fp16, if it is the same."""


def index_vectors(
    encoder: Encoder,
    given: Given,
    to: str | os.PathLike[str],
    *,
    images: ImageServer | None = None,
    allow_removals: bool = False,
) -> IndexReport:
    """Creates an index of imported vectors, or brings one up to date: only rows that differ are written.

    Rows whose vector is missing, zero, not finite or of another dimension are left out and reported; the index keeps
    those that it has as it keeps rows that are no longer given.

    Args:
        encoder: the model whose image encoder they came from.
        given: of :func:`saysee.search.index.readers.files.read_files` or ``readers.database.read_database``.
        to: folder of the index, or its address as of :meth:`saysee.search.index.index.Index.open`.
        images: where images with an address on the web are fetched from, to compare some with their vectors.
        allow_removals: remove the rows that are no longer given, or without a usable vector, even if these are more
            than half.

    Raises SaySeeError for another dimension, no vector that can be used, or vectors that are not this model's, as far
    as the images can be found.
    """
    for part in given.vectors.parts:
        if part.values.shape[1] != encoder.dimension:
            raise SaySeeError(
                f"{part.place}: {part.values.shape[1]} dimensions, and the model {encoder.name} has "
                f"{encoder.dimension}; give the model whose image encoder made them"
            )
    store, items, rows = open_store(to), given.items, 0
    report = IndexReport(index=store.place, notes=[*_check_space(encoder, given, images), *given.notes])
    report.notes += [encoder.warning] if encoder.warning else []
    with store.writing() as writer:
        about = begin(writer, encoder, given.root, given.source, given.vectors.precision)
        items.begin()
        for known in batched(writer.items(), _CHUNK):
            rows += len(known)
            for row, found in zip(known, items.find(known), strict=True):
                if found is not None:
                    made_of = (about.fingerprints[row.kind], json.loads(found[1] or "{}"))
                    same = (row.encoded_by, row.metadata) == made_of
                    items.compared(found[0], row.id, row.hash, "kept" if same else None)
                elif not is_upload(row):
                    items.add_row(row, row.hash, "gone")
        scaled, total = 0, len(items)
        with progress_bar("importing", total) as bar:
            for start in range(0, total, _CHUNK):
                block, lengths = given.vectors.block(start, start + _CHUNK)
                chunk = items.block(start, start + _CHUNK)
                for place in np.flatnonzero(lengths == 0):
                    bad = chunk[place]
                    report.refused.append((bad.item.path, given.vectors.why(start + int(place), bad.item.path)))
                    if bad.row is not None:
                        items.mark("gone", bad.number)
                good = np.flatnonzero(lengths > 0)
                usable = [chunk[place] for place in good]
                for one in usable:
                    one.item.encoded_by = about.fingerprints[one.item.kind]
                unit = (block[good] / lengths[good, None]).astype(np.float32)
                changed = _changed(writer, usable, unit)
                if changed:
                    with writer.transaction():
                        writer.put([usable[place].item for place in changed], unit[changed])
                scaled += int(np.sum(np.abs(lengths[good] - 1) > UNIT_TOLERANCE))
                report.imported += len(changed)
                report.kept += len(usable) - len(changed)
                bar.update(len(lengths))
        remove_rows(writer, items, report, rows, allow_removals)
        if scaled:
            report.notes.append(f"{scaled:,} vectors were not of length 1; all are kept as unit vectors")
        finish(writer, about, report)
    check_not_empty(report, given.source)
    return report


def _changed(writer: Tables, items: Sequence[Listed], unit: Vectors) -> list[int]:
    """Positions of the items that the index does not have with this vector and metadata."""
    numbers, stored = writer.vectors_of([one.row for one in items if one.row is not None and one.state == "kept"])
    vectors = dict(zip(numbers.tolist(), stored, strict=True))
    return [
        position
        for position, (one, vector) in enumerate(zip(items, unit, strict=True))
        if (before := vectors.get(one.row)) is None or not np.allclose(before, vector, *_ROUNDING)
    ]


def _check_space(encoder: Encoder, given: Given, images: ImageServer | None) -> list[str]:
    """Compares some vectors with those that the model gives for their images; warns where none could be compared."""
    contents: list[Path | bytes] = []
    vectors: list[NDArray[np.float64]] = []
    errors: list[MediaError] = []
    for place in np.unique(np.linspace(0, len(given.items) - 1, 4 * _SAMPLES, dtype=int)).tolist():
        item = given.items.block(place, place + 1)[0].item
        (vector,), (length,) = given.vectors.block(place, place + 1)
        if len(contents) + len(errors) == _SAMPLES or item.kind != "image" or not length:
            continue
        try:
            if images is not None and images.has(item.path):
                contents.append(images.fetch(item.path))
            elif os.path.isfile(given.root / item.path):  # files need not be there
                contents.append(given.root / item.path)
            else:
                continue
            vectors.append(vector / length)
        except MediaError as error:
            errors.append(error)
    bad: dict[int, MediaError] = {}
    expected = encoder.encode("image", contents, bad=bad, progress=False)
    good = [number for number in range(len(contents)) if number not in bad]
    if not good:
        return _not_compared(encoder, given, images, [*errors, *bad.values()])
    cosine = float(np.median((expected[good] * np.stack(vectors)[good]).sum(axis=1)))
    if not cosine >= _ALIKE:
        fix = f"give {given.clip}" if given.clip else "name the model that made them, or index the images"
        raise SaySeeError(
            f"the vectors are not of the image encoder of {encoder.name}: of {len(good)} images encoded to "
            f"compare, the median cosine is {cosine:.2f}; {fix}"
        )
    return []


def _not_compared(
    encoder: Encoder, given: Given, images: ImageServer | None, errors: Sequence[MediaError]
) -> list[str]:
    if images is not None:
        if errors:
            raise errors[0]
        raise SaySeeError(f"{given.source}: no path starts with {images.base}; check --images-from, or the paths")
    if given.clip and encoder.name.startswith("openai/clip-") and encoder.name != given.clip:
        raise SaySeeError(
            f"{given.source}: its settings name no CLIP, so its vectors are taken for those of {given.clip}, not of "
            f"{encoder.name}; give that model, or --images-from, so that some images are compared"
        )
    return [
        "no image was found at its path, so that only the dimension was checked: whether the vectors are of this "
        "model's image encoder is not known"
    ]
