"""Settings of the service, with their limits and defaults."""

import ipaddress
from dataclasses import asdict, dataclass, field
from pathlib import Path

from saysee.errors import ConfigError
from saysee.media.audio import MAX_SECONDS
from saysee.media.web import ImageServer

MIN_TOKEN = 16  # characters: a shorter token can be found by trying


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of one request."""

    bytes: int = 32 * 2**20  # of a file
    seconds: float = MAX_SECONDS  # of a clip
    pixels: int = 64_000_000  # width times height, checked before decoding; phones take photos of 50 megapixels
    k: int = 100  # of the number of hits
    text: int = 1_000  # characters of a written query
    rerank: int = 50  # of the hits that are re-ranked: each is a file that the model reads

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if not value > 0:
                raise ConfigError(f"--max-{name} is {value}; it must be above 0")


@dataclass(frozen=True, slots=True)
class ServiceSettings:
    """Settings of a service."""

    host: str = "127.0.0.1"  # address to listen on
    port: int = 8765  # port to listen on; 0 takes a free one
    # what clients must send; None is allowed on a loopback address only
    token: str | None = field(default=None, repr=False)
    write: bool = False  # whether clients may add and remove images and clips
    uploads: Path | None = None  # folder of added files; None for ``uploads`` in the index
    images_from: ImageServer | None = None  # server of the images that have an address there
    limits: Limits = field(default_factory=Limits)  # of one request
    places: int = 64  # most requests with a form that are worked on; further ones get 503
    wait_ms: float = 5.0  # longest time that a query waits for others to share its batch, in milliseconds
    batch: int = 16  # most queries that are encoded together
    access_log: Path | None = None  # file with a line for each request; None for none
    buffer_bytes: int = 256 * 2**20  # most memory of the bodies of all requests in progress together
    body_seconds: float = 60.0  # longest time that a request may take to arrive

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65_535:
            raise ConfigError(f"--port is {self.port}; it must be 1 to 65535, or 0 for any free port")
        if self.token is not None and (
            len(self.token) < MIN_TOKEN or not self.token.isascii() or not self.token.isprintable() or " " in self.token
        ):
            raise ConfigError(f"--token must have at least {MIN_TOKEN} printable ASCII characters and no spaces")
        if self.token is None and not is_loopback(self.host):
            raise ConfigError(f"--host {self.host} admits other machines; set --token, which they must then send")
        if self.uploads is not None and not self.write:
            raise ConfigError("--uploads requires --write: it is the folder of added files")
        if self.places < 1 or self.batch < 1 or not 0 <= self.wait_ms <= 1_000:
            raise ConfigError(
                f"--queue {self.places} and --batch {self.batch} must be at least 1, --wait {self.wait_ms:g} 0 to 1000"
            )


def is_loopback(host: str) -> bool:
    """Whether an address is this machine's own; of names, only localhost is taken for one."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
