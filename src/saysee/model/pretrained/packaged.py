"""The encoders that come with the package, by name."""

import os
from pathlib import Path

from saysee.errors import CheckpointError

ENCODERS = Path(__file__).parents[2] / "encoders"
"""One folder each, in the Hugging Face layout."""
OWNER = "saysee/"


def place_of(name: str | os.PathLike[str]) -> str:
    """The folder of an encoder of the package, such as ``saysee/hubert-nano``; any other name or path unchanged."""
    place = os.fspath(name)
    if not place.startswith(OWNER) or Path(place).exists():
        return place
    folder = ENCODERS / place.removeprefix(OWNER)
    if not (folder / "config.json").is_file():
        known = ", ".join(sorted(OWNER + path.parent.name for path in ENCODERS.glob("*/config.json")))
        raise CheckpointError(f"the package has no encoder {place}; it has {known or 'none'}")
    return str(folder)
