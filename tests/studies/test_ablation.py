"""An ablation: the same start and budget for all rows, finished runs kept, and one table of their results."""

from __future__ import annotations

import copy
import csv
import json
import os
import re
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from saysee.cli import main
from saysee.data.manifest import Manifest, Row
from saysee.errors import SaySeeError
from saysee.settings.reading import load_recipe, recipe_names
from saysee.studies.ablation import study as ablation
from saysee.studies.ablation.runs import GRIDS, grid_file, read_grid, share_of_images
from saysee.studies.ablation.study import AblationSettings, Run, _Study, run_ablation
from saysee.studies.ablation.table import (
    EQUAL_STEPS,
    EQUAL_TIME,
    RunScores,
    is_ladder,
    steps_in_equal_time,
    write_tables,
)
from saysee.training import trainer as trainer_module
from saysee.training.checkpoint import save_checkpoint
from saysee.training.trainer import Trainer
from saysee_process import start_saysee

GRID = {"alone": {"denoising": {"preset": False}}, "CMD": {"denoising.preset": "paper", "denoising.share": 0.25}}
PATIENCE = 120
STUDY: dict[str, Any] = {
    "recipe_name": "r",
    "recipe": {"training": {"steps": 100}},
    "baseline": "a",
    "calls": [],
    "split": "test",
    "equal_time": False,
    "training_images": 10,
}


@pytest.fixture
def recipe(tiny_settings: dict[str, Any], tmp_path: Path) -> Path:
    path = tmp_path / "tiny.yaml"
    tiny_settings["training"] |= {"steps": 2, "eval_every": 2}
    path.write_text(yaml.safe_dump(tiny_settings))
    return path


