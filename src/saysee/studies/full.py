"""All studies of a demo's corpus and models, each in a process of its own; what is finished is not repeated.

A study is a command line, run in the folder of the demo. What it prints is in ``studies/NAME.txt``, its tables and
pictures are in the folder of its ``--to``, and ``studies/README.md`` links them.
"""

from __future__ import annotations

import json
import logging
import os
import shlex
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from saysee.files import write_text
from saysee.studies.processes import cpu_shares, interrupted_once, run_saysee
from saysee.training.records import git_commit

logger = logging.getLogger(__name__)

RECOGNIZER = "tiny.en"
REFERENCE_SECONDS = 195  # of the demo's training of CMD where the minutes below hold: two cores with AVX2


class Study(NamedTuple):
    """A command line for a shell in the demo's folder, and roughly how long it takes."""

    name: str
    minutes: float
    command: str


_SCENES = "scenes/manifest.parquet"
_MODELS = f"runs/baseline/best runs/SaySee/best runs/CMD/best {_SCENES}"
_DATA = f"--data.manifest {_SCENES} --features.folder features"
_LADDER = f"saysee ablate nano --grid ladder {_DATA} --no-equal-time --to studies/ablation"
_CASCADE = f"runs/SaySee/best cascade:{RECOGNIZER}+runs/SaySee/best {_SCENES} --clips 200"
_CASCADE += " --conditions noise=20,10,0,room,telephone --by accent"
_LANGUAGES = "--images 1900 --val-images 100 --test-images 300 --languages en,de,es,tr"
_IN_LANGUAGES = "--data.manifest scenes-languages/manifest.parquet --seeds 3 --no-equal-time"
STUDIES = (
    Study("localization", 5, f"saysee evaluate {_MODELS} --localization"),
    Study("reconstruction", 3, f"saysee reconstruction runs/CMD/best {_SCENES} --to studies/reconstruction"),
    Study("overhead", 15, f"saysee overhead nano {_DATA} --to studies/overhead"),
    Study("robustness", 25, f"saysee robustness {_MODELS} --clips 200 --features features --to studies/robustness"),
    Study("direct-or-transcribed", 80, f"saysee robustness {_CASCADE} --to studies/direct-or-transcribed"),
    Study("ablation", 60, f"{_LADDER} --seeds 5"),
    # The runs on all images are those of the ablation, and so is the folder.
    Study("learning-curve", 30, f"{_LADDER} --seeds 3 --sizes 0.25,0.5,1 --rows 'gaps in speech,denoising'"),
    Study("corpus-of-languages", 8, f"saysee data scenes --to scenes-languages {_LANGUAGES}"),
    Study("languages", 35, f"saysee ablate nano --grid languages {_IN_LANGUAGES} --to studies/languages"),
)


@dataclass(frozen=True)
class StudiesResult:
    """What became of the studies."""

    folder: Path
    # by name: "command", and "skipped", the reason, or "code", the exit code, "seconds", and "commit" if it is known
    records: dict[str, dict[str, Any]]

    @property
    def page(self) -> Path:
        """Links all tables and pictures."""
        return self.folder / "README.md"

    @property
    def failures(self) -> list[str]:
        """A line for each study that failed."""
        failed = {name: record["code"] for name, record in self.records.items() if record.get("code")}
        return [f"{name}: exit code {code}; the same command tries it again" for name, code in failed.items()]

    def has(self, study: Study) -> bool:
        """Whether a study is finished: this command, and what it printed is still there."""
        record = self.records.get(study.name, {})
        done = record.get("command") == study.command and record.get("code") == 0
        return done and (self.folder / f"{study.name}.txt").exists()

    def write(self) -> None:
        """Writes the records and the page."""
        write_text(self.folder / "studies.json", json.dumps(self.records, indent=1) + "\n")
        parts = ["# Studies of the demo", "Commands are for a shell in the folder above this one."]
        for name, record in self.records.items():
            if "skipped" in record:
                about = f"Skipped: {record['skipped']}"
            else:
                about = f"**Failed with exit code {record['code']}.** " if record["code"] else ""
                about += f"{record['seconds']:,.0f} s, commit {record['commit'] or 'unknown'}. {self._links(name)}"
            parts += [f"## {name}", f"```sh\n{record['command']}\n```", about]
        write_text(self.page, "\n\n".join(parts) + "\n")

    def _links(self, name: str) -> str:
        words = shlex.split(self.records[name]["command"])
        folders = [self.folder.parent / to for flag, to in pairwise(words) if flag == "--to"]
        found = [file for to in folders for kind in ("*.md", "*.png", "*.svg") for file in sorted(to.glob(kind))]
        paths = [os.path.relpath(file, self.folder) for file in (self.folder / f"{name}.txt", *found)]
        return ", ".join(f"[{Path(path).as_posix()}]({Path(path).as_posix()})" for path in paths)


def run_studies(demo: Path, cmd_seconds: float, studies: Sequence[Study] = STUDIES) -> StudiesResult:
    """Runs what is not finished, and writes the page after each study. One that fails does not stop the others.

    ``cmd_seconds`` are those of the demo's training of CMD, for the estimate of the time.

    Raises KeyboardInterrupt if interrupted; what is finished is kept.
    """
    folder = demo / "studies"
    folder.mkdir(exist_ok=True)
    file = folder / "studies.json"
    result = StudiesResult(folder, json.loads(file.read_text(encoding="utf-8")) if file.exists() else {})
    left = [study for study in map(_two_runs_at_once, studies) if not result.has(study)]
    missing = {study.name: _no_recognizer() if RECOGNIZER in study.command else "" for study in left}
    minutes = sum(study.minutes for study in left if not missing[study.name]) * cmd_seconds / REFERENCE_SECONDS
    if minutes:
        logger.info("%d studies to run, about %.1f hours; an interrupted one resumes", len(left), minutes / 60)
    with interrupted_once():
        for number, study in enumerate(left, 1):
            record: dict[str, Any] = {"command": study.command}
            if missing[study.name]:
                logger.warning("%d/%d %s: skipped: %s", number, len(left), study.name, missing[study.name])
                record["skipped"] = missing[study.name]
            else:
                logger.info("%d/%d %s: %s", number, len(left), study.name, study.command)
                start, record["commit"] = time.perf_counter(), git_commit()
                record["code"] = run_saysee(shlex.split(study.command)[1:], folder / f"{study.name}.txt", demo)
                record["seconds"] = round(time.perf_counter() - start, 1)
            result.records[study.name] = record
            result.write()
    return result


def _two_runs_at_once(study: Study) -> Study:
    """An ablation with a run on each half of the cores where there is no GPU: small models gain little from more."""
    shares = cpu_shares(2) if study.command.startswith("saysee ablate ") else []
    return study._replace(command=f"{study.command} --devices {','.join(shares)}") if shares else study


def _no_recognizer() -> str:
    """Why no recognizer is on this machine; empty if there is one."""
    try:
        from faster_whisper import download_model

        download_model(RECOGNIZER, local_files_only=True)
    except ImportError:
        return "the extra asr is not installed"
    except FileNotFoundError:
        return f"Whisper {RECOGNIZER} is not on this machine: hf download Systran/faster-whisper-{RECOGNIZER}"
    return ""
