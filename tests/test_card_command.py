"""Model cards: made from the run and its scores, valid for the hub; a card that was edited is never overwritten."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard
from huggingface_hub.repocard import metadata_load
from huggingface_hub.repocard_data import model_index_to_eval_results

from saysee.cli import main
from saysee.model.card import CARD_FILE, TRAINING_FILE, card_text
from saysee.model.configuration import SpeechImageConfig
from saysee.model.retriever import SpeechImageModel

WAYS = ("speech_to_image", "image_to_speech")


def scores_file(path: Path, **parts: Any) -> Path:
    """A file as ``saysee evaluate --json`` prints it, with a cell that is empty, as in a corpus of few clips."""
    measures = {f"R@{k}": float(k) for k in (1, 5, 10)}
    overall = {
        "speech_to_image": measures,
        "image_to_speech": measures,
        "mean_R@1": 1.0,
        "interval": {way: {name: [value - 0.5, value + 0.5] for name, value in measures.items()} for way in WAYS},
        "clips": 2500,
        "images": 500,
    }
    overall["interval"] |= {"mean_R@1": [0.5, 1.5]}
    content = {"model": "m", "manifest": "a/flickr8k.parquet", "split": "test", "overall": overall, "by": {}} | parts
    path.write_text(json.dumps(content))
    return path


@pytest.fixture
def model_folder(tmp_path: Path, hubert_configs: Any, clip_config: Any) -> Path:
    SpeechImageModel.from_encoders(hubert_configs["base"], clip_config).save_pretrained(tmp_path / "mine")
    return tmp_path / "mine"


def test_a_trained_run_has_a_card_with_data_recipe_and_scores(
    tiny_settings: dict[str, Any], tiny_scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """From training to the card with scores, as a user goes; and it goes with the model where that is saved again."""
    tiny_settings["training"] |= {"steps": 2, "eval_every": 2}
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(tiny_settings))
    assert main(["train", str(tmp_path / "tiny.yaml")]) == 0
    best = tmp_path / "run" / "best"
    first = (best / CARD_FILE).read_text(encoding="utf-8")
    assert "# run\n" in first
    assert "| train | 60 | 12 |" in first
    assert "step 2 of 2, the best by mean R@10 on val" in first
    assert "saysee card MODEL" in first
    capsys.readouterr()
    assert main(["evaluate", str(best), str(tiny_scenes), "--json"]) == 0
    scores = json.loads(capsys.readouterr().out)
    (tmp_path / "scores.json").write_text(json.dumps(scores))
    assert main(["card", str(best), "--scores", str(tmp_path / "scores.json"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"card": str(best / CARD_FILE), "scores": 1}
    card = ModelCard.load(best / CARD_FILE)
    assert card.data.language == ["en"]
    overall = scores["overall"]
    assert {(result.metric_name, result.metric_value) for result in card.data.eval_results} == {
        (f"{way.replace('_', ' ')} R@{k}", round(overall[way][f"R@{k}"], 2)) for way in WAYS for k in (1, 5, 10)
    }
    low, high = overall["interval"]["mean_R@1"]
    assert f"| {overall['mean_R@1']:.1f} ({low:.1f} to {high:.1f}) |" in card.text
    recipe = yaml.safe_load(card.text.split("```yaml\n")[1].split("```")[0])
    assert (recipe["data"]["batch_size"], recipe["data"]["manifest"]) == (8, "manifest.parquet")
    assert str(tmp_path) not in (best / TRAINING_FILE).read_text()  # no path of this machine goes with the model
    assert str(tiny_scenes.parent) not in card.text
    SpeechImageModel.from_pretrained(best).save_pretrained(tmp_path / "again")
    again = (tmp_path / "again" / CARD_FILE).read_text(encoding="utf-8")
    assert "| train | 60 | 12 |" in again


def test_the_header_is_valid_for_the_hub_and_reads_back_as_it_was(tmp_path: Path, model_folder: Path) -> None:
    scores = scores_file(tmp_path / "scores.json", model=str(model_folder))
    words = ["card", str(model_folder), "--scores", str(scores), "--name", "Mine", "--license", "cc-by-4.0"]
    assert main(words) == 0
    header = metadata_load(model_folder / CARD_FILE)
    assert header is not None
    assert header["license"] == "cc-by-4.0"
    assert header["library_name"] == "saysee"
    name, results = model_index_to_eval_results(header["model-index"])
    assert name == "Mine"
    assert {(result.dataset_type, result.dataset_split) for result in results} == {("flickr8k", "test")}
    assert len(results) == 6
    card = ModelCard.load(model_folder / CARD_FILE)
    assert str(ModelCard(str(card))) == str(card)
    for heading in ("## Use", "## Training", "## Scores", "## Limits"):
        assert heading in card.text


def test_a_cascade_stands_beside_the_model_and_not_in_its_results(
    tmp_path: Path, model_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    corpora = json.loads(scores_file(tmp_path / "a.json").read_text()) | {"model": str(model_folder)}
    empty = {"image_to_speech": None, "mean_R@1": None, "interval": None}
    both = [corpora, corpora | {"manifest": "coco/manifest.jsonl", "overall": corpora["overall"] | empty}]
    own = scores_file(tmp_path / "own.json", model=str(model_folder), corpora=both)
    other = scores_file(tmp_path / "other.json", cascade={"asr": "openai/whisper-small", "clip": "openai/clip"})
    texts = scores_file(tmp_path / "texts.json", cascade={"transcripts": "manifest", "clip": "openai/clip"})
    words = [word for path in (own, other, texts) for word in ("--scores", str(path))]
    assert main(["card", str(model_folder), *words]) == 0
    text = (model_folder / CARD_FILE).read_text(encoding="utf-8")
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if "2,500" in line]
    assert [row[:2] for row in rows] == [
        ["flickr8k, test", "this model"],
        ["coco, test", "this model"],
        ["flickr8k, test", "cascade: openai/whisper-small, openai/clip"],
        ["flickr8k, test", "cascade: manifest texts, openai/clip"],
    ]
    assert rows[0][4] == "1.0 (0.5 to 1.5)"
    assert rows[1][7:] == ["–"] * 4
    _, results = model_index_to_eval_results(metadata_load(model_folder / CARD_FILE)["model-index"])
    assert len(results) == 6 + 3


def test_scores_of_another_model_stand_under_its_name_and_not_in_the_results(
    tmp_path: Path, model_folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model is recognized by its folder, however it was written; one that is not here, by the run's name."""
    (tmp_path / "runs" / "b" / "best").mkdir(parents=True)
    (tmp_path / "other" / "mine").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    systems = {
        "mine": "this model",
        str(model_folder): "this model",
        "/far/away/mine": "this model",
        "/far/away/mine/best": "this model",
        "me/on-hub": "this model",
        "runs/b/best": "b",
        "other/mine": "mine",
        "speechclip/mine": "speechclip/mine",
        "/far/away/a": "a",
    }
    words = [word for number, model in enumerate(systems) for word in ("--scores", f"{number}.json")]
    for number, model in enumerate(systems):
        scores_file(tmp_path / f"{number}.json", model=model, split=f"split{number}")
    assert main(["card", "mine", "--name", "me/on-hub", *words]) == 0
    errors = capsys.readouterr().err
    assert errors.count("\n") == 4
    assert "speechclip/mine" in errors
    text = (model_folder / CARD_FILE).read_text(encoding="utf-8")
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if "2,500" in line]
    assert [row[1] for row in rows] == list(systems.values())
    _, results = model_index_to_eval_results(metadata_load(model_folder / CARD_FILE)["model-index"])
    assert {result.dataset_split for result in results} == {f"split{number}" for number in range(5)}


