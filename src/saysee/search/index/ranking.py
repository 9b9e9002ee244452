"""Orders the candidates of a search by their stored vectors, one hit for rows of equal content; and rows by age.

A query may have several vectors, as speech that is searched for in two ways: then its rankings are fused by reciprocal
rank (Cormack, Clarke and Büttcher, SIGIR 2009, doi 10.1145/1571941.1572114).
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from saysee.errors import MediaError
from saysee.media.formats import Kind
from saysee.search.index.filters import Filters
from saysee.search.index.store import Hits, Ids, Item, Store, Tables, Vectors

if TYPE_CHECKING:
    from saysee.encoding.encoder import Encoder

Search = Callable[[int], Sequence[Ids]]
"""Gives for a number the ids of so many of each query's nearest rows, or of all there are; maybe a few more."""

_SPARE = 2  # times as many candidates are taken at first as hits are asked for: a fast copy has rounded vectors

Speech = Literal["direct", "transcribed", "both"]
"""How speech is searched for: by the model's speech encoder, by a recognizer's transcript, or by both, fused."""
Measure = Literal["cosine", "reciprocal-rank"]
"""What a score is: a cosine similarity, −1 to 1; or a sum of 1 / (60 + rank), which orders hits and says no more."""

Scored = Measure | Literal["re-ranked"]
"""The same of a hit that may be re-ranked: then a cosine plus what the fusion encoder adds, which orders hits."""

RANK_CONSTANT = 60  # k of the paper, which chose it in a pilot and found results to change little with it
DEPTH = 500
"""Best rows of each ranking that are fused; rows of neither are not found. With spare candidates it is the most that
pgvector's HNSW gives."""
FUSED = f"sum of 1 / ({RANK_CONSTANT} + rank) over the best {DEPTH} by each"


def measure(ways: int) -> Measure:
    """What :func:`nearest` scores hits by, for so many vectors of a query."""
    return "cosine" if ways == 1 else "reciprocal-rank"


def nearest(
    store: Store, vectors: Vectors, kind: Kind, k: int, where: str | None = None, filters: Filters = (), offset: int = 0
) -> Hits:
    """The rows nearest to queries with one or more unit vectors each, [W, Q, D], as :meth:`Store.nearest`.

    The rankings by several, all of one moment, are fused: no hit depends on ``k`` and ``offset``.
    """
    if not vectors.shape[1]:  # LanceDB searches for no query at all only by an error
        return []
    if len(vectors) == 1:
        return store.nearest(vectors[0], kind, k, where, filters, offset)
    rankings = store.nearest(np.concatenate(vectors), kind, DEPTH, where, filters)
    count = len(vectors[0])
    return [_fused(rankings[query::count])[offset : offset + k] for query in range(count)]


def _fused(rankings: Sequence[Sequence[tuple[Item, float]]]) -> list[tuple[Item, float]]:
    items: dict[str | int, Item] = {}
    scores: dict[str | int, float] = {}
    for ranking in rankings:
        for rank, (item, _) in enumerate(ranking, 1):
            content = item.hash or item.id
            items.setdefault(content, item)
            scores[content] = scores.get(content, 0.0) + 1 / (RANK_CONSTANT + rank)
    order = sorted(scores, key=lambda content: (-scores[content], items[content].id))
    return [(items[content], scores[content]) for content in order]


def reranked(
    encoder: "Encoder",
    kind: Kind,
    query: Any,
    rows: Sequence[tuple[Item, float]],
    path_of: Callable[[Item], str],
    unread: list[str],
) -> list[tuple[Item, float, Scored]]:
    """The rows that a query of a kind found, in the order of the fusion encoder, with their scores and what these are.

    A row whose file, at ``path_of``, cannot be read keeps its place and its cosine; ``unread`` gets the reason.
    """
    asked, logits = encoder.tokens(kind, query), dict[int, float]()
    for place, (item, _) in enumerate(rows):
        try:
            logits[place] = logit(encoder, asked, item.kind, encoder.prepare(item.kind, path_of(item)))
        except MediaError as error:
            unread.append(f"not re-ranked: {error}")
    return reordered(rows, logits)


def logit(encoder: "Encoder", asked: Any, kind: Kind, prepared: Any) -> float:
    """Whether the tokens of a query and an item, prepared by ``encoder`` and of the other kind, belong together."""
    from saysee.encoding.reranking import match

    with encoder.evaluating():
        tokens = encoder.side(kind).tokens([prepared])
    return float(match(encoder, *((asked, tokens) if kind == "image" else (tokens, asked)))[0])


def reordered(rows: Sequence[tuple[Item, float]], logits: Mapping[int, float]) -> list[tuple[Item, float, Scored]]:
    """The rows in the order of their cosines and logits by place; one without a logit keeps its place."""
    from saysee.encoding.reranking import reranked_score

    scores = {place: reranked_score(rows[place][1], value) for place, value in logits.items()}
    found: list[tuple[Item, float, Scored]] = [(item, cosine, "cosine") for item, cosine in rows]
    for place, best in zip(sorted(scores), sorted(scores, key=lambda place: (-scores[place], place)), strict=True):
        found[place] = (rows[best][0], scores[best], "re-ranked")
    return found


def ranked(tables: Tables, queries: Vectors, search: Search, k: int, offset: int = 0) -> Hits:
    """As :meth:`Store.nearest`, of the rows that a search gives; those that were removed meanwhile are skipped."""
    depth, count = _SPARE * (offset + k), offset + k
    while True:
        found = search(depth)
        best = _best(tables, queries, found, count)
        if not any(len(hits) < count and len(ids) >= depth for hits, ids in zip(best, found, strict=True)):
            break
        depth *= 4  # many candidates are copies of each other
    ids = [number for hits in best for number, _ in hits[offset:]]
    items = tables.rows(ids)
    for number, count in tables.copies(items.values()).items():
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


def newest(tables: Tables, kind: Kind, k: int, offset: int = 0, filters: Filters = ()) -> list[Item]:
    """As :meth:`Tables.newest`, of the rows for which all filters hold."""
    if not filters:
        return list(tables.newest(kind, k, offset))
    fitting = (item for item in tables.newest(kind) if all(one.fits(item) for one in filters))
    return list(itertools.islice(itertools.islice(fitting, offset, None), k))  # the sum may exceed what islice takes
