"""How a service is run, and what it takes from a client; what does not go together is refused here."""

from __future__ import annotations

import ipaddress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from saysee.errors import ConfigError
from saysee.media.audio import MAX_SECONDS

MIN_TOKEN = 16
"""Characters of a token: fewer can be guessed by trying."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Most of each thing that one request may bring or ask for.

    Attributes:
        bytes: of a file.
        seconds: of a sound.
        pixels: of a picture, width times height; known before it is decoded.
        k: hits.
        text: characters.
    """

    bytes: int = 32 * 2**20
    seconds: float = MAX_SECONDS
    pixels: int = 64_000_000  # telephones take 50 million
    k: int = 100
    text: int = 1_000

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if not value > 0:
                raise ConfigError(f"--max-{name} is {value}; it must be over 0")

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class ServiceSettings:
    """How a service is run.

    Attributes:
        host: address to listen on.
        port: likewise; 0 takes a free one.
        token: what clients must show; None for anyone who reaches a loopback address.
        write: whether pictures and clips may be added and removed.
        uploads: folder of what is added; None for ``uploads`` in the index.
        limits: of one request.
        places: requests with a query or a file that are taken on at once; more are told to come back.
        wait_ms: longest that a query waits for others that are on their way, in milliseconds.
        batch: most queries that are encoded together.
        buffer_bytes: most that the files of all requests under way may hold together.
        body_seconds: longest that a request may take to arrive.
    """

    host: str = "127.0.0.1"
    port: int = 8765
    token: str | None = field(default=None, repr=False)
    write: bool = False
    uploads: Path | None = None
    limits: Limits = field(default_factory=Limits)
    places: int = 64
    wait_ms: float = 5.0
    batch: int = 16
    buffer_bytes: int = 256 * 2**20
    body_seconds: float = 60.0

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65_535:
            raise ConfigError(f"--port is {self.port}; give one of 1 to 65535, or 0 for any that is free")
        if self.token is not None and (
            len(self.token) < MIN_TOKEN or not self.token.isascii() or not self.token.isprintable() or " " in self.token
        ):
            raise ConfigError(f"--token needs {MIN_TOKEN} or more letters, digits and signs of ASCII, without spaces")
        if self.token is None and not is_loopback(self.host):
            raise ConfigError(f"--host {self.host} lets other machines in; give --token, which they must then show")
        if self.uploads is not None and not self.write:
            raise ConfigError("--uploads says where added files go; allow adding with --write")
        if self.places < 1 or self.batch < 1 or not 0 <= self.wait_ms <= 1_000:
            raise ConfigError(
                f"--queue {self.places} and --batch {self.batch} must be at least 1, --wait {self.wait_ms:g} 0 to 1,000"
            )


def is_loopback(host: str) -> bool:
    """Whether an address is this machine's own; a name but localhost is not taken for one."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