@pytest.fixture
def grid(tmp_path: Path) -> Path:
    path = tmp_path / "grid.yaml"
    path.write_text(yaml.safe_dump(GRID, sort_keys=False))
    return path


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The steps of the study in this process, which is faster; the names of what was trained, in order."""
    done: list[str] = []

    def train(recipe: Any, recipe_file: Path, what: str) -> dict[str, Any]:
        done.append(what)
        return Trainer(recipe).fit(resume="auto")

    monkeypatch.setattr(ablation, "train_alone", train)
    monkeypatch.setattr(ablation, "run_alone", lambda function, *arguments: function(*arguments))
    return done


def lines_of(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_two_rows_and_two_seeds_end_in_one_table_and_a_second_call_changes_nothing(
    recipe: Path, grid: Path, tmp_path: Path, trained: list[str]
) -> None:
    folder = tmp_path / "study"
    settings = AblationSettings(seeds=2, grid=grid, command="saysee ablate tiny.yaml")
    result = run_ablation(recipe, folder, settings)

    runs = lines_of(folder / "runs.csv")
    assert len(runs) == len(trained)
    equal_steps = [run for run in runs if run["budget"] == EQUAL_STEPS]
    assert [(run["row"], run["seed"]) for run in equal_steps] == [
        ("alone", "0"),
        ("alone", "1"),
        ("CMD", "0"),
        ("CMD", "1"),
    ]
    assert {run["steps"] for run in equal_steps} == {"2.0"}
    table = {line["row"]: line for line in lines_of(folder / "table.csv")}
    assert list(table) == ["alone", "CMD"]
    by_seed = {(run["row"], run["seed"]): float(run["mean_R@1"]) for run in equal_steps}
    gains = [by_seed["CMD", seed] - by_seed["alone", seed] for seed in ("0", "1")]
    line = table["CMD"]
    assert float(line["equal_steps_mean_R@1"]) == pytest.approx((by_seed["CMD", "0"] + by_seed["CMD", "1"]) / 2)
    assert float(line["equal_steps_mean_R@1_difference"]) == pytest.approx(sum(gains) / 2)
    half = 12.7062 * abs(gains[0] - gains[1]) / 2  # t for 1 degree of freedom; s / √2 of two values is half their gap
    assert float(line["equal_steps_mean_R@1_difference_high"]) == pytest.approx(sum(gains) / 2 + half, rel=1e-4)
    assert float(line["equal_steps_attention_lift"]) > 0
    assert table["alone"]["equal_steps_attention_lift"] == ""
    assert table["alone"]["equal_steps_mean_R@1_difference"] == ""
    for measure in ("hard_twins", "novel_pairs_R@1", "speech_to_image_R@1", "image_to_speech_R@1"):
        assert 0 <= float(line[f"equal_steps_{measure}"]) <= 100
    assert float(line["equal_steps_seconds_per_step"]) > 0
    assert float(line["equal_steps_peak_memory_mib"]) > 100

    text = (folder / "table.md").read_text(encoding="utf-8")
    commit = json.loads(next(folder.glob("runs/*/environment.json")).read_text())["git_commit"] or "unknown"
    for word in (
        "saysee ablate tiny.yaml",
        commit,
        "torch",
        "Seeds: 0, 1",
        "Equal steps",
        "Equal time",
        "denoising.share: 0.25",
    ):
        assert word in text
    assert "<svg" in (folder / "plot.svg").read_text()
    assert result.to_dict()["rows"]["CMD"]["equal_steps"]["values"]["mean_R@1"]["seeds"] == 2
    assert all((run / "best").is_dir() and not (run / "checkpoints").exists() for run in (folder / "runs").iterdir())

    outputs = ("table.md", "table.csv", "runs.csv", "plot.svg")
    before = {name: (folder / name).read_text() for name in outputs}
    times = {path: path.stat().st_mtime_ns for path in folder.glob("runs/*/*.json")}
    trained.clear()
    run_ablation(recipe, folder, replace(settings, command="saysee ablate again"))
    assert trained == []
    assert {path: path.stat().st_mtime_ns for path in folder.glob("runs/*/*.json")} == times
    assert {name: (folder / name).read_text() for name in outputs} == before

    # More seeds, and another split to score on, only add.
    run_ablation(recipe, folder, AblationSettings(seeds=3, grid=grid, split="val", equal_time=False))
    assert trained
    assert all("seed 2" in what for what in trained)
    assert {path: path.stat().st_mtime_ns for path in times} == times


def test_a_row_of_one_language_trains_on_its_clips_and_is_scored_on_each(
    recipe: Path, tmp_path: Path, trained: list[str], tiny_manifest: Manifest
) -> None:
    spoken = [replace(row, language=("en", "de")[number % 2]) for number, row in enumerate(tiny_manifest)]
    manifest = Manifest(spoken, tiny_manifest.root)
    manifest.write(tmp_path / "two.parquet")
    rows = {"all": {}, "German": {"data": {"language": "de"}}}
    (tmp_path / "languages.yaml").write_text(yaml.safe_dump(rows, sort_keys=False))
    flags = (f"--data.manifest={tmp_path / 'two.parquet'}", "--data.batch_size=4")
    plan = AblationSettings(seeds=1, grid=tmp_path / "languages.yaml", overrides=flags, equal_time=False)
    small = replace(
        plan, sizes=(0.1,), overrides=(flags[0], "--data.batch_size=5")
    )  # 6 clips, at most 4 of them German
    with pytest.raises(SaySeeError, match=r"0\.1 .*'German'"):
        run_ablation(recipe, tmp_path / "study", small)
    result = run_ablation(recipe, tmp_path / "study", plan)
    assert trained == ["all, seed 0, equal steps", "German, seed 0, equal steps"]

    german = load_recipe(tmp_path / "study" / "runs" / "german.seed-0.equal-steps" / "recipe.yaml")
    trainer = Trainer(german)
    assert {row.language for row in (*trainer.data.train_rows, *trainer.data.val_rows)} == {"de"}
    by = result.runs[1].evaluation["by"]["language"]
    assert set(by) == {"de", "en"}, "the scored split keeps its languages"
    assert result.runs[1].measures["speech_to_image_R@1_en"] == by["en"]["speech_to_image"]["R@1"]
    table = result.to_tables()[0]
    assert table.headings[4:6] == ["S→I R@1, de", "S→I R@1, en"]
    assert "speech_to_image_R@1_de" in lines_of(tmp_path / "study" / "runs.csv")[0]

    (tmp_path / "languages.yaml").write_text(yaml.safe_dump({**rows, "French": {"data.language": "fr"}}))
    with pytest.raises(SaySeeError, match=r"data\.language.*de \(\d+\)"):
        run_ablation(recipe, tmp_path / "other", plan)
    assert not (tmp_path / "other").exists()


def test_frozen_encoders_run_once_for_the_whole_study_and_all_shares(
    recipe: Path,
    grid: Path,
    tmp_path: Path,
    trained: list[str],
    monkeypatch: pytest.MonkeyPatch,
    tiny_manifest: Manifest,
) -> None:
    """Before the first run, which would otherwise need more memory and time than the others."""
    kept = tmp_path / "features"
    settings = yaml.safe_load(recipe.read_text())
    settings["model"] |= {"speech_trainable": 0, "image_trainable": 0, "frozen_dropout": False}
    settings["data"]["crop_seconds"] = None
    settings["features"] = {"folder": str(kept)}
    recipe.write_text(yaml.safe_dump(settings))
    at_the_first_training: list[int] = []
    train = ablation.train_alone

    def look(*arguments: Any) -> dict[str, Any]:
        at_the_first_training.append(len(list(kept.rglob("*"))))
        return train(*arguments)

    monkeypatch.setattr(ablation, "train_alone", look)
    plan = AblationSettings(seeds=1, grid=grid, sizes=(0.75, 1.0), equal_time=False)
    result, folder = run_ablation(recipe, tmp_path / "study", plan), tmp_path / "study"
    assert at_the_first_training[0] > 0
    assert not (folder / "manifests" / "features").exists()
    assert list(result.rows) == ["alone", "CMD"]

    assert [run["share"] for run in lines_of(folder / "runs.csv")] == ["0.75", "1.0", "0.75", "1.0"]
    assert "<svg" in (folder / "plot-sizes.svg").read_text()
    assert set(result.to_dict()["sizes"]["CMD"]) == {"0.75", "1"}
    # The smaller manifest has whole pictures and the other splits untouched.
    part = Manifest.read(folder / "manifests" / "share-0.75.parquet")
    assert part.splits() == {**tiny_manifest.splits(), "train": 45}
    assert all(part.clip_path(row).is_file() for row in part)


def test_features_that_training_recomputes_are_not_cached_for_the_scores(
    recipe: Path, grid: Path, tmp_path: Path, trained: list[str]
) -> None:
    settings = yaml.safe_load(recipe.read_text())
    settings["model"] |= {"speech_trainable": 0, "image_trainable": 0, "frozen_dropout": True}
    settings["features"] = {"folder": str(tmp_path / "features"), "limit_gb": 1e-6}
    recipe.write_text(yaml.safe_dump(settings))
    run_ablation(recipe, tmp_path / "study", AblationSettings(seeds=1, grid=grid, rows=("alone",), equal_time=False))
    assert len(lines_of(tmp_path / "study" / "runs.csv")) == 1
    assert not (tmp_path / "features").exists()


def test_the_verb_prints_one_result(
    recipe: Path, grid: Path, tmp_path: Path, trained: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["ablate", str(recipe), "--to", str(tmp_path / "study"), "--grid", str(grid), "--seeds", "1"]
    words += ["--rows", "CMD, alone", "--sizes", "1", "--optimizer.lr", "5e-4", "--no-equal-time"]
    assert main([*words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["baseline"] == "alone"
    assert list(found["rows"]) == ["alone", "CMD"]
    run = load_recipe(tmp_path / "study" / "runs" / "cmd.seed-0.equal-steps" / "recipe.yaml")
    assert run.optimizer.lr == 5e-4
    trained.clear()
    assert main(words) == 0
    text = capsys.readouterr().out
    assert trained == []
    assert f"table: {found['table']}" in text
    assert "saysee ablate" in Path(found["table"]).read_text()
    assert "no intervals" in Path(found["table"]).read_text(), "of one seed"
    assert "--optimizer.lr 5e-4" in Path(found["table"]).read_text()


def test_an_interrupted_study_keeps_finished_runs_and_resumes(
    recipe: Path, grid: Path, tmp_path: Path, trained: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first run is finished, and the second is interrupted after its first checkpoint."""
    folder, train = tmp_path / "study", ablation.train_alone
    first, second = folder / "runs" / "alone.seed-0.equal-steps", folder / "runs" / "cmd.seed-0.equal-steps"
    flags = ("--training.steps=4", "--training.eval_every=4")
    settings = AblationSettings(seeds=1, grid=grid, overrides=flags, equal_time=False)

    def interrupted(recipe: Any, recipe_file: Path, what: str) -> dict[str, Any]:
        if what.startswith("alone"):
            return train(recipe, recipe_file, what)
        with pytest.MonkeyPatch.context() as patch:

            def save_and_stop(*arguments: Any) -> None:
                save_checkpoint(*arguments)
                raise KeyboardInterrupt

            patch.setattr(trainer_module, "save_checkpoint", save_and_stop)
            return train(recipe, recipe_file, what)

    monkeypatch.setattr(ablation, "train_alone", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_ablation(recipe, folder, settings)
    assert list(second.glob("checkpoints/step-*"))
    times = {path: path.stat().st_mtime_ns for path in first.rglob("*.json")}
    assert first / "scores-test.json" in times
    started = json.loads((second / "environment.json").read_text())
    trained.clear()
    monkeypatch.setattr(ablation, "train_alone", train)
    run_ablation(recipe, folder, settings)
    assert not any(what.startswith("alone") for what in trained)
    assert {path: path.stat().st_mtime_ns for path in first.rglob("*.json")} == times
    assert json.loads((second / "environment.json").read_text()) == started  # resumed, not started again
    assert len([line for line in lines_of(folder / "runs.csv") if line["budget"] == EQUAL_STEPS]) == 2


@pytest.mark.nightly  # five processes; the test above interrupts in one
@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no process groups to signal")
def test_a_study_interrupted_by_ctrl_c_ends_with_130_and_resumes(
    recipe: Path, grid: Path, tmp_path: Path, trained: list[str]
) -> None:
    """The first run is finished, and the second is interrupted between two of its steps."""
    folder = tmp_path / "study"
    flags = ("--training.steps=12", "--training.eval_every=12")
    process = start_saysee("ablate", recipe, "--to", folder, "--grid", grid, "--seeds", "1", *flags)
    first, second = folder / "runs" / "alone.seed-0.equal-steps", folder / "runs" / "cmd.seed-0.equal-steps"
    deadline = time.monotonic() + PATIENCE
    while not list(second.glob("checkpoints/step-*")):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.002)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130, errors
    assert "Traceback" not in errors
    assert not (second / "result.json").exists()
    times = {path: path.stat().st_mtime_ns for path in first.rglob("*.json")}
    assert first / "scores-test.json" in times

    started = json.loads((second / "environment.json").read_text())
    run_ablation(recipe, folder, AblationSettings(seeds=1, grid=grid, overrides=flags))
    assert not any(what.startswith("alone") for what in trained)
    assert {path: path.stat().st_mtime_ns for path in first.rglob("*.json")} == times
    assert json.loads((second / "environment.json").read_text()) == started  # resumed, not started again
    assert len([line for line in lines_of(folder / "runs.csv") if line["budget"] == EQUAL_STEPS]) == 2


