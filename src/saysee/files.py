"""Writing files that a kill or a power cut leaves complete or absent, and fingerprints of their contents."""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

STILL_SECONDS = 2.0
"""A file that changed less than this before it was read may change again within the same tick of the file system's
clock, so its modification time does not identify what was read."""

UNFINISHED = ".writing-"
"""How the names of unfinished files and folders start."""
_OLD = ".old-"


@contextmanager
def atomic_write(path: Path, *, durable: bool = True, concurrent: bool = False) -> Iterator[BinaryIO]:
    """Opens a file that appears under its name, complete and on the disk, when the ``with`` block ends without error.

    What it held is replaced. If it is not ``durable``, a power cut, but not a kill, may leave it empty. If others may
    write it at once (``concurrent``), a kill leaves a temporary file of a unique name, which no later write replaces.
    """
    temporary = unfinished(path.with_name(secrets.token_hex(8)) if concurrent else path)
    try:
        with temporary.open("wb") as file:
            yield file
            if durable:
                file.flush()
                os.fsync(file.fileno())
        temporary.replace(path)
        if durable:
            flush(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Writes a text file atomically, as UTF-8."""
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: Path, content: bytes, *, durable: bool = True) -> None:
    """Writes a file atomically, see :func:`atomic_write`."""
    with atomic_write(path, durable=durable) as file:
        file.write(content)


def write_folder(folder: Path, write: Callable[[Path], None]) -> None:
    """Creates or replaces a folder atomically; ``write`` fills the empty folder that it receives.

    A kill leaves the old folder, the new one, or (between two renames) the old one under another name, which
    :func:`clean_folder` restores.
    """
    temporary, old = unfinished(folder), folder.with_name(_OLD + folder.name)
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    write(temporary)
    for path in [*temporary.rglob("*"), temporary]:
        if path.is_file():
            set_default_mode(path)
        flush(path)
    if folder.exists():
        shutil.rmtree(old, ignore_errors=True)
        folder.rename(old)
    temporary.rename(folder)
    flush(folder.parent)
    shutil.rmtree(old, ignore_errors=True)


def clean_folder(parent: Path) -> None:
    """Removes the unfinished files and folders below ``parent``, and restores what a kill left between two names."""
    if not parent.is_dir():
        return
    for path in sorted(parent.iterdir()):
        if path.name.startswith(UNFINISHED):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        elif path.name.startswith(_OLD):
            final = path.with_name(path.name.removeprefix(_OLD))
            if final.exists():
                shutil.rmtree(path)
            else:
                path.rename(final)


def set_default_mode(path: Path) -> None:
    """Gives a file the mode of a new one: some libraries write files that only their owner can read."""
    mask = os.umask(0o077)  # it can only be read by setting it
    os.umask(mask)
    path.chmod(0o666 & ~mask)


def unfinished(path: Path) -> Path:
    """The name of a file or folder while it is written or removed."""
    return path.with_name(UNFINISHED + path.name)


def short_name(place: str | os.PathLike[str]) -> str:
    """The folder's name for a run's ``best`` and for a manifest of that name; else the own name, a manifest's bare."""
    path = Path(place).absolute()
    name = path.name.removeprefix(UNFINISHED)
    if name in ("best", "manifest.parquet", "manifest.jsonl"):
        return path.parent.name
    return path.stem if path.suffix.lower() in (".parquet", ".jsonl") else name


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
