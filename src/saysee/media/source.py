"""Opening what holds a sound or a picture: a path, bytes or a binary file object, with the refusals both share."""

from __future__ import annotations

import errno
import io
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, TypeAlias

from saysee.errors import MediaError

Source: TypeAlias = str | os.PathLike[str] | bytes | BinaryIO


@contextmanager
def opened(source: Source, what: str) -> Iterator[tuple[BinaryIO, str]]:
    """Open ``source`` as a seekable binary file that holds at least one byte.

    Bytes and file objects are read from memory; a file object from where it stands, and it is left open.

    Args:
        source: a path, the bytes of a file, or a binary file object.
        what: "sound" or "picture", for the messages.

    Yields:
        the file, and the name by which messages call it.

    Raises:
        MediaError: missing, broken link, directory, unreadable, empty.
    """
    if isinstance(source, (str, os.PathLike)):
        name = printable(source)
        file: BinaryIO = _open_path(Path(source), name, what)
    else:
        data = source if isinstance(source, bytes) else source.read()
        if not isinstance(data, bytes):
            raise TypeError(f"a {what} is read from a path, bytes or a binary file, not from {type(source).__name__}")
        given = getattr(source, "name", None)
        name = printable(given) if isinstance(given, str) else f"{what} of {len(data):,} bytes"
        file = io.BytesIO(data)
    with file:
        if file.seek(0, os.SEEK_END) == 0:
            raise MediaError("empty", f"{name}: has no bytes; copy or record the {what} again")
        file.seek(0)
        yield file, name


def printable(path: str | os.PathLike[str]) -> str:
    """``path`` as it may stand in a message of one line."""
    text = os.fspath(path)
    return text if text.isprintable() else repr(text)


def reason(error: BaseException) -> str:
    """What a decoding library says of an error, in one short line and without its own wrapping."""
    text = getattr(error, "error_string", None) or getattr(error, "strerror", None) or str(error)
    lines = str(text).strip().splitlines()
    return lines[0].strip().rstrip(".")[:120] if lines else type(error).__name__


def _open_path(path: Path, name: str, what: str) -> BinaryIO:
    try:
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            raise MediaError("directory", f"{name}: is a directory; name one {what} file in it")
        if not stat.S_ISREG(mode):  # opening a pipe or a terminal would wait for ever
            raise MediaError("unreadable", f"{name}: is a device or a pipe; save it to a file first")
        return path.open("rb")
    except (OSError, ValueError) as error:  # ValueError: a null byte in the path
        raise _refused_path(error, path, name) from None


def _refused_path(error: OSError | ValueError, path: Path, name: str) -> MediaError:
    number = getattr(error, "errno", None)
    if number in (errno.ENOENT, errno.ELOOP) and path.is_symlink():
        target = printable(os.readlink(path))
        return MediaError("broken-link", f"{name}: links to {target}, which leads nowhere; mend or remove the link")
    if number in (errno.ENOENT, errno.ENOTDIR):
        return MediaError("missing", f"{name}: no such file; check the path")
    if number in (errno.EACCES, errno.EPERM):
        return MediaError("unreadable", f"{name}: no permission to read it; change its permissions (chmod +r)")
    return MediaError("unreadable", f"{name}: cannot be opened ({reason(error)}); check the path")