def test_rows_of_a_seed_have_the_same_start_and_the_same_batches(recipe: Path, tmp_path: Path) -> None:
    study = _Study(recipe, tmp_path / "study", AblationSettings())
    begun = []
    for seed, rows in ((0, study.rows), (1, study.rows[:2])):
        for row in rows:
            trainer = Trainer(study.recipe(Run(row, seed), 6))
            shared = {
                name: value.clone()
                for name, value in trainer.model.state_dict().items()
                if not name.startswith("fusion.")
            }
            batch = next(iter(trainer.loader))
            begun.append((seed, row, shared, batch))
    assert len(study.rows) == 5
    for seed in (0, 1):
        (_, _, weights, batch), *others = [one for one in begun if one[0] == seed]
        for _, row, other_weights, other_batch in others:
            assert weights.keys() == other_weights.keys(), row
            assert all(torch.equal(value, other_weights[name]) for name, value in weights.items()), row
            assert batch.rows == other_batch.rows
            assert torch.equal(batch.waveforms, other_batch.waveforms)
    name = next(name for name in begun[0][2] if "head" in name and name.endswith("weight"))
    assert not torch.equal(begun[0][2][name], begun[-1][2][name]), "two seeds have one start"


def test_equal_time_gives_a_slower_row_fewer_steps_and_a_faster_one_no_more() -> None:
    assert steps_in_equal_time(100, 0.5, 1.0) == 50
    assert steps_in_equal_time(100, 0.3, 0.4) == 75
    assert steps_in_equal_time(160, 0.2, 0.21) == 152
    assert steps_in_equal_time(100, 0.5, 0.4) == 100
    assert steps_in_equal_time(3, 0.001, 1.0) == 1


