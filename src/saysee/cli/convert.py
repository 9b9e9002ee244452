"""``saysee convert``: published checkpoints of other systems as SaySee models."""

from pathlib import Path

from saysee.cli.printing import Result, print_message


def speechclip(file: Path, *, to: Path, speech: str | None = None, image: str | None = None) -> Result:
    """Make a model of a published checkpoint of SpeechCLIP parallel.

    Nothing that the file names is run: it is refused if it holds more than tensors and settings.

    Args:
        file: the downloaded checkpoint
        to: folder of the model
        speech: folder or hub name of its HuBERT (default: the published one of its kind)
        image: folder or hub name of its CLIP (default: the published one of its kind)
    """
    from saysee.model.speechclip import convert_speechclip

    result = convert_speechclip(file, to, speech, image)
    if result.unknown:
        print_message(f"warning: {file}: ignored what no parallel SpeechCLIP has: {', '.join(result.unknown)}")
    return Result(result.to_dict(), [result.to_line()])
