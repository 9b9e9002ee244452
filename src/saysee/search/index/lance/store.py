"""Where an index in LanceDB is: a folder or a place in an object store, with many writers and readers and no server.

Each change commits a new version of a table; where another writer's came first, it is made again. A reader keeps the
versions that it has opened. Images and clips have a table each: of an index over both, the clusters near a clip are of
clips.
"""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import lancedb

from saysee.errors import SaySeeError
from saysee.media.formats import Kind
from saysee.search.index.filters import Filters
from saysee.search.index.lance.arrow import one_line
from saysee.search.index.lance.searching import Held, searcher
from saysee.search.index.lance.tables import ABOUT, CONFLICT, LanceTables
from saysee.search.index.ranking import ranked
from saysee.search.index.store import Hits, Store, Vectors, no_index

_REASONS = (
    (r"os error 28\b|StorageFull", "the disk is full; free some space and run the command again, it resumes"),
    (
        r"Errno (1|13|30)\b|os error (1|13|30)\b|Permission|403",
        "no permission, or it can only be read ({}); change that, or name another place by --to",
    ),
    (r"Errno 20|os error 20|File exists", "the index cannot be there ({}); name another place by --to"),
    (r"object_store|Generic S3|http", "no connection ({}); check the address and the variables AWS_…"),
    (CONFLICT.pattern, "the index is busy ({}); run the command again, it resumes"),
    (r"unsupported|not supported|newer", "this lancedb is too old for it ({}); upgrade lancedb"),
    ("", "the index is damaged ({}); create it again, or restore a copy"),
)
"""Parts of Lance's messages, and what to say of them."""


class LanceStore(Store):
    """A folder or a place in an object store where an index is.

    Its address is ``lance:///folder``, ``lance://folder`` from the working directory, or ``s3://bucket/prefix``, of
    which the options are environment variables such as AWS_ACCESS_KEY_ID, AWS_REGION and AWS_ENDPOINT.
    """

    def __init__(self, address: str) -> None:
        scheme, _, rest = address.partition("://")
        if not rest.strip("/"):
            raise SaySeeError(f"{address}: names no place; write lance:///folder or s3://bucket/prefix")
        self.local = Path(rest).expanduser().absolute() if scheme == "lance" else None
        self.place = address if self.local is None else f"lance://{self.local}"
        self.held: dict[Kind, Held] = {}  # what searching has read of the tables

    @contextmanager
    def reading(self) -> Iterator[LanceTables]:
        if self.local is not None and not (self.local / f"{ABOUT}.lance").is_dir():
            raise no_index(self.place)
        yield LanceTables(self, latest=False)

    @contextmanager
    def writing(self) -> Iterator[LanceTables]:
        """One of the writers; see :meth:`Store.writing`."""
        if self.local is not None:
            with self.errors_in_one_line():
                names = os.listdir(self.local) if self.local.exists() else []
            if names and not any(name.endswith(".lance") for name in names):
                raise SaySeeError(f"{self.place}: holds other files ({names[0]}) and no index; name another by --to")
        yield LanceTables(self, latest=True)

    def nearest(
        self, queries: Vectors, kind: Kind, k: int, where: str | None = None, filters: Filters = (), offset: int = 0
    ) -> Hits:
        with self.reading() as tables:
            return ranked(tables, queries, searcher(tables, queries, kind, where, filters), k, offset)

    @cached_property
    def connection(self) -> Any:
        """Of all readers and writers, which share its cache."""
        return lancedb.connect(self.local or self.place)

    @contextmanager
    def errors_in_one_line(self) -> Iterator[None]:
        """Errors within calls of Lance, which have no class of their own, become a SaySeeError."""
        try:
            yield
        except SaySeeError:
            raise
        except Exception as error:
            text = next(text for part, text in _REASONS if re.search(part, str(error), re.IGNORECASE))
            raise SaySeeError(f"{self.place}: {text.format(one_line(error))}") from None
