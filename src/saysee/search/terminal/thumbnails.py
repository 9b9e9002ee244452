"""Images in terminals that can show them, by the protocol of kitty or of iTerm2.

The protocol is read from the environment variables that terminals set: asking the terminal itself would have to wait
for its answer. In a pipe, and within tmux or screen, which drop unknown sequences, no images are shown.
"""

import base64
import io
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal, TextIO

from PIL import Image

from saysee.errors import MediaError
from saysee.media.images import load_thumbnail
from saysee.search.index.index import Hit

Protocol = Literal["kitty", "iterm"]

_CELL_COLUMNS = 16  # of the terminal, for one image
_SIDE = 160  # pixels of a thumbnail: ten a column, which is common; terminals scale it
_GAP = 8
_CHUNK = 4_096  # characters that kitty accepts in one escape sequence


def protocol_of(stream: TextIO, environment: Mapping[str, str] = os.environ) -> Protocol | None:
    """How the terminal behind a stream shows images; None if it does not, or is unknown."""
    if not stream.isatty() or "TMUX" in environment or "STY" in environment:
        return None
    term, program = environment.get("TERM", ""), environment.get("TERM_PROGRAM", "")
    if term in ("xterm-kitty", "xterm-ghostty") or "KITTY_WINDOW_ID" in environment or program == "ghostty":
        return "kitty"
    if program in ("iTerm.app", "WezTerm") or environment.get("LC_TERMINAL") == "iTerm2":
        return "iterm"
    return None


def show_hits(hits: Sequence[Hit], protocol: Protocol, columns: int, stream: TextIO | None = None) -> None:
    """Shows the images of hits in rows, in a terminal of so many columns; what cannot be shown leaves a gap."""
    stream = stream or sys.stdout
    images = [_thumbnail(hit) for hit in hits]
    per_row = max(1, columns // _CELL_COLUMNS)
    for start in range(0, len(images), per_row):
        row = images[start : start + per_row]
        if any(row):
            png = _strip(row)
            width = len(row) * _CELL_COLUMNS
            settings = f"inline=1;size={len(png)};width={width};preserveAspectRatio=1"
            iterm = f"\x1b]1337;File={settings}:{base64.b64encode(png).decode()}\a"
            stream.write(("".join(_kitty(png, width)) if protocol == "kitty" else iterm) + "\n")
    stream.flush()


def _thumbnail(hit: Hit) -> Image.Image | None:
    if hit.kind != "image":
        return None
    try:
        return load_thumbnail(hit.path, _SIDE)
    except MediaError:
        return None


def _strip(images: Sequence[Image.Image | None]) -> bytes:
    """A PNG of images side by side, each centered in its cell, on a transparent background."""
    strip = Image.new("RGBA", (len(images) * (_SIDE + _GAP), _SIDE + _GAP))
    for place, image in enumerate(images):
        if image is not None:
            left = place * (_SIDE + _GAP) + (_SIDE - image.width) // 2
            strip.paste(image, (left, (_SIDE - image.height) // 2))
    buffer = io.BytesIO()
    strip.save(buffer, "PNG")
    return buffer.getvalue()


def _kitty(png: bytes, columns: int) -> Iterator[str]:
    """Escape sequences by which kitty shows a PNG; q=2 keeps it from answering."""
    text = base64.b64encode(png).decode()
    for start in range(0, len(text), _CHUNK):
        first = f"f=100,a=T,q=2,c={columns}," if start == 0 else ""
        more = int(start + _CHUNK < len(text))
        yield f"\x1b_G{first}m={more};{text[start : start + _CHUNK]}\x1b\\"