def test_the_run_of_equal_time_has_the_steps_that_fit_and_its_schedule_ends_there(recipe: Path, tmp_path: Path) -> None:
    study = _Study(recipe, tmp_path / "study", AblationSettings(rows=("CMD paper",), overrides=("--training.steps=6",)))
    for row, seconds in ((study.baseline, 0.3), ("CMD paper", 0.45)):
        path = study.path(Run(row, 0))
        path.mkdir(parents=True)
        (path / "result.json").write_text(json.dumps({"seconds_per_step": seconds}))
    runs = [run for stage in study.stages([0]) for run in stage]
    assert runs == [Run("contrastive alone", 0), Run("CMD paper", 0), Run("CMD paper", 0, EQUAL_TIME)]
    assert study.steps(runs[-1]) == 4
    assert study.recipe(runs[-1], study.steps(runs[-1])).training.steps == 4  # of which the schedule is made


def test_shares_of_images_are_nested_and_depend_on_nothing_but_the_ids(tiny_manifest: Manifest) -> None:
    def ids(manifest: Manifest, share: float) -> set[str]:
        return {row.image_id for row in share_of_images(manifest, "train", share) if row.split == "train"}

    shuffled = Manifest(tuple(reversed(tiny_manifest.rows)), tiny_manifest.root)
    chosen = [ids(tiny_manifest, share) for share in (0.25, 0.5, 1.0)]
    assert [len(one) for one in chosen] == [3, 6, 12]
    assert chosen[0] < chosen[1] < chosen[2]
    assert [ids(shuffled, share) for share in (0.25, 0.5, 1.0)] == chosen
    clips = share_of_images(tiny_manifest, "train", 0.25).splits()
    assert clips == {**tiny_manifest.splits(), "train": 15}
    # By the SHA-256 of the ids: ca978112, 3e23e816, 2e7d2c03, 18ac3e73 for a, b, c, d; the same in every process.
    four = Manifest([Row(f"{name}.wav", f"{name}.png", name, "train") for name in "abcd"], tiny_manifest.root)
    assert [ids(four, share) for share in (0.25, 0.5, 0.75)] == [{"d"}, {"d", "c"}, {"d", "c", "b"}]


