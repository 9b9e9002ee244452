"""Pictures in a terminal that can show them, by the protocol of kitty or of iTerm2.

Which one is read off the environment, as terminals set it: asking the terminal would have to wait for its answer. In a
pipe, and within tmux or screen, which swallow what they do not know, there are none.
"""

from __future__ import annotations

import base64
import io
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal, TextIO

from PIL import Image

from saysee.media.thumbnails import thumbnail
from saysee.search.index.index import Hit

Protocol = Literal["kitty", "iterm"]

CELL_COLUMNS = 16
"""Columns of the terminal that a picture takes."""
_SIDE = 160
"""Pixels of a thumbnail: ten a column, as terminals have them; they scale what differs."""
_GAP = 8
_AT_ONCE = 4_096
"""Characters that kitty takes in one escape sequence."""


def protocol_of(stream: TextIO, environment: Mapping[str, str] = os.environ) -> Protocol | None:
    """How the terminal behind a stream shows pictures; None where it does not, or none is known."""
    if not stream.isatty() or "TMUX" in environment or "STY" in environment:
        return None
    term, program = environment.get("TERM", ""), environment.get("TERM_PROGRAM", "")
    if term in ("xterm-kitty", "xterm-ghostty") or "KITTY_WINDOW_ID" in environment or program == "ghostty":
        return "kitty"
    if program in ("iTerm.app", "WezTerm") or environment.get("LC_TERMINAL") == "iTerm2":
        return "iterm"
    return None


def show_hits(hits: Sequence[Hit], protocol: Protocol, columns: int, stream: TextIO | None = None) -> None:
    """Shows the pictures of hits in rows, in their order, the best first. What is no picture, or gone, leaves a gap.

    Args:
        hits: what was found.
        protocol: of the terminal.
        columns: its width.
        stream: of the terminal; none for stdout.
    """
    stream = stream or sys.stdout
    pictures = [thumbnail(hit.path, _SIDE) if hit.kind == "image" else None for hit in hits]
    across = max(1, columns // CELL_COLUMNS)
    for start in range(0, len(pictures), across):
        row = pictures[start : start + across]
        if any(row):
            png = _png(_strip(row))
            width = len(row) * CELL_COLUMNS
            stream.write("".join(_kitty(png, width)) if protocol == "kitty" else _iterm(png, width))
            stream.write("\n")
    stream.flush()


def _strip(pictures: Sequence[Image.Image | None]) -> Image.Image:
    """Pictures side by side, each in the middle of its place, on nothing."""
    strip = Image.new("RGBA", (len(pictures) * (_SIDE + _GAP), _SIDE + _GAP))
    for place, picture in enumerate(pictures):
        if picture is not None:
            left = place * (_SIDE + _GAP) + (_SIDE - picture.width) // 2
            strip.paste(picture, (left, (_SIDE - picture.height) // 2))
    return strip


def _png(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def _kitty(png: bytes, columns: int) -> Iterator[str]:
    """Escape sequences by which kitty shows a PNG; q=2 keeps it from answering."""
    text = base64.b64encode(png).decode()
    for start in range(0, len(text), _AT_ONCE):
        first = f"f=100,a=T,q=2,c={columns}," if start == 0 else ""
        more = int(start + _AT_ONCE < len(text))
        yield f"\x1b_G{first}m={more};{text[start : start + _AT_ONCE]}\x1b\\"


def _iterm(png: bytes, columns: int) -> str:
    settings = f"inline=1;size={len(png)};width={columns};preserveAspectRatio=1"
    return f"\x1b]1337;File={settings}:{base64.b64encode(png).decode()}\a"
