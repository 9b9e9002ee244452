"""Files: what a kill or a power cut must not leave half written, and what tells that one has changed."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import BinaryIO

STILL_SECONDS = 2.0
"""A file that changed less than this before it was read may change again within the same tick of the file system's
clock; what was read of it is not remembered by its time."""


def write_text(path: Path, text: str) -> None:
    """Writes a text file atomically, as UTF-8; see :func:`write_bytes`."""
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: Path, content: bytes) -> None:
    """Writes a file atomically: under a temporary name, flushed to the disk, then renamed."""
    temporary = path.with_name(f".writing-{path.name}")
    with temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    flush(path.parent)


def flush(path: Path) -> None:
    """Waits until the contents of a file, or the entries of a folder, are on the disk."""
    if not path.is_dir():
        with path.open("rb+") as file:
            os.fsync(file.fileno())
    elif os.name != "nt":  # Windows flushes a rename by itself and cannot open folders
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def fingerprint(*parts: bytes | memoryview | BinaryIO) -> str:
    """A fingerprint of contents: BLAKE2b of 16 bytes, as hexadecimal digits."""
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        if isinstance(part, bytes | memoryview):
            digest.update(part)
        else:
            while block := part.read(2**20):
                digest.update(block)
    return digest.hexdigest()
