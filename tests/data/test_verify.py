"""Every bad file of a manifest is found, with its row and its reason, in one process or in several."""

from __future__ import annotations

import io
import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image
from rich.console import Console

from saysee.data import verify as module
from saysee.data.manifest import Manifest, Row
from saysee.data.verify import Problem, bad_rows, problems_table, problems_to_dict, verify
from saysee.errors import ConfigError, ManifestError, MediaError, SaySeeError
from saysee_process import has_ended, start_saysee, wait_for


@pytest.fixture
def damaged(tmp_path: Path) -> Manifest:
    """Twelve clips of 0.5 s and six images, some of them bad in different ways."""
    rows = []
    for number in range(12):
        noise = np.random.default_rng(number).normal(0, 0.1, 8000)
        soundfile.write(tmp_path / f"{number}.wav", noise, 16_000)
        pixels = np.random.default_rng(number).integers(0, 255, (8, 8, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{number // 2}.png")
        rows.append(Row(f"{number}.wav", f"{number // 2}.png", str(number // 2), "train"))
    (tmp_path / "2.wav").write_bytes((tmp_path / "2.wav").read_bytes()[:9000])
    (tmp_path / "5.wav").write_bytes(b"")
    soundfile.write(tmp_path / "7.wav", np.ones(1600) * np.sin(np.arange(1600)), 16_000)
    (tmp_path / "1.png").write_bytes((tmp_path / "1.png").read_bytes()[:150])
    (tmp_path / "4.png").unlink()
    return Manifest(rows, tmp_path)


EXPECTED = [(3, "clip", "truncated"), (3, "image", "truncated"), (6, "clip", "empty"), (9, "image", "missing")]


def found(problems: list[Problem]) -> list[tuple[int, str, str]]:
    return [(problem.row, problem.column, problem.kind) for problem in problems]


@pytest.mark.parametrize("several", [False, True])
def test_every_bad_file_is_found_once(damaged: Manifest, monkeypatch: pytest.MonkeyPatch, several: bool) -> None:
    if several:
        monkeypatch.setattr(module, "_INLINE", 1)
    problems = verify(damaged, workers=2 if several else 1)
    assert found(problems) == EXPECTED
    for problem in problems:
        assert problem.path in problem.message
        assert "\n" not in problem.message
        assert problem.kind in MediaError.CODES


@pytest.mark.parametrize("several", [False, True])
def test_a_manifest_without_the_bad_rows_is_written_with_the_length_of_each_clip(
    damaged: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, several: bool
) -> None:
    if several:
        monkeypatch.setattr(module, "_INLINE", 1)
    rows = [replace(row, extra={"age": number}) for number, row in enumerate(damaged)]
    problems = verify(Manifest(rows, damaged.root), workers=2 if several else 1, to=tmp_path / "clean" / "m.parquet")
    assert found(problems) == EXPECTED
    clean = Manifest.read(tmp_path / "clean" / "m.parquet")
    kept = [0, 1, 4, 6, 7, 10, 11]  # the images of 2, 3 and of 8, 9 are bad, and so is clip 5
    assert clean.column("age") == kept
    assert clean.column("seconds") == [0.1 if number == 7 else 0.5 for number in kept]
    assert verify(clean) == []
    assert bad_rows(damaged, problems) == {number + 1 for number in range(12) if number not in kept}


def test_a_manifest_of_which_no_row_is_left_is_not_written(damaged: Manifest, tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="no rows"):
        verify(damaged, max_seconds=0.05, to=tmp_path / "clean.jsonl")
    assert not (tmp_path / "clean.jsonl").exists()
    with pytest.raises(ManifestError, match=r"clean\.csv"):
        verify(damaged, to=tmp_path / "clean.csv")


def test_limits_are_enforced(damaged: Manifest) -> None:
    assert found(verify(damaged, max_seconds=0.4)).count((1, "clip", "too-long")) == 1
    with pytest.raises(ConfigError, match="max_seconds is 0"):
        verify(damaged, max_seconds=0)
    with pytest.raises(ConfigError, match="workers is 0"):
        verify(damaged, workers=0)


def test_the_result_can_be_read_by_people_and_programs(damaged: Manifest) -> None:
    problems = verify(damaged)
    console = Console(file=io.StringIO(), width=200)
    console.print(problems_table(problems))
    text = console.file.getvalue()
    assert text.count("\n") >= 8
    assert "truncated" in text
    result = json.loads(json.dumps(problems_to_dict(damaged, problems)))
    assert result["clips"] == 12
    assert result["images"] == 6
    assert result["kinds"] == {"truncated": 2, "empty": 1, "missing": 1}
    assert result["problems"][0]["row"] == 3


def test_brackets_in_file_names_are_not_markup(damaged: Manifest) -> None:
    console = Console(file=io.StringIO(), width=200)
    console.print(problems_table([Problem(1, "clip", "a[/b].wav", "missing", "a[/b].wav: no such file; check it")]))
    assert "a[/b].wav" in console.file.getvalue()


@pytest.mark.skipif(sys.platform != "linux", reason="reads the open files of processes in /proc")
@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGKILL])
def test_its_processes_end_with_it_without_a_word(tmp_path: Path, kind: signal.Signals) -> None:
    noise = np.random.default_rng(0).normal(0, 0.1, 50 * 16_000)
    soundfile.write(tmp_path / "0.flac", noise, 16_000)
    Image.new("RGB", (8, 8)).save(tmp_path / "0.png")
    for number in range(1, 600):
        os.link(tmp_path / "0.flac", tmp_path / f"{number}.flac")
    Manifest([Row(f"{number}.flac", "0.png", "0", "train") for number in range(600)], tmp_path).write(
        tmp_path / "m.jsonl"
    )
    process = start_saysee("data", "verify", tmp_path / "m.jsonl", "--workers", 2)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    wait_for(lambda: any(map(opens_a_clip, children.read_text().split())), process)
    workers = children.read_text().split()
    os.killpg(process.pid, kind) if kind == signal.SIGINT else process.kill()
    _, said = process.communicate(60)
    assert process.returncode == (130 if kind == signal.SIGINT else -signal.SIGKILL)
    assert "Traceback" not in said
    deadline = time.monotonic() + 10
    while not all(map(has_ended, workers)) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert all(map(has_ended, workers))


def opens_a_clip(pid: str) -> bool:
    with suppress(FileNotFoundError):
        return any(os.readlink(each).endswith(".flac") for each in Path(f"/proc/{pid}/fd").iterdir())
    return False


def test_a_killed_process_is_one_error(damaged: Manifest, monkeypatch: pytest.MonkeyPatch) -> None:
    class Killed:
        def __init__(self, *_: object, **__: object) -> None:
            self.shutdown = self.map = self

        def __enter__(self) -> Killed:
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def __call__(self, *_: object, **__: object) -> Iterator[float]:
            yield 1.0
            raise BrokenProcessPool

    monkeypatch.setattr(module, "_INLINE", 1)
    monkeypatch.setattr(module, "ProcessPoolExecutor", Killed)
    with pytest.raises(SaySeeError, match="--workers"):
        verify(damaged, workers=2)
