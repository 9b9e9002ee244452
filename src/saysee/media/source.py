"""Opening the sources of media: a path, bytes or a binary file object, with the checks that audio and images share."""

import errno
import io
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Literal, TypeAlias

from saysee.errors import MediaError

Source: TypeAlias = str | os.PathLike[str] | bytes | bytearray | memoryview | BinaryIO


@contextmanager
def opened(source: Source, what: Literal["audio", "image"]) -> Iterator[tuple[BinaryIO, str]]:
    """Open ``source`` as a seekable binary file that holds at least one byte; gives the file and its name for errors.

    A file object is read into memory from its current position, and left open.

    Raises MediaError: missing, broken-link, directory, unreadable, empty.
    """
    if isinstance(source, (str, os.PathLike)):
        name = printable(source)
        file: BinaryIO = _open_path(Path(source), name, what)
    else:
        data = source.read() if hasattr(source, "read") else source
        if not isinstance(data, bytes | bytearray | memoryview):
            raise TypeError(f"{what} must be a path, bytes or a binary file, not {type(source).__name__}")
        given = getattr(source, "name", None)
        name = printable(given) if isinstance(given, str) else f"{what} of {len(data):,} bytes"
        file = io.BytesIO(data)
    try:
        with file:
            if file.seek(0, os.SEEK_END) == 0:
                raise MediaError("empty", f"{name}: is an empty file; copy or record it again")
            file.seek(0)
            yield file, name
    except OSError as error:  # a bad sector, or a network drive that is out of reach
        raise MediaError("unreadable", f"{name}: cannot be read ({reason(error)}); copy it again") from None


def printable(path: str | os.PathLike[str]) -> str:
    """``path`` on one line, for error messages."""
    text = os.fspath(path)
    return text if text.isprintable() else repr(text)


def reason(error: BaseException) -> str:
    """The first line of a decoder's error message, at most 120 characters."""
    text = getattr(error, "error_string", None) or getattr(error, "strerror", None) or str(error)
    lines = str(text).strip().splitlines()
    return lines[0].strip().rstrip(".")[:120] if lines else type(error).__name__


def _open_path(path: Path, name: str, what: str) -> BinaryIO:
    try:
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            raise MediaError("directory", f"{name}: is a folder; name one {what} file in it")
        if not stat.S_ISREG(mode):  # opening a pipe or a terminal would wait forever
            raise MediaError("unreadable", f"{name}: is a device or a pipe; save it to a file first")
        return path.open("rb")
    except (OSError, ValueError) as error:  # ValueError: a null byte in the path
        raise _path_error(error, path, name) from None


def _path_error(error: Exception, path: Path, name: str) -> MediaError:
    number = getattr(error, "errno", None)
    if number in (errno.ENOENT, errno.ELOOP) and path.is_symlink():
        target = printable(os.readlink(path))
        return MediaError("broken-link", f"{name}: is a link to {target}, which does not exist; fix or remove the link")
    if number in (errno.ENOENT, errno.ENOTDIR):
        return MediaError("missing", f"{name}: no such file; check the path")
    if number in (errno.EACCES, errno.EPERM):
        return MediaError("unreadable", f"{name}: permission denied; change its permissions (chmod +r)")
    return MediaError("unreadable", f"{name}: cannot be opened ({reason(error)}); check the path")