def test_a_card_that_was_edited_is_neither_written_over_nor_lost(
    tmp_path: Path, model_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    card = model_folder / CARD_FILE
    assert main(["card", str(model_folder)]) == 0  # ours, untouched: made anew
    card.write_text(card.read_text(encoding="utf-8").replace("## Use", "## How I use it"), encoding="utf-8")
    mine = card.read_text(encoding="utf-8")
    assert main(["card", str(model_folder)]) == 2
    assert "--to FILE" in capsys.readouterr().err
    assert main(["card", str(model_folder), "--to", str(tmp_path / "card.md")]) == 0
    SpeechImageModel.from_pretrained(model_folder).save_pretrained(model_folder)
    assert card.read_text(encoding="utf-8") == mine


def test_the_facts_of_a_run_are_removed_when_another_model_is_saved_over_it(
    model_folder: Path, hubert_configs: Any
) -> None:
    model = SpeechImageModel.from_pretrained(model_folder)
    model.trained = {"data": {}, "recipe": {}, "best": {}, "run": {}}
    (model_folder / TRAINING_FILE).write_text(json.dumps(model.trained))
    assert SpeechImageModel.from_pretrained(model_folder).trained == model.trained
    SpeechImageModel.from_encoders(hubert_configs["base"], model.config.image_config).save_pretrained(model_folder)
    assert not (model_folder / TRAINING_FILE).exists()


def test_base_models_and_limits_are_those_of_the_encoders(hubert_configs: Any, clip_config: Any) -> None:
    config = SpeechImageConfig(hubert_configs["base"], clip_config)
    training = {
        "data": {
            "name": "flickr8k",
            "splits": {"train": {"clips": 30_000, "images": 6_000}},
            "languages": [],
            "speakers": 0,
        },
        "recipe": {"model": {"speech": "facebook/hubert-base-ls960", "image": "clip"}, "training": {"steps": 50_000}},
        "best": {"step": 40_000, "split": "val", "mean_R@1": 33.3},
        "run": {"versions": {"torch": "2"}, "seed": 0, "arithmetic": "bf16", "device": "cpu", "python": "3"},
    }
    text = card_text("x", config, training)
    assert ModelCard(text).data.base_model == ["facebook/hubert-base-ls960"]
    assert "drawn scenes" not in text
    training["recipe"]["model"] = {"speech": "saysee/hubert-nano", "image": {"hidden_size": 8}}
    text = card_text("x", config, training)
    assert ModelCard(text).data.base_model is None
    assert "drawn scenes" in text


@pytest.mark.parametrize("content", ["{", "[]", '{"corpora": 1}', '{"split": "test"}', None])
def test_a_file_without_scores_is_an_error_of_one_line(
    tmp_path: Path, model_folder: Path, capsys: pytest.CaptureFixture[str], content: str | None
) -> None:
    path = tmp_path / "scores.json"
    if content is not None:
        path.write_text(content)
    assert main(["card", str(model_folder), "--scores", str(path)]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert str(path) in lines[0]


def test_a_folder_without_a_model_and_damaged_facts_are_errors(
    tmp_path: Path, model_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["card", str(tmp_path)]) == 2
    assert str(tmp_path) in capsys.readouterr().err
    (tmp_path / "config.json").write_text('{"model_type": "hubert"}')
    assert main(["card", str(tmp_path)]) == 2
    assert str(tmp_path) in capsys.readouterr().err
    config = json.loads((model_folder / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"head": config["head"] | {"later": 1}}))
    assert main(["card", str(tmp_path)]) == 2
    assert "later" in capsys.readouterr().err
    (model_folder / TRAINING_FILE).write_text('{"data": 1')
    assert main(["card", str(model_folder)]) == 2
    assert f"{model_folder / TRAINING_FILE}:" in capsys.readouterr().err