def scores(
    row: str, seed: int, recall: float, seconds: float, budget: str = EQUAL_STEPS, steps: int = 100
) -> RunScores:
    overall = {"clips": 40, "images": 8, "chance_mean_R@1": 12.5}
    about = {
        "git_commit": "abc",
        "device": "cpu",
        "platform": "p",
        "python": "3",
        "threads": 1,
        "versions": {"torch": "2"},
    }
    measures = {"mean_R@1": recall, "seconds_per_step": seconds, "steps": steps}
    return RunScores(row, seed, budget, 1.0, measures, {"overall": overall}, about)


def test_the_table_pairs_by_seed_with_both_budgets_in_any_order_of_runs(tmp_path: Path) -> None:
    study = STUDY | {"grid": {"a": {}, "slow": {"denoising.weight": 1}, "quick": {}}, "equal_time": True}
    runs = [scores("a", seed, 10.0 + 10 * seed, 0.2) for seed in (0, 1)]
    runs += [scores("slow", seed, 13.0 + 12 * seed, 0.4) for seed in (0, 1)]
    runs += [scores("slow", seed, 11.0 + 10 * seed, 0.4, EQUAL_TIME, 50) for seed in (0, 1)]
    runs += [scores("quick", seed, 12.0 + 10 * seed, 0.1) for seed in (0, 1)]
    result = write_tables(tmp_path, study, runs)
    outputs = ("table.md", "table.csv", "runs.csv", "plot.svg")
    written = [(tmp_path / name).read_text() for name in outputs]
    first = written[0]
    slow, quick = result.rows["slow"], result.rows["quick"]
    assert slow[EQUAL_STEPS].differences["mean_R@1"].mean == 4.0  # 3 and 5
    assert slow[EQUAL_TIME].differences["mean_R@1"].mean == 1.0
    assert slow[EQUAL_TIME].values["steps"].mean == 50
    assert quick[EQUAL_TIME] == quick[EQUAL_STEPS], "a row that is no slower needs no run of its own"
    assert re.search(
        r"\| slow \| 2 \| 19\.00 ± 76\.24 \| \+4\.00 ± 12\.71 \|.*\| 50 \| 16\.00 ± 63\.53 \| \+1\.00 ± 0\.00 \|", first
    )
    write_tables(tmp_path, study, runs[::-1])
    assert [(tmp_path / name).read_text() for name in outputs] == written


