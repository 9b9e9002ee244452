"""The clips by other synthesizers that the demo scores: captions of its test split, by voices of no training.

    python -m lab.nano.clips demo/scenes/manifest.parquet

writes ``src/saysee/studies/voices``: Ogg Opus, and ``clips.json`` with the image, the text and the voice of each.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from random import Random

import soundfile

from lab.nano.voices import UNHEARD, speak
from lab.programs import run_program
from saysee.data.manifest import Manifest
from saysee.data.scenes.speech import SAMPLE_RATE
from saysee.files import write_folder, write_text
from saysee.studies.other_queries import VOICES

CAPTIONS = 100
"""Spoken by each voice: R@1 of 50 % then has an interval of some 20 points."""
COMPRESSION = 0.96  # of libsndfile, of 0 to 1: some 15 kbit/s


def main() -> int:
    """Speaks, writes the folder anew, and returns the exit code."""

    def action() -> None:
        parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
        parser.add_argument("manifest", type=Path, metavar="MANIFEST", help="of the demo's scenes")
        test = Manifest.read(parser.parse_args().manifest).select("test")
        rows = [test.rows[i] for i in sorted(Random(0).sample(range(len(test)), CAPTIONS))]

        def save(folder: Path) -> None:
            clips = []
            for voice in UNHEARD:
                name = f"{voice.synthesizer}, voice {voice.name.removeprefix('cmu_us_').removesuffix('_diphone')}"
                spoken = speak([row.text or "" for row in rows], [voice], Random(0))
                for number, (row, utterance) in enumerate(zip(rows, spoken, strict=True)):
                    file = f"{voice.synthesizer}-{number:02d}.ogg"
                    level = {"format": "OGG", "subtype": "OPUS", "compression_level": COMPRESSION}
                    soundfile.write(folder / file, utterance.samples, SAMPLE_RATE, **level)
                    clips.append({"file": file, "voice": name, "image_id": row.image_id, "text": row.text})
            write_text(folder / "clips.json", json.dumps(clips, indent=1))

        write_folder(VOICES, save)

    return run_program("lab.nano.clips", action)


if __name__ == "__main__":
    sys.exit(main())
