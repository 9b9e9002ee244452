"""The command line as a user meets it: exit 2 and one line for a mistake, one result on stdout, 130 on Ctrl-C."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from PIL import Image

from saysee.cli import VERBS, main
from saysee.data.manifest import Manifest, Row
from saysee.version import __version__
from saysee_process import start_saysee, wait_for


@pytest.fixture
def error_of(capsys: pytest.CaptureFixture[str]) -> Any:
    """Runs a command that must fail with exit code 2 and one line, and returns the line."""

    def run(*words: object) -> str:
        capsys.readouterr()
        code = main([str(word) for word in words])
        errors = capsys.readouterr().err
        assert code == 2, errors
        lines = errors.strip().splitlines()
        assert len(lines) == 1, errors
        assert "Traceback" not in errors
        return lines[0]

    return run


@pytest.fixture
def model_folder(finished_run: Path) -> Path:
    return finished_run / "best"


def modules_after(*words: str) -> set[str]:
    """The modules that a process has loaded once it has run a command line."""
    program = (
        "import sys\nfrom saysee.cli import main\nassert main(sys.argv[1:]) == 0\n"
        "print(*sys.modules, sep='\\n', file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", program, *words], capture_output=True, text=True, check=True)
    return set(done.stderr.splitlines())


def test_help_is_quick_because_it_loads_little() -> None:
    """Under half a second; the modules are checked, because seconds vary."""
    heavy = {"torch", "transformers", "numpy", "pyarrow", "PIL", "rich.console", "yaml", "faiss"}
    loaded = modules_after("--help")
    assert not loaded & (heavy | {"jsonargparse", "argparse"})
    assert len([name for name in loaded if name.startswith("saysee.")]) < 20
    for verb in ("train", "search"):
        assert not modules_after(verb, "--help") & (heavy - {"yaml"})


def test_help_lists_every_verb(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(f"  {verb} " in text for verb in VERBS)
    assert main(["data", "--help"]) == 0
    text = capsys.readouterr().out
    assert "  data scenes " in text
    assert "  train " not in text
    assert main(["--version"]) == 0
    assert __version__ in capsys.readouterr().out


def bad_clips(folder: Path) -> dict[str, str]:
    """File name to the error code it must get."""
    second = np.sin(np.linspace(0, 2000, 16_000)).astype(np.float32) * 0.3
    soundfile.write(folder / "short.wav", second[:300], 16_000)
    soundfile.write(folder / "long.wav", np.tile(second, 70), 16_000)
    soundfile.write(folder / "silent.wav", np.zeros(16_000), 16_000)
    soundfile.write(folder / "nan.wav", np.full(16_000, np.nan, dtype=np.float32), 16_000, subtype="FLOAT")
    soundfile.write(folder / "whole.flac", second, 16_000)
    content = (folder / "whole.flac").read_bytes()
    (folder / "truncated.flac").write_bytes(content[: len(content) // 2])
    (folder / "text.wav").write_text("not audio")
    (folder / "empty.wav").touch()
    (folder / "folder.wav").mkdir()
    (folder / "nowhere.wav").symlink_to(folder / "gone.wav")
    return {
        "short.wav": "too-short",
        "long.wav": "too-long",
        "silent.wav": "silent",
        "nan.wav": "not-finite",
        "truncated.flac": "truncated",
        "text.wav": "undecodable",
        "empty.wav": "empty",
        "folder.wav": "directory",
        "nowhere.wav": "broken-link",
        "missing.wav": "missing",
    }


def bad_images(folder: Path) -> dict[str, str]:
    """File name to the error code it must get."""
    Image.effect_noise((64, 64), 50).save(folder / "whole.png")
    content = (folder / "whole.png").read_bytes()
    (folder / "truncated.png").write_bytes(content[: len(content) // 2])
    (folder / "text.png").write_text("not an image")
    (folder / "empty.png").touch()
    (folder / "folder.png").mkdir()
    Image.new("1", (20_000, 20_000)).save(folder / "bomb.png")
    return {
        "truncated.png": "truncated",
        "text.png": "undecodable",
        "empty.png": "empty",
        "folder.png": "directory",
        "bomb.png": "too-large",
        "missing.png": "missing",
    }


def test_verify_names_every_bad_file_with_its_reason(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], error_of: Any
) -> None:
    clips, images = bad_clips(tmp_path), bad_images(tmp_path)
    good = np.sin(np.linspace(0, 2000, 16_000)) * 0.3
    rows = [Row(name, "whole.png", "whole", "train") for name in clips]
    for name in images:
        soundfile.write(tmp_path / f"{name}.wav", good, 16_000)
        rows.append(Row(f"{name}.wav", name, name, "train"))
    manifest = tmp_path / "manifest.jsonl"
    Manifest(rows, tmp_path).write(manifest)

    assert str(manifest) in error_of("data", "verify", manifest)
    assert main(["data", "verify", str(manifest), "--json"]) == 2
    captured = capsys.readouterr()
    assert len(captured.err.strip().splitlines()) == 1
    problems = json.loads(captured.out)["problems"]
    assert {Path(problem["path"]).name: problem["kind"] for problem in problems} == clips | images
    assert all("\n" not in problem["message"] for problem in problems)


def test_verify_accepts_a_good_corpus(tiny_scenes: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "verify", str(tiny_scenes)]) == 0
    assert "120 clips" in capsys.readouterr().out


def test_mistakes_are_explained_in_one_line(
    tmp_path: Path, tiny_scenes: Path, model_folder: Path, error_of: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken.yaml").write_text("data: [")
    (tmp_path / "other.txt").write_text("somebody's file")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "a.txt").touch()
    assert "saysee --help" in error_of()
    assert "saysee data --help" in error_of("data")
    assert "nosuch" in error_of("nosuch")
    assert "'train'" in error_of("trian")
    assert "--nosuch" in error_of("data", "verify", tiny_scenes, "--nosuch")
    assert "train --settings" in error_of("train")
    assert "nano" in error_of("train", tmp_path / "missing.yaml")
    assert "broken.yaml" in error_of("train", tmp_path / "broken.yaml")
    assert "optimizer.lrr" in error_of("train", "nano", "--optimizer.lrr", "3")
    assert "training.steps" in error_of("train", "nano", "--training.steps", "-3")
    assert "data.manifest" in error_of("train", "nano")
    assert "missing.parquet" in error_of("data", "verify", tmp_path / "missing.parquet")
    assert ".parquet" in error_of("data", "verify", tmp_path / "other.txt")
    assert str(tmp_path / "full") in error_of("data", "scenes", "--to", tmp_path / "full", "--images", 30)
    assert str(tmp_path / "full") in error_of("evaluate", tmp_path / "full", tiny_scenes)
    assert "nosuch" in error_of("evaluate", model_folder, tiny_scenes, "--split", "nosuch")
    assert "nosuch" in error_of("evaluate", model_folder, tiny_scenes, "--by", "nosuch")
    ablate = ("ablate", "nano", "--data.manifest", tiny_scenes)
    assert "--to" in error_of(*ablate)
    assert "'half'" in error_of(*ablate, "--to", tmp_path / "study", "--sizes", "half")
    assert "nosuch" in error_of(*ablate, "--to", tmp_path / "study", "--rows", "nosuch")
    assert "missing.yaml" in error_of(*ablate, "--to", tmp_path / "study", "--grid", tmp_path / "missing.yaml")
    assert "denoising.preset" in error_of(*ablate, "--to", tmp_path / "study", "--denoising.preset", "off")
    assert "data.manifest" in error_of("ablate", "nano", "--to", tmp_path / "study")
    assert str(tmp_path / "full") in error_of(*ablate, "--to", tmp_path / "full")
    assert "CUDA" in error_of("evaluate", model_folder, tiny_scenes, "--device", "cuda")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "torchrun" in error_of("data", "verify", tiny_scenes)
    monkeypatch.setenv("WORLD_SIZE", "")
    assert "missing.parquet" in error_of("data", "verify", tmp_path / "missing.parquet")


def test_debug_shows_where_a_mistake_came_from(tmp_path: Path) -> None:
    with pytest.raises(Exception, match=r"missing\.parquet"):
        main(["data", "verify", str(tmp_path / "missing.parquet"), "--debug"])


def test_train_prints_one_result_and_evaluate_scores_it(
    tiny_settings: dict[str, Any], tiny_scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import yaml

    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(tiny_settings))
    assert main(["train", str(recipe), "--training.steps", "2", "--training.eval_every=1", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["steps"] == 2
    words = ["evaluate", result["model"], str(tiny_scenes), "--by", "novel_pair", "--by", "hard_twin"]
    assert main([*words, "--json"]) == 0
    scores = json.loads(capsys.readouterr().out)
    assert scores["overall"]["clips"] == 40
    assert scores["by"].keys() == {"novel_pair", "hard_twin"}
    assert main(words) == 0
    assert "R@1" in capsys.readouterr().out


def test_every_setting_is_listed_with_its_description(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--settings"]) == 0
    text = capsys.readouterr().out
    assert "--denoising.share" in text
    assert "Share of the noisy modality" in " ".join(text.split())


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGINT for another process")
def test_interrupted_it_exits_130_keeps_what_is_finished_and_resumes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["data", "scenes", "--to", str(tmp_path / "scenes")]
    words += ["--images", "20", "--val-images", "2", "--test-images", "4", "--workers", "1"]
    process = start_saysee(*words)
    wait_for(lambda: len(list((tmp_path / "scenes").rglob("*.png"))) >= 5, process)  # it is at work
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in errors
    capsys.readouterr()
    assert main(words) == 0
    assert Manifest.read(capsys.readouterr().out.strip()).splits() == {"train": 70, "val": 10, "test": 20}