def test_a_ladder_has_the_gain_over_the_row_above_that_was_run(tmp_path: Path) -> None:
    study = STUDY | {"grid": {name: {"head.layers": number} for number, name in enumerate("abcd")}}
    runs = [
        scores(row, seed, recall + seed, 0.2) for row, recall in (("a", 10), ("b", 13), ("d", 11)) for seed in (0, 1)
    ]
    table = write_tables(tmp_path, study, runs).to_tables()[0]
    assert table.headings[:5] == ["row", "seeds", "mean R@1", "difference", "over the row above"]
    gains = [(line[0], *line[3:5]) for line in table.rows]
    assert gains == [("a", "–", "–"), ("b", "+3.00 ± 0.00", "+3.00 ± 0.00"), ("d", "+1.00 ± 0.00", "-2.00 ± 0.00")]
    assert "mean_R@1_over_row_above" in (tmp_path / "table.csv").read_text()
    study["grid"]["c"]["data.batch_size"] = 2
    study["grid"]["b"]["data.batch_size"] = 1
    assert "over the row above" not in write_tables(tmp_path, study, runs).to_tables()[0].headings


def test_without_equal_time_and_measures_there_are_no_columns_of_them(tmp_path: Path) -> None:
    study = STUDY | {"grid": {"a": {}, "slow": {}}}
    runs = [scores("a", 0, 10.0, 0.2), scores("slow", 0, 13.0, 0.4), scores("slow", 0, 11.0, 0.4, EQUAL_TIME, 50)]
    runs[1].measures["image_to_speech_R@10"] = 34.56
    result = write_tables(tmp_path, study, runs)
    table = result.to_tables()[0]
    assert table.headings == ["row", "seeds", "mean R@1", "difference", "I→S R@10", "seconds a step"]
    assert table.rows[1] == ["slow", "1", "13.00", "+3.00", "34.6", "0.400"]
    assert list(result.to_dict()["rows"]["slow"]) == ["equal_steps"]
    text = (tmp_path / "table.md").read_text()
    assert not any(word in text for word in ("Equal time", "Hard twins", "Novel pairs", "Attention lift"))
    assert "hard_twins" not in (tmp_path / "table.csv").read_text()
    assert (tmp_path / "table.tex").read_text().count(r"\midrule") == 1


def test_rows_may_set_model_head_and_data(recipe: Path, grid: Path, tmp_path: Path) -> None:
    rows = {"a": {}, "b": {"model": {"speech_trainable": 1}, "head.dropout": 0.3, "data": {"batch_size": 4}}}
    grid.write_text(yaml.safe_dump(rows))
    study = _Study(recipe, tmp_path / "study", AblationSettings(grid=grid))
    plain, other = (study.recipe(Run(row, 0), 6) for row in ("a", "b"))
    assert (other.model.speech_trainable, other.head.dropout, other.data.batch_size) == (1, 0.3, 4)
    assert plain.model.speech_trainable == "all"
    assert other.data.manifest == plain.data.manifest


