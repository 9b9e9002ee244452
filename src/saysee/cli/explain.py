"""``saysee explain``: which region of an image belongs to which moment or word of a clip."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from saysee.cli.printing import Result, print_message
from saysee.cli.search import open_recognizer
from saysee.errors import ConfigError

if TYPE_CHECKING:
    from saysee.encoding.recognizer import Word


def explain(
    model: str,
    clip: str,
    image: str,
    *,
    to: Path,
    recognizer: str | None = None,
    language: str | None = None,
    device: Literal["auto", "cpu", "cuda"] = "auto",
) -> Result:
    """Show which region of an image belongs to which moment or word of a clip.

    Places of the image are covered and moments of the clip silenced: what the score owes to a place and a moment
    together lights up.

    Args:
        model: folder or hub name of a SaySee model
        clip: an audio file
        image: an image file
        to: file to write: .html plays the clip and lights up the regions, .mp4 is the same as a video, .png is a strip
            of images, one a moment, .npz has the arrays
        recognizer: finds the words, which replace moments: a size of Whisper such as small, or its folder
        language: of the speech, such as en, for the recognizer (default: detected)
        device: device to compute on
    """
    if to.suffix.lower() not in (".html", ".mp4", ".npz", ".png"):
        raise ConfigError(f"--to {to}: the name must end in .html, .mp4, .png or .npz")
    from saysee.encoding.attention import attend
    from saysee.encoding.encoder import Encoder
    from saysee.media.audio import load_audio
    from saysee.media.images import load_image
    from saysee.studies.explain import write_explanation

    waveform, decoded = load_audio(clip), load_image(image)  # errors come before a model is loaded
    heard_by = open_recognizer(recognizer, language, device)
    encoder = Encoder(model, device)
    if encoder.warning:
        print_message(encoder.warning)
    values: dict[str, Any] = {"to": str(to)}
    words: tuple[Word, ...] = ()
    notes: list[str] = []
    if heard_by is not None:
        heard = heard_by.hear(waveform, words=True)
        words = heard.words
        values |= {"words": [word._asdict() for word in words], "language": heard.language}
        notes += [] if words else ["no words were recognized"]
        notes += [f"skipped {heard.suppressed!r}, written where nobody speaks"] if heard.suppressed else []
    regions = attend(encoder, waveform, decoded, "interaction")
    notes += write_explanation(to, regions, decoded, waveform, words)
    values |= {"moments": len(regions.frames), "rows": regions.rows, "columns": regions.columns}
    values |= {"frame_seconds": regions.frame_seconds, "seconds": regions.seconds, "notes": notes}
    counts = [f"{len(words)} words"] if words else []
    counts.append(f"{len(regions.frames)} moments of {regions.frame_seconds:.2f} s")
    line = f"{to}: {', '.join(counts)}, {regions.rows} x {regions.columns} places"
    return Result(values, ["; ".join([line, *notes])])
