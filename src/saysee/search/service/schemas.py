"""The fields of forms and answers; OpenAPI documents them in these words."""

import json
from typing import Annotated, Any, Literal

from fastapi import Form, UploadFile
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, Json, JsonValue
from pydantic.json_schema import SkipJsonSchema

from saysee.encoding.attention import AttentionSource
from saysee.media.formats import Kind
from saysee.search.index.ranking import FUSED, Scored, Speech
from saysee.search.index.sources import UPLOADS_FOLDER, is_upload
from saysee.search.index.store import Item
from saysee.search.service.settings import Limits

DEFAULT_K = 12
MAX_OFFSET = 10_000
NAME_KEY = "file_name"  # of the metadata of an added file: how the client called it
TITLE_KEY = "title"  # of the metadata of an image with an address on the web: its name for people
MAX_ID = 2**63 - 1
_FILE: dict[str, JsonValue] = {"format": "binary"}


def _storable(values: dict[str, Any]) -> dict[str, Any]:
    json.dumps(values, allow_nan=False)  # raises ValueError for NaN and infinity, which JSON does not have
    return values


# An optional field of a form is absent, never null.
OptionalFile = UploadFile | SkipJsonSchema[None]
MULTIPART = Form(media_type="multipart/form-data")
OptionalText = str | SkipJsonSchema[None]
JsonObject = Annotated[Json[dict[str, JsonValue]], AfterValidator(_storable)]


class _Form(BaseModel):
    model_config = ConfigDict(extra="forbid")


class SearchForm(_Form):
    """A query: exactly one of file, audio, image, text and vector."""

    file: OptionalFile = Field(
        None, description="an audio file or an image: its content says which", json_schema_extra=_FILE
    )
    audio: OptionalFile = Field(None, description="an audio file: a spoken query", json_schema_extra=_FILE)
    image: OptionalFile = Field(None, description="an image file", json_schema_extra=_FILE)
    text: OptionalText = Field(None, description="a written query")
    vector: OptionalText = Field(None, description="the vector of the answer to an earlier query")
    speech: Speech | SkipJsonSchema[None] = Field(
        None, description="how a spoken query is searched for, one of GET /about's speech; by default its first"
    )
    transcript: OptionalText = Field(
        None, description="of a spoken query, from an earlier answer to it: it is not recognized again"
    )
    k: int = Field(DEFAULT_K, ge=1, description="largest number of hits")
    offset: int = Field(0, ge=0, le=MAX_OFFSET, description="number of best hits to skip")
    kind: Kind | SkipJsonSchema[None] = Field(
        None, description="what to find; by default images, or clips for an image if the index has no image"
    )
    rerank: int | SkipJsonSchema[None] = Field(
        None,
        ge=1,
        description="number of best hits to read again and to order by the model's fusion encoder: for audio "
        "(speech: direct) that finds images, or an image that finds clips. Where GET /about has rerank",
    )
    filter: list[str] = Field(
        [],
        description="name:value, such as folder:holiday*, speaker:s1 or taken:2024-06..2024-08; all must hold",
        examples=[["folder:holiday*"]],
    )


class ItemsQuery(_Form):
    """Which items are listed."""

    kind: Kind = "image"
    k: int = Field(24, ge=1, le=100, description="largest number of items")
    offset: int = Field(0, ge=0, le=MAX_ID, description="number of newest items to skip")
    filter: list[str] = Field([], description="as for a search", examples=[["folder:holiday*"]])


class AttentionForm(_Form):
    """A clip and an image of the index."""

    audio: UploadFile = Field(description="an audio file", json_schema_extra=_FILE)
    id: int = Field(ge=1, le=MAX_ID, description="the id of an image")
    source: AttentionSource | SkipJsonSchema[None] = Field(
        None,
        description="interaction: what the score owes to a place and a moment together, more often right; fusion: the "
        "model's fusion encoder, where it has one, in less time. By default as in GET /about",
    )


class ItemForm(_Form):
    """A new item of the index."""

    file: UploadFile = Field(description="an image or audio file", json_schema_extra=_FILE)
    metadata: JsonObject | SkipJsonSchema[None] = Field(None, description="further columns, as a JSON object")


