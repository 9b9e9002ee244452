"""What holds for a whole index, whatever stores it: its model, its vectors and its source."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from saysee.errors import SaySeeError
from saysee.media.formats import Kind
from saysee.version import __version__

if TYPE_CHECKING:
    from saysee.encoding.encoder import Encoder

FORMAT = 2
"""Version of the layout. A greater one is refused: this release cannot know what it means. Format 1 had one fingerprint
for both kinds, from which those of each kind do not follow."""


@dataclass(frozen=True, slots=True)
class About:
    """What holds for the whole index.

    Attributes:
        model: folder or hub name of the model, as the user last named it.
        model_beside: that folder relative to the index; None for a hub name and for an index in a database.
        fingerprints: by kind, of what makes its vectors: one side of the model and its preprocessing. While another
            model encodes the rows of a kind again, still the previous one.
        dimension: D of the vectors, which are unit vectors.
        precision: "float32" or "float16", of the stored vectors.
        root: folder that relative paths start from.
        root_beside: the same relative to the index; None on another drive and for an index in a database.
        source: what is indexed below the root: "." for the folder itself, else the name of a manifest or table.
    """

    model: str
    model_beside: str | None
    fingerprints: dict[Kind, str]
    dimension: int
    precision: str
    root: str
    root_beside: str | None
    source: str
    format: int = FORMAT
    normalisation: str = "unit"  # spelled as format 2 stores it
    written_by: str = __version__

    def check(self, encoder: Encoder, where: object, kind: Kind = "image") -> None:
        """Raises a SaySeeError for a model that is not that of the index at a place.

        The image side must be the same in any case, as all vectors lie in its space; to find clips (``kind``), the
        speech side too.
        """
        if encoder.dimension != self.dimension:
            raise SaySeeError(
                f"{where}: its vectors have {self.dimension} dimensions, those of the model {encoder.name} "
                f"{encoder.dimension}; give the index's own model ({self.model})"
            )
        if encoder.fingerprint("image") != self.fingerprints["image"]:
            raise SaySeeError(
                f"{where}: its vectors are of another model than {encoder.name} (weights or preprocessing of the image "
                f"side differ from {self.model} as it was); name that model, or create a new index elsewhere"
            )
        if kind == "clip" and encoder.fingerprint("clip") != self.fingerprints["clip"]:
            raise SaySeeError(
                f"{where}: its clips were encoded by another speech side than that of {encoder.name}; run 'saysee "
                "index' with this model, which encodes them again, or search for images"
            )
