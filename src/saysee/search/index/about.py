"""What holds for a whole index, whatever stores it: its model, its vectors and its source; what a run did to it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

from saysee.errors import SaySeeError
from saysee.media.formats import Kind
from saysee.media.source import printable
from saysee.version import __version__

if TYPE_CHECKING:
    from saysee.encoding.encoder import Encoder

FORMAT = 2
"""Version of the layout. A greater one is refused: this release cannot know what it means. Format 1 had one fingerprint
for both kinds, from which those of each kind do not follow."""
EXAMPLES = "examples"  # the note with the keys of the items that a visitor may try as queries
MAX_EXAMPLES = 24
INDEX_FOLDER = "index"  # a folder with an index in it may be named in place of that, such as that of a demo


@dataclass(frozen=True, slots=True)
class About:
    """What holds for the whole index."""

    model: str  # folder or hub name of the model, as the user last named it
    model_beside: str | None  # that folder relative to the index; None for a hub name and for an index in a database
    # by kind, of what makes its vectors: one side of the model and its preprocessing. While another model encodes the
    # rows of a kind again, still the previous one
    fingerprints: dict[Kind, str]
    dimension: int  # d of the vectors, which are unit vectors
    precision: str  # "float32" or "float16", of the stored vectors
    root: str  # folder that relative paths start from
    root_beside: str | None  # the same relative to the index; None on another drive and for an index in a database
    source: str  # what is indexed below the root: "." for the folder itself, else the name of a manifest or table
    format: int = FORMAT
    normalisation: str = "unit"  # spelled as format 2 stores it
    written_by: str = __version__

    def check(self, encoder: Encoder, where: object, kind: Kind = "image") -> None:
        """Raises a SaySeeError for a model whose image side, or to find clips whose speech side, is not the index's."""
        if encoder.dimension != self.dimension:
            raise SaySeeError(
                f"{where}: its vectors have {self.dimension} dimensions, those of the model {encoder.name} "
                f"{encoder.dimension}; give the index's own model ({self.model})"
            )
        if encoder.fingerprint("image") != self.fingerprints["image"]:
            raise SaySeeError(
                f"{where}: its vectors are not those of {encoder.name}, whose image encoder or preprocessing is not "
                f"the one that the index was built with; give that model ({self.model}), or make a new index elsewhere"
            )
        if kind == "clip" and encoder.fingerprint("clip") != self.fingerprints["clip"]:
            raise SaySeeError(
                f"{where}: its clips were encoded by another speech side than that of {encoder.name}; run 'saysee "
                "index' with this model, which encodes them again, or search for images"
            )


@dataclass(slots=True)
class IndexReport:
    """What an indexing run did."""

    index: str  # its folder or address
    # images, clips: rows of the index after the run
    images: int = 0
    clips: int = 0
    encoded: int = 0  # files that the model encoded
    imported: int = 0  # rows whose vector or metadata was imported
    kept: int = 0  # files, or imported vectors, that had not changed
    moved: int = 0  # files found at a new place, which keep their vectors
    removed: int = 0  # rows whose file no longer exists or can no longer be used
    # rows that were kept although their files are out of reach, by folder
    missing: Counter[str] = field(default_factory=Counter)
    refused: list[tuple[str, str]] = field(default_factory=list)  # path and reason of each file that cannot be used
    # path and reason of each folder or link that cannot be read
    unreadable: list[tuple[str, str]] = field(default_factory=list)
    # files that are neither image nor clip, by suffix; also videos
    ignored: Counter[str] = field(default_factory=Counter)
    excluded: Counter[str] = field(default_factory=Counter)  # files and folders that a pattern excluded, by pattern
    search: dict[Kind, str] = field(default_factory=dict)  # how the index is searched, by kind
    notes: list[str] = field(default_factory=list)  # warnings, such as of what could not be checked

    def add(self, other: IndexReport) -> None:
        """Adds what another process did with files."""
        self.encoded += other.encoded
        self.refused += other.refused
        self.ignored += other.ignored
        self.missing += other.missing

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        values = {one.name: getattr(self, one.name) for one in fields(self)}
        for name in ("refused", "unreadable"):
            values[name] = [{"path": path, "reason": reason} for path, reason in values[name]]
        return values

    def to_line(self) -> str:
        """One line for the terminal."""
        how = [f"{kind}s: {text}" for kind, text in self.search.items()]
        others = {"ignored": counted(self.ignored), "excluded": counted(self.excluded)}
        how += [f"{name}: {text}" for name, text in others.items() if text]
        done = f"{self.imported:,} imported" if self.imported else f"{self.encoded:,} encoded"
        return (
            f"{self.index}: {self.images:,} images and {self.clips:,} clips ({done}, "
            f"{self.kept:,} unchanged, {self.moved:,} moved, {self.removed:,} removed, {len(self.refused):,} refused); "
            f"{'; '.join(how)}"
        )


def counted(numbers: Mapping[str, int]) -> str:
    """Counts as a text: "12 .heic, 3 .mov"."""
    return ", ".join(f"{count:,} {printable(name)}" for name, count in sorted(numbers.items()) if count)
