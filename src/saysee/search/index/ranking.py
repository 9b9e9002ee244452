"""Orders the candidates of a search by their stored vectors, one hit for rows of equal content; and rows by age."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from saysee.media.formats import Kind
from saysee.search.index.filters import Filter
from saysee.search.index.store import Ids, Item, Tables, Vectors

Search = Callable[[int], Sequence[Ids]]
"""Gives for a number the ids of so many of each query's nearest rows, or of all there are; maybe a few more."""

_SPARE = 2
"""Times as many candidates are taken at first as hits are asked for: a fast copy has rounded vectors."""


def ranked(tables: Tables, queries: Vectors, search: Search, k: int, offset: int = 0) -> list[list[tuple[Item, float]]]:
    """For each query of [Q, D] the hits that :meth:`saysee.search.index.store.Store.nearest` gives.

    Candidates that were removed meanwhile are skipped.
    """
    depth, count = _SPARE * (offset + k), offset + k
    while True:
        found = search(depth)
        best = _best(tables, queries, found, count)
        if not any(len(hits) < count and len(ids) >= depth for hits, ids in zip(best, found, strict=True)):
            break
        depth *= 4  # many candidates are copies of each other
    ids = [number for hits in best for number, _ in hits[offset:]]
    items = tables.rows(ids)
    for number, count in tables.copies(ids).items():
        items[number].copies = count
    return [[(items[number], score) for number, score in hits[offset:]] for hits in best]


def _best(tables: Tables, queries: Vectors, found: Sequence[Ids], count: int) -> list[list[tuple[int, float]]]:
    """For each query the ids and scores of its best candidates of ``count`` contents, of equal scores the earlier."""
    ids, hashes, vectors = tables.contents_of(np.unique(np.concatenate(found)).tolist() if found else ())
    best = []
    for query, candidates in zip(queries, found, strict=True):
        places = np.searchsorted(ids, candidates[np.isin(candidates, ids)])
        scores = vectors[places] @ query
        hits: dict[str | int, tuple[int, float]] = {}
        for at in np.lexsort((ids[places], -scores)):
            number = int(ids[places[at]])
            hits.setdefault(hashes[places[at]] or number, (number, float(scores[at])))
            if len(hits) == count:
                break
        best.append(list(hits.values()))
    return best


def newest(tables: Tables, kind: Kind, k: int, offset: int = 0, filters: Sequence[Filter] = ()) -> list[Item]:
    """Up to ``k`` rows of a kind for which all filters hold, after ``offset`` others: the newest files first.

    Rows without a time are those added last, or of imported vectors.
    """
    order = "WHERE kind = ? ORDER BY mtime_ns IS NOT NULL, mtime_ns DESC, id DESC"
    if not filters:
        return list(tables.items(f"{order} LIMIT ? OFFSET ?", kind, k, offset))
    fitting = (item for item in tables.items(order, kind) if all(one.matches(_value(item, one)) for one in filters))
    return list(itertools.islice(fitting, offset, offset + k))


def _value(item: Item, of: Filter) -> Any:
    """The value that a filter is about."""
    if not of.is_column:
        return item.metadata.get(of.name)
    folder, _, name = item.path.rpartition("/")
    return {"folder": folder, "name": name}.get(of.name, getattr(item, of.name, None))