@pytest.mark.nightly  # ten processes; the parts are tested in tests/studies/test_study_processes.py
def test_two_runs_at_once_give_what_runs_in_turn_give_also_after_a_kill(
    recipe: Path, grid: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = []
    for name, devices in (("turn", []), ("once", ["--devices", "cpu,cpu"])):
        words = ["ablate", str(recipe), "--to", str(tmp_path / name), "--grid", str(grid), "--seeds", "1", *devices]
        words += ["--no-equal-time", "--training.device", "cpu"]
        if devices:
            process = start_saysee(*words)
            deadline = time.monotonic() + PATIENCE
            while len(list((tmp_path / name).glob("runs/*/environment.json"))) < 2:  # both at once
                assert process.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.01)
            assert not list((tmp_path / name).glob("runs/*/result.json"))
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        assert main([*words, "--json"]) == 0
        rows = json.loads(capsys.readouterr().out)["rows"]
        measured = ("training_seconds", "seconds_per_step", "peak_memory_mib")
        values = {row: of["equal_steps"]["values"] for row, of in rows.items()}
        found.append({row: {key: v for key, v in of.items() if key not in measured} for row, of in values.items()})
    assert found[0] == found[1]
    assert "image_to_speech_R@10" in found[0]["CMD"]


def test_the_packages_grids_have_names_and_are_no_recipes(tiny_scenes: Path, tmp_path: Path) -> None:
    grid = read_grid(grid_file("cmd"))
    assert list(grid) == ["contrastive alone", "CMD paper", "image noise with image query", "speech noise", "both"]
    assert grid["contrastive alone"] == {"denoising.weight": 0.0}
    assert not {path.stem for path in GRIDS.glob("*.yaml")} & set(recipe_names())
    assert grid_file("cmd.yaml") == Path("cmd.yaml")
    manifest = (f"--data.manifest={tiny_scenes}",)
    ladder = _Study("nano", tmp_path / "study", AblationSettings(overrides=manifest, grid="ladder"))
    assert is_ladder(ladder.grid)
    languages = [row.get("data.language") for row in read_grid(grid_file("languages")).values()]
    assert languages == [None, "en", "de", "es", "tr"]
    assert not is_ladder(grid)
    places = _Study("nano", tmp_path / "places", AblationSettings(overrides=manifest, grid="places"))
    assert {row.get("denoising.place") for row in places.grid.values()} == {None, "input", "middle"}


def test_a_row_overrides_the_recipe_and_keeps_what_it_does_not_set(recipe: Path, grid: Path, tmp_path: Path) -> None:
    settings = copy.deepcopy(yaml.safe_load(recipe.read_text()))
    settings["denoising"] = {"temperature": 0.05, "share": 0.9}
    recipe.write_text(yaml.safe_dump(settings))
    study = _Study(recipe, tmp_path / "study", AblationSettings(grid=grid))
    row = study.recipe(Run("CMD", 3), 6)
    assert (row.denoising.temperature, row.denoising.share, row.denoising.weight) == (0.05, 0.25, 1.0)
    assert row.training.seed == 3
    assert study.recipe(Run("alone", 3), 6).denoising.weight == 0


