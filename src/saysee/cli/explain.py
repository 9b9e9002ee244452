"""``saysee explain``: which region of an image belongs to which moment of a clip."""

from pathlib import Path
from typing import Literal

from saysee.cli.printing import Result, print_message
from saysee.errors import ConfigError


def explain(model: str, clip: str, image: str, *, to: Path, device: Literal["auto", "cpu", "cuda"] = "auto") -> Result:
    """Show which region of an image belongs to which moment of a clip.

    Places of the image are covered and moments of the clip silenced: what the score owes to a place and a moment
    together lights up.

    Args:
        model: folder or hub name of a SaySee model
        clip: an audio file
        image: an image file
        to: file to write: .html plays the clip and lights up the regions, .png is a strip of images, one a moment,
            .npz has the arrays
        device: device to compute on
    """
    suffix = to.suffix.lower()
    if suffix not in (".html", ".npz", ".png"):
        raise ConfigError(f"--to {to}: the name must end in .html, .png or .npz")
    from saysee.encoding.attention import attend
    from saysee.encoding.encoder import Encoder
    from saysee.media.audio import load_audio
    from saysee.media.images import load_image
    from saysee.studies.explain import write_explanation

    waveform, decoded = load_audio(clip), load_image(image)  # errors come before the model is loaded
    encoder = Encoder(model, device)
    if encoder.warning:
        print_message(encoder.warning)
    regions = attend(encoder, waveform, decoded, "interaction")
    write_explanation(to, regions, decoded, waveform)
    values = {"to": str(to), "moments": len(regions.frames), "rows": regions.rows, "columns": regions.columns}
    moments = f"{len(regions.frames)} moments of {regions.frame_seconds:.2f} s"
    line = f"{to}: {moments}, {regions.rows} x {regions.columns} places"
    return Result({**values, "frame_seconds": regions.frame_seconds, "seconds": regions.seconds}, [line])
