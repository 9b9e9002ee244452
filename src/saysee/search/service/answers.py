"""What a service answers, field by field; OpenAPI tells it in these words."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, Field

from saysee.search.index.index import Hit
from saysee.search.index.store import Item, Kind
from saysee.search.index.uploads import UPLOADS_FOLDER, is_upload


class LimitsAnswer(BaseModel):
    """Most of each thing in one request."""

    bytes: int
    seconds: float
    pixels: int
    k: int
    text: int


class AboutAnswer(BaseModel):
    """What is served."""

    name: str = Field(description="of the index's folder")
    images: int
    clips: int
    writable: bool = Field(description="whether items may be added and removed")
    attention: Literal["fusion", "similarity"] = Field(description="what POST /attention reads")
    limits: LimitsAnswer
    version: str


class ItemAnswer(BaseModel):
    """A picture or clip of the index."""

    id: int
    kind: Kind
    name: str
    folder: str = Field(description="as seen from the indexed folder")
    metadata: dict[str, Any]
    url: str = Field(description="of its file")
    thumbnail: str | None = Field(description="of a picture")


class HitAnswer(ItemAnswer):
    """What was found."""

    score: float = Field(description="cosine similarity, -1 to 1")


class QueryAnswer(BaseModel):
    """The query as it was understood."""

    kind: Literal["audio", "image", "text", "vector"]
    seconds: float | None = Field(description="length of a sound")
    vector: str = Field(description="base64 of little-endian float16; a later query may send it")


class SearchAnswer(BaseModel):
    """The hits of a query, the best first."""

    query: QueryAnswer
    kind: Kind = Field(description="of the hits")
    hits: list[HitAnswer]
    milliseconds: float = Field(description="from the request's arrival to its answer")


class AttentionAnswer(BaseModel):
    """Which regions of a picture each moment of speech attends to."""

    source: Literal["fusion", "similarity"]
    rows: int
    columns: int
    frame_seconds: float
    seconds: float
    frames: list[list[float]] = Field(description="for each frame rows x columns shares, 0 to 1")
    box: tuple[float, float, float, float] = Field(description="left, top, right, bottom of the patches, as shares")


class HealthAnswer(BaseModel):
    """That the model is loaded."""

    status: Literal["ok"] = "ok"


def item_answer(item: Item) -> dict[str, Any]:
    """A row as :class:`ItemAnswer`."""
    folder, _, name = item.path.rpartition("/")
    url = f"/images/{item.id}" if item.kind == "image" else f"/clips/{item.id}"
    return {
        "id": item.id,
        "kind": item.kind,
        "name": name,
        "folder": UPLOADS_FOLDER if is_upload(item) else folder,
        "metadata": item.metadata,
        "url": url,
        "thumbnail": f"{url}/thumbnail" if item.kind == "image" else None,
    }


def hit_answer(hit: Hit, item: Item) -> dict[str, Any]:
    """A hit as :class:`HitAnswer`."""
    return {**item_answer(item), "score": hit.score}
