"""The guide's way from a corpus to the table, for Flickr8k and SpokenCOCO: every command of it runs, as it is written.

The corpora are small, in the layouts as published. The encoders have random weights, small and in the hub's own format,
in the working folder under the names that the hub has for them. Training gets few steps; nothing else is changed.
"""

from __future__ import annotations

import importlib.util
import json
import re
import shlex
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from huggingface_hub import ModelCard

from saysee.cli import main

TESTS = Path(__file__).parent
GUIDE = TESTS.parent / "docs" / "guide.md"
SECTIONS = {
    "Flickr8k": ["### Flickr8k\n", "### Flickr8k, from the corpus to the table\n"],
    "SpokenCOCO": ["### SpokenCOCO\n", "### SpokenCOCO, from the corpus to the table\n"],
}
ENCODERS = {
    "facebook/hubert-base-ls960": "base",
    "facebook/hubert-large-ll60k": "large",
    "openai/clip-vit-base-patch32": "clip",
    "openai/clip-vit-large-patch14": "clip",
}
FEW_STEPS = shlex.split(
    "--training.steps 2 --training.eval_every 2 --training.device cpu --training.precision fp32 "
    "--optimizer.warmup_steps 1 --data.batch_size 4 --data.workers 0"
)


def load(path: str) -> ModuleType:
    """A module of the tests by its path: they are no package."""
    spec = importlib.util.spec_from_file_location(Path(path).stem, TESTS / path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def commands_of(corpus: str) -> list[str]:
    """The lines of the shell in the guide's sections on a corpus, in order."""
    guide = GUIDE.read_text(encoding="utf-8")
    lines: list[str] = []
    for heading in SECTIONS[corpus]:
        section = re.split(r"^##", guide.split(heading, 1)[1], maxsplit=1, flags=re.MULTILINE)[0]
        for block in re.findall(r"^```sh\n(.*?)^```", section, re.MULTILINE | re.DOTALL):
            lines += block.replace("\\\n", " ").splitlines()
    return lines


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hubert_configs: Any, clip_folder: Path) -> Path:
    """A working folder with both corpora as published, and the encoders."""
    from transformers import HubertModel, Wav2Vec2FeatureExtractor

    here = tmp_path / "work"
    here.mkdir()
    for name, kind in ENCODERS.items():
        (here / name).parent.mkdir(exist_ok=True)
        if kind == "clip":
            (here / name).symlink_to(clip_folder)
            continue
        HubertModel(hubert_configs[kind]).save_pretrained(here / name)
        Wav2Vec2FeatureExtractor(return_attention_mask=kind == "large").save_pretrained(here / name)
    files = load("data/corpora/conftest.py").Files
    load("data/corpora/test_flickr8k.py").published(files, here)
    coco = load("data/corpora/test_spokencoco.py")
    coco.published(files, here)
    coco.karpathy_json(files, here / "dataset_coco.json", list(coco.PICTURES))
    monkeypatch.chdir(here)
    return here


def run(line: str, capsys: pytest.CaptureFixture[str]) -> str:
    """Runs a line as a shell would; what it prints goes where the line says."""
    words = shlex.split(line)
    assert words[0] == "saysee", line
    to = None
    if ">" in words:
        words, to = words[: words.index(">")], words[words.index(">") + 1]
    capsys.readouterr()
    assert main(words[1:] + (FEW_STEPS if words[1] == "train" else [])) == 0, f"{line}: {capsys.readouterr().err}"
    printed = capsys.readouterr().out
    if to is not None:
        Path(to).write_text(printed, encoding="utf-8")
    return printed


def test_every_command_from_the_corpora_to_the_tables_runs_in_order(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for corpus in SECTIONS:
        lines = commands_of(corpus)
        assert {line.split()[1] for line in lines} == {"data", "train", "evaluate", "card"}, corpus
        printed = {line: run(line, capsys) for line in lines}
        for line, text in printed.items():
            if line.startswith("saysee evaluate") and "--json" not in line:
                assert "mean R@1" in text, line
    flickr8k = json.loads((place / "flickr8k-base.json").read_text(encoding="utf-8"))
    assert (flickr8k["split"], flickr8k["overall"]["clips"], flickr8k["overall"]["images"]) == ("test", 4, 2)
    transfer = json.loads((place / "spokencoco-large.json").read_text(encoding="utf-8"))["corpora"]
    assert [corpus["manifest"] for corpus in transfer] == ["spokencoco.parquet", "flickr8k.parquet"]
    card = ModelCard.load(place / "runs" / "flickr8k-base" / "best" / "README.md")
    assert "| flickr8k, test | this model | 4 | 2 |" in card.text
    assert "cascade: manifest's own texts, openai/clip-vit-base-patch32" in card.text
