"""Steps of a study in processes of their own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from saysee import SpeechImageModel

STEP = """
import logging
import sys
from saysee.log import configure_command_line
from saysee.studies.processes import run_alone
from saysee import SpeechImageModel


def made(make, *arguments):
    logging.getLogger("saysee.step").info("made")
    return type(make(*arguments)).__name__


if __name__ == "__main__":
    configure_command_line()
    print(run_alone(made, SpeechImageModel.from_encoders, "saysee/hubert-nano", "saysee/clip-nano"))
    print(run_alone(made, SpeechImageModel.from_pretrained, sys.argv[1]))
"""


def test_a_step_s_process_logs_as_the_command_does_and_its_libraries_are_quiet(tmp_path: Path) -> None:
    """A step's own lines stay readable between bars of transformers' and its warnings of model types."""
    SpeechImageModel.from_encoders("saysee/hubert-nano", "saysee/clip-nano").save_pretrained(tmp_path / "model")
    program = tmp_path / "step.py"
    program.write_text(STEP, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, str(program), str(tmp_path / "model")], capture_output=True, text=True, check=False
    )
    assert (done.stdout.split(), done.stderr) == (["SpeechImageModel"] * 2, "saysee: made\n" * 2)
