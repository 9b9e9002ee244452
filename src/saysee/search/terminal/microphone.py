"""A spoken query from the microphone: recorded until Enter, until silence, or for a number of seconds."""

import queue
import select
import sys
from typing import Any

import numpy as np
from numpy.typing import NDArray

from saysee.errors import MissingExtraError, SaySeeError
from saysee.media.audio import MAX_SECONDS, check_waveform

NAME = "microphone"  # name of a recording in results and messages
SILENCE_SECONDS = 1.5  # silence after speech that ends a recording: longer than the pauses within a sentence

_BLOCK_SECONDS = 0.05
_SPEECH_SECONDS = 0.2  # loud time before silence counts: a click is shorter
_ABOVE_FLOOR = 4.0  # loud means this many times the quietest tenth of the recording (12 dB)
_MIN_LOUD = 1e-3  # mean amplitude (−60 dB) below which nothing is loud, however quiet the room
_STALLED_SECONDS = 5.0
_OR_FILE = "or record a file and name it instead of --record"


class Microphone:
    """The default input device of the system; SaySeeError if there is none, or its libraries are not installed."""

    def __init__(self) -> None:
        self._library = _import_library()
        try:
            device = self._library.query_devices(kind="input")
            self.rate = int(device["default_samplerate"])
        except (self._library.PortAudioError, ValueError, KeyError):
            raise SaySeeError(
                f"--record: no microphone found; connect one or choose one in the system's settings, {_OR_FILE}"
            ) from None

    def record(self, seconds: float | None = None) -> NDArray[np.float32]:
        """Records one clip, [T] at 16 kHz, for so many seconds, or until silence after speech, and at most 60 s.

        Enter ends it if stdin is a terminal. Raises MediaError if the recording is silent or too short, SaySeeError if
        the microphone cannot be opened or delivers no samples.
        """
        while _enter_pressed():  # before the recording
            pass
        blocks: queue.SimpleQueue[NDArray[np.float32]] = queue.SimpleQueue()
        listener = Listener(self.rate, seconds)
        try:
            with self._library.InputStream(
                samplerate=self.rate,
                channels=1,
                dtype="float32",
                blocksize=round(self.rate * _BLOCK_SECONDS),
                callback=lambda block, *_: blocks.put(np.array(block[:, 0])),
            ):
                while not listener.add(blocks.get(timeout=_STALLED_SECONDS)) and not _enter_pressed():
                    pass
        except self._library.PortAudioError as error:
            raise SaySeeError(f"--record: the microphone cannot be used ({error}); free it, {_OR_FILE}") from None
        except queue.Empty:
            raise SaySeeError(f"--record: the microphone delivers no samples; choose another, {_OR_FILE}") from None
        return check_waveform(listener.samples(), sampling_rate=self.rate, name=NAME)


class Listener:
    """Collects samples at ``rate`` Hz and decides when the recording ends: see :meth:`Microphone.record`."""

    def __init__(self, rate: int, seconds: float | None) -> None:
        self._rate, self._until_silence = rate, seconds is None
        self._max_samples = round(rate * (MAX_SECONDS if seconds is None else seconds))
        self._blocks: list[NDArray[np.float32]] = []
        self._levels: list[float] = []

    def add(self, block: NDArray[np.float32]) -> bool:
        """Adds a block of samples, all of one size; True when the recording is complete."""
        self._blocks.append(block)
        self._levels.append(float(np.abs(block).mean()))
        complete = len(self._blocks) * len(block) >= self._max_samples
        return complete or (self._until_silence and self._is_over(len(block) / self._rate))

    def samples(self) -> NDArray[np.float32]:
        """The recording, [T], no longer than asked for."""
        return np.concatenate([np.empty(0, np.float32), *self._blocks])[: self._max_samples]

    def _is_over(self, block_seconds: float) -> bool:
        """Whether there was speech and then silence, judged from the whole recording: it may start with speech."""
        levels = np.array(self._levels)
        (loud,) = np.nonzero(levels > max(_MIN_LOUD, _ABOVE_FLOOR * float(np.quantile(levels, 0.1))))
        if len(loud) * block_seconds < _SPEECH_SECONDS:
            return False
        return bool((len(levels) - 1 - loud[-1]) * block_seconds >= SILENCE_SECONDS)


def _import_library() -> Any:
    try:
        import sounddevice
    except ImportError:
        raise MissingExtraError("--record", "microphone") from None
    except OSError:  # PortAudio is missing; its wheels bring it for macOS and Windows only
        raise SaySeeError(
            f"--record: PortAudio is not installed; install it (Debian: apt install libportaudio2), {_OR_FILE}"
        ) from None
    return sounddevice


def _enter_pressed() -> bool:
    """Whether a line waits on the terminal; it is consumed, so that the shell does not get it."""
    # Polled: a thread that waits for a line would still hold stdin when the program ends.
    if not sys.stdin or not sys.stdin.isatty():
        return False
    if sys.platform == "win32":
        import msvcrt

        return msvcrt.kbhit() and msvcrt.getwch() in "\r\n"
    return bool(select.select([sys.stdin], [], [], 0)[0] and sys.stdin.readline())  # no line: the terminal has gone
