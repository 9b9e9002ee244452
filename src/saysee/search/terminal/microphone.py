"""A spoken query from the microphone: recorded until Enter, until silence, or for so many seconds."""

from __future__ import annotations

import queue
import select
import sys
from typing import Any

import numpy as np
from numpy.typing import NDArray

from saysee.errors import MissingExtraError, SaySeeError
from saysee.media.audio import MAX_SECONDS, check_waveform

NAME = "microphone"
"""What results and messages call a recording."""
SILENCE_SECONDS = 1.5
"""Silence behind speech that ends a recording: longer than the pauses within a sentence."""

_BLOCK_SECONDS = 0.05
_SPEECH_SECONDS = 0.2
"""So much must be loud before silence counts: a click is shorter."""
_ABOVE_FLOOR = 4.0
"""Times the quietest tenth of what was heard (12 dB) that counts as loud."""
_LEAST = 1e-3
"""Mean amplitude (−60 dB) below which nothing is loud, however quiet the room."""
_STALLED_SECONDS = 5.0
_PORTAUDIO = "'apt install libportaudio2' or the like of your system"
_INSTEAD = "or record a file and name it in place of --record"


class Microphone:
    """The input that the system has chosen as its default.

    Raises:
        MissingExtraError: the library ``sounddevice`` is not installed.
        SaySeeError: PortAudio is not installed, or there is no microphone.
    """

    def __init__(self) -> None:
        self._library = _library()
        try:
            device = self._library.query_devices(kind="input")
            self.rate = int(device["default_samplerate"])
        except (self._library.PortAudioError, ValueError, KeyError):
            raise SaySeeError(
                f"--record: no microphone found; plug one in or choose one in the system's settings, {_INSTEAD}"
            ) from None

    def record(self, seconds: float | None = None) -> NDArray[np.float32]:
        """Records one clip. Enter ends it, where stdin is a terminal.

        Args:
            seconds: ends after so many; None ends at silence behind speech, and at 60 s.

        Returns:
            [T] samples at 16 kHz.

        Raises:
            MediaError: nothing was heard, or too little.
            SaySeeError: the microphone cannot be opened, or gives no sound.
        """
        blocks: queue.SimpleQueue[NDArray[np.float32]] = queue.SimpleQueue()

        def keep(block: Any, frames: int, time: Any, status: Any) -> None:
            del frames, time, status
            blocks.put(np.array(block[:, 0]))

        listener = Listener(self.rate, seconds)
        try:
            with self._library.InputStream(
                samplerate=self.rate,
                channels=1,
                dtype="float32",
                blocksize=round(self.rate * _BLOCK_SECONDS),
                callback=keep,
            ):
                while not listener.hear(blocks.get(timeout=_STALLED_SECONDS)) and not _enter_pressed():
                    pass
        except self._library.PortAudioError as error:
            raise SaySeeError(f"--record: the microphone cannot be used ({error}); free it, {_INSTEAD}") from None
        except queue.Empty:
            raise SaySeeError(f"--record: the microphone gives no sound; choose another, {_INSTEAD}") from None
        return check_waveform(listener.samples(), sampling_rate=self.rate, name=NAME)


class Listener:
    """Keeps what is heard and tells when it is enough.

    Args:
        rate: Hz.
        seconds: enough after so many; None for silence behind speech, or ``MAX_SECONDS``.
    """

    def __init__(self, rate: int, seconds: float | None) -> None:
        self._rate, self._by_silence = rate, seconds is None
        self._longest = round(rate * (MAX_SECONDS if seconds is None else seconds))
        self._blocks: list[NDArray[np.float32]] = []
        self._levels: list[float] = []

    def hear(self, block: NDArray[np.float32]) -> bool:
        """Takes the next samples [n], every time as many; True when it is enough."""
        self._blocks.append(block)
        self._levels.append(float(np.abs(block).mean()))
        longest = len(self._blocks) * len(block) >= self._longest
        return longest or (self._by_silence and self._is_over(len(block) / self._rate))

    def samples(self) -> NDArray[np.float32]:
        """All that was heard, [T], no longer than asked for."""
        return np.concatenate([np.empty(0, np.float32), *self._blocks])[: self._longest]

    def _is_over(self, seconds: float) -> bool:
        """Whether there was speech and, behind it, silence. Judged anew each time: who speaks at once, before the room
        was ever heard, is told from it by the silence that follows."""
        levels = np.array(self._levels)
        (loud,) = np.nonzero(levels > max(_LEAST, _ABOVE_FLOOR * float(np.quantile(levels, 0.1))))
        if len(loud) * seconds < _SPEECH_SECONDS:
            return False
        return bool((len(levels) - 1 - loud[-1]) * seconds >= SILENCE_SECONDS)


def _library() -> Any:
    try:
        import sounddevice
    except ImportError:
        raise MissingExtraError("--record", "microphone") from None
    except OSError:  # how it tells that PortAudio, which its wheels bring for macOS and Windows only, is not there
        raise SaySeeError(f"--record: PortAudio is not installed; install it ({_PORTAUDIO}), {_INSTEAD}") from None
    return sounddevice


def _enter_pressed() -> bool:
    """Whether a line waits on the terminal; taken, so that the shell does not get it."""
    # Asked for without waiting: a thread that waits for a line would still hold stdin when the program ends.
    if not sys.stdin or not sys.stdin.isatty():
        return False
    if sys.platform == "win32":
        import msvcrt

        return msvcrt.kbhit() and msvcrt.getwch() in "\r\n"
    if select.select([sys.stdin], [], [], 0)[0]:
        sys.stdin.readline()
        return True
    return False