class ErrorAnswer(BaseModel):
    """Why a request was rejected."""

    code: str = Field(description="for programs: kebab-case, stable across releases")
    detail: str = Field(description="for people: one line that says what is wrong and how to fix it")
    request_id: str = Field(description="as in the header X-Request-ID and in the access log")


class ItemAnswer(BaseModel):
    """An image or clip of the index."""

    id: int
    kind: Kind
    name: str
    folder: str = Field(description="relative to the indexed folder")
    metadata: dict[str, Any]
    url: str = Field(description="address of its file")
    thumbnail: str | None = Field(description="address of an image's thumbnail")
    preview: str | None = Field(description="address of an image in the size of a screen")


class AboutAnswer(BaseModel):
    """What is served."""

    name: str = Field(description="name of the index's folder")
    images: int
    clips: int
    writable: bool = Field(description="whether items may be added and removed")
    attention: AttentionSource | None = Field(
        description="what POST /attention is computed from by default; null without a speech encoder"
    )
    speech: list[Speech] = Field(description="how speech can be searched for, the default first")
    rerank: bool = Field(description="whether the model can re-rank hits")
    limits: Limits
    formats: dict[Kind, list[str]] = Field(description="suffixes of the files that can be queries or items")
    trained_on: str | None = Field(description="what the image encoder knows, if that is not photographs in general")
    examples: list[ItemAnswer] = Field(description="items to try as queries")
    version: str


class HitAnswer(ItemAnswer):
    """An item that was found."""

    score: float = Field(description="cosine similarity, -1 to 1; or another score: see measure")
    measure: Scored = Field(
        description=f"what the score is: a cosine similarity; for speech by both ways the {FUSED}; or re-ranked, a "
        "cosine plus what the fusion encoder adds, which orders hits. Of re-ranked hits, one whose file cannot be read "
        "keeps its place and its cosine"
    )
    copies: int = Field(description="items of the index with this content, this one included")


class ItemsAnswer(BaseModel):
    """Items of the index, those of the newest files first."""

    items: list[ItemAnswer]


class QueryAnswer(BaseModel):
    """The query as it was understood."""

    kind: Literal["audio", "image", "text", "vector"]
    speech: Speech | None = Field(description="how a spoken query was searched for")
    seconds: float | None = Field(description="duration of a spoken query")
    transcript: str | None = Field(description="what was recognized in a spoken query, if it was searched for")
    used_text: str | None = Field(description="start of a text or transcript longer than the model takes, as used")
    vector: str = Field(
        description="base64 of little-endian float16; a later query may send it. For both ways two, with a comma"
    )
    unknown_words: list[str] = Field(description="words of the text that the text encoder does not know")


class SearchAnswer(BaseModel):
    """The hits of a query, the best first."""

    query: QueryAnswer
    kind: Kind = Field(description="kind of the hits")
    hits: list[HitAnswer]
    milliseconds: float = Field(description="of the search, without the transfer of the request")


class AttentionAnswer(BaseModel):
    """Which regions of an image each moment of speech attends to."""

    source: AttentionSource
    rows: int
    columns: int
    frame_seconds: float
    seconds: float
    frames: list[list[float]] = Field(description="for each frame rows x columns weights that sum to 1")
    box: tuple[float, float, float, float] = Field(
        description="left, top, right and bottom of the grid, as fractions of the image's sides"
    )


def item_answer(item: Item) -> dict[str, Any]:
    """A row as an :class:`ItemAnswer`."""
    named_by = NAME_KEY if is_upload(item) else TITLE_KEY if "://" in item.path else ""
    named = item.metadata.get(named_by)
    url = f"/images/{item.id}" if item.kind == "image" else f"/clips/{item.id}"
    return {
        "id": item.id,
        "kind": item.kind,
        "name": str(named) if isinstance(named, str | int | float) else item.name,
        "folder": UPLOADS_FOLDER if is_upload(item) else item.folder,
        "metadata": item.metadata,
        "url": url,
        "thumbnail": f"{url}/thumbnail" if item.kind == "image" else None,
        "preview": f"{url}/preview" if item.kind == "image" else None,
    }