def test_a_row_named_baseline_is_the_baseline(tmp_path: Path) -> None:
    path = tmp_path / "grid.yaml"
    path.write_text("more: {denoising: {share: 0.7}}\nbaseline: {}\n")
    assert list(read_grid(path)) == ["baseline", "more"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: {}", "1 rows"),
        ("[1]", "mapping"),
        ("a: [", "YAML"),
        ("a: {}\nb: {training.steps: 3}", "'b'.*training.steps"),
        ("a: {}\nb: {data: {manifest: other.parquet}}", "data.manifest"),
        ("a: {}\nb: {data.val_split: dev}", "data.val_split"),
        ("a: {}\nb: {optimizer: {accumulate: 2}}", "optimizer.accumulate"),
        ("a: {}\nb: {denoising: {preset: strong}}", "denoising.preset.*'strong'"),
        ("a: {}\n'b, c': {}", "'b, c'"),
        ("more noise: {}\nmore-noise: {}", "'more-noise'.*'more noise'"),
        ("a: {}\nb: 3", "row 'b' is 3"),
    ],
)
def test_a_grid_that_cannot_be_used_is_an_error(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "grid.yaml"
    path.write_text(text)
    with pytest.raises(SaySeeError, match=message) as error:
        read_grid(path)
    assert str(path) in str(error.value)


def test_a_study_that_cannot_work_is_an_error_before_anything_is_written(
    recipe: Path, grid: Path, tmp_path: Path, trained: list[str]
) -> None:
    folder = tmp_path / "study"

    def refused(message: str, **settings: Any) -> None:
        with pytest.raises(SaySeeError, match=message):
            run_ablation(recipe, folder, AblationSettings(**{"grid": grid, **settings}))
        assert not folder.exists()

    refused("--seeds is 0", seeds=0)
    refused("'CMDD'.*alone, CMD", rows=("CMDD",))
    refused("'nosuch'", split="nosuch")
    refused("--sizes has 1.5", sizes=(1.5,))
    refused("0.1 .*5 clips", sizes=(0.1,))
    refused("--denoising.share .*row 'CMD'", overrides=("--denoising.share=0.3",))
    refused("training.patience is 2", overrides=("--training.patience=2",))
    refused("data.manifest", overrides=("--data.manifest=",))
    refused("'tpu'", devices=("cpu", "tpu"))
    refused("cuda:99", devices=("cuda:99",), overrides=("--training.device=auto",))
    refused("cuda.*training.device is cpu", devices=("cuda:0",), overrides=("--training.device=cpu",))
    grid.write_text("a: {}\nb: {denoising: {nosuch: 1}}")
    refused("row 'b' .*nosuch")
    grid.write_text("a: {}\nb: {denoising: {target: replaced, query: speech, noise: image}}")
    refused("row 'b' .*denoising.target")


def test_a_folder_of_another_study_is_an_error_and_a_new_row_is_added(
    recipe: Path, grid: Path, tmp_path: Path, trained: list[str], tiny_manifest: Manifest
) -> None:
    folder, manifest = tmp_path / "study", tmp_path / "manifest.jsonl"
    tiny_manifest.write(manifest)
    flags = (f"--data.manifest={manifest}",)
    plan = AblationSettings(seeds=1, grid=grid, rows=("alone",), overrides=flags, equal_time=False)
    run_ablation(recipe, folder, plan)
    kept = (folder / "study.json").read_text()

    with pytest.raises(SaySeeError, match=r"optimizer\.lr \(0\.001, now 0\.002\)"):
        run_ablation(recipe, folder, replace(plan, overrides=(*flags, "--optimizer.lr=0.002")))
    other = copy.deepcopy(GRID)
    other["CMD"]["denoising.share"] = 0.75
    grid.write_text(yaml.safe_dump(other, sort_keys=False))
    with pytest.raises(SaySeeError, match=r"row 'CMD' .*0\.25.*0\.75"):
        run_ablation(recipe, folder, plan)
    grid.write_text(yaml.safe_dump(dict(reversed(GRID.items())), sort_keys=False))
    with pytest.raises(SaySeeError, match="baseline"):
        run_ablation(recipe, folder, plan)
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "a.txt").touch()
    with pytest.raises(SaySeeError, match="foreign"):
        run_ablation(recipe, tmp_path / "foreign", AblationSettings())
    assert (folder / "study.json").read_text() == kept

    trained.clear()
    grid.write_text(yaml.safe_dump({**GRID, "more": {"denoising.share": 0.9}}, sort_keys=False))
    result = run_ablation(recipe, folder, replace(plan, rows=("more",)))
    assert trained
    assert all(what.startswith("more") for what in trained)
    assert list(result.rows) == ["alone", "more"]

    share_of_images(Manifest.read(manifest), "train", 0.75).write(manifest)  # another one under the same path
    with pytest.raises(SaySeeError, match="manifest_sha256"):
        run_ablation(recipe, folder, plan)


def test_the_default_grid_fits_the_packages_recipe(tiny_scenes: Path, tmp_path: Path) -> None:
    study = _Study("nano", tmp_path / "study", AblationSettings(overrides=(f"--data.manifest={tiny_scenes}",)))
    assert study.recipe(Run("both", 0), 9).denoising.noise == "both"
    assert load_recipe("nano").training.patience == 0
