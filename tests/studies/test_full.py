"""All studies of a demo: none is repeated, none is lost when another fails or all are killed, and a page has all."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from saysee.cli import main, parse
from saysee.settings.reading import load_recipe
from saysee.studies import demo as demo_module
from saysee.studies import full
from saysee.studies.ablation.runs import choose_rows, grid_file, read_grid
from saysee.studies.full import STUDIES, Study, run_studies
from saysee_process import start_saysee, wait_for

SCENES = "saysee data scenes --val-images 1 --test-images 1 --workers 1 --images"
QUICK = Study("quick", 1, f"{SCENES} 3 --to studies/quick")
LONG = Study("long", 1, f"{SCENES} 20 --to studies/long")
FAILS = Study("fails", 1, "saysee data verify studies/none/manifest.parquet")


def test_every_command_is_one_that_its_verb_takes() -> None:
    assert len({study.name for study in STUDIES}) == len(STUDIES)
    for study in STUDIES:
        call = parse(shlex.split(study.command)[1:])
        assert call is not None
        if "recipe" in call.arguments:
            load_recipe(call.arguments["recipe"], call.arguments["overrides"])
        if rows := call.arguments.get("rows"):
            file = grid_file(call.arguments["grid"])
            assert len(choose_rows(read_grid(file), rows.split(","), file)) == len(rows.split(",")) + 1


def test_one_that_fails_stops_no_other_and_is_the_only_one_tried_again(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    result = run_studies(tmp_path, 281, [FAILS, QUICK])
    assert "studies/none/manifest.parquet" in capfd.readouterr().err
    assert {name: record["code"] for name, record in result.records.items()} == {"fails": 2, "quick": 0}
    assert [line.partition(":")[0] for line in result.failures] == ["fails"]
    page = (tmp_path / "studies" / "README.md").read_text()
    assert all(study.command in page for study in (FAILS, QUICK))
    assert f"{result.records['quick']['seconds']:.0f} s" in page
    for link in re.findall(r"\]\((.*?)\)", page):
        assert (tmp_path / "studies" / link).is_file()
    assert (tmp_path / "studies" / "quick.txt").read_text() == "studies/quick/manifest.parquet\n"

    before = (tmp_path / "studies" / "quick.txt").stat().st_mtime_ns
    mended = FAILS._replace(command=f"{SCENES} 4 --to studies/fails")
    again = run_studies(tmp_path, 281, [mended, QUICK])
    assert again.failures == []
    assert again.records["fails"]["command"] == mended.command
    assert (tmp_path / "studies" / "quick.txt").stat().st_mtime_ns == before


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_or_interrupted_call_resumes_with_the_study_that_was_running(tmp_path: Path, number: int) -> None:
    program = (
        "from pathlib import Path; from saysee.studies.full import *\n"
        f"run_studies(Path({str(tmp_path)!r}), 281, [Study(*{tuple(QUICK)!r}), Study(*{tuple(LONG)!r})])"
    )
    started = start_saysee(program=program)
    made, quick = tmp_path / "studies" / "long" / "records", tmp_path / "studies" / "quick.txt"
    try:
        wait_for(lambda: any(made.rglob("[!.]*.json")), started)
    finally:
        os.killpg(started.pid, signal.SIGKILL) if number == signal.SIGKILL else started.send_signal(number)
        started.communicate(timeout=60)
    records = json.loads((tmp_path / "studies" / "studies.json").read_text())
    assert list(records) == ["quick"]
    assert not (tmp_path / "studies" / "long" / "manifest.parquet").exists()
    before, kept = quick.stat().st_mtime_ns, list(made.rglob("[!.]*.json"))
    images = {path: path.stat().st_mtime_ns for path in (made.parent / "images").rglob("[!.]*.png")}
    result = run_studies(tmp_path, 281, [QUICK, LONG])
    assert [record["code"] for record in result.records.values()] == [0, 0]
    assert quick.stat().st_mtime_ns == before
    assert kept
    assert sum(path.stat().st_mtime_ns == changed for path, changed in images.items()) >= len(kept)


def test_a_study_that_needs_a_recognizer_is_skipped_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import faster_whisper

    def none_here(size: str, **options: Any) -> str:
        assert options == {"local_files_only": True}
        raise FileNotFoundError(size)

    monkeypatch.setattr(faster_whisper, "download_model", none_here)
    study = next(study for study in STUDIES if full.RECOGNIZER in study.command)
    result = run_studies(tmp_path, 281, [study])
    assert full.RECOGNIZER in result.records[study.name]["skipped"]
    assert result.failures == []
    assert result.records[study.name]["skipped"] in result.page.read_text()


@pytest.fixture
def no_demo(monkeypatch: pytest.MonkeyPatch) -> None:
    """The verb without the work of the demo itself."""

    def run_demo(to: Path, settings: Any) -> SimpleNamespace:
        to.mkdir()
        empty: dict[str, Any] = {}
        return SimpleNamespace(folder=to, seconds=empty, to_dict=dict, to_table=lambda: "scores", report="report.html")

    monkeypatch.setattr(demo_module, "run_demo", run_demo)


def test_the_verb_reports_what_failed_and_its_exit_code_says_so(
    tmp_path: Path, no_demo: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(run_studies, "__defaults__", ((FAILS,),))
    assert main(["demo", "--to", str(tmp_path / "a")]) == 0
    assert not (tmp_path / "a" / "studies").exists()
    assert main(["demo", "--to", str(tmp_path / "b"), "--full"]) == 2
    captured = capsys.readouterr()
    assert captured.out.splitlines()[-1].endswith(str(tmp_path / "b" / "studies" / "README.md"))
    assert "saysee: fails: exit code 2" in captured.err
    assert re.search(r"1 studies to run, about 0\.0 hours", captured.err)


@pytest.mark.parametrize(("shares", "more"), [(["cpu", "cpu"], " --devices cpu,cpu"), ([], "")])
def test_an_ablation_has_two_runs_at_once_where_the_cpu_trains(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], shares: list[str], more: str
) -> None:
    monkeypatch.setattr(full, "cpu_shares", lambda most: shares)
    study = Study("ablation", 1, "saysee ablate nano --grid none.yaml --to studies/ablation")
    result = run_studies(tmp_path, 281, [study])
    assert result.records["ablation"]["command"] == study.command + more
    assert result.records["ablation"]["code"] == 2
    assert "none.yaml" in capfd.readouterr().err, "its flags are refused before the file of rows is"
