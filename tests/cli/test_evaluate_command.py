"""``saysee evaluate`` on several corpora and of a cascade, as a user meets it."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from PIL import Image

from saysee.cli import main
from saysee.data.manifest import Manifest, Row
from saysee.evaluation import protocols
from saysee.evaluation.comparison import short_names
from saysee.evaluation.protocols import evaluate
from saysee.model.card import read_scores
from saysee.model.configuration import FusionConfig
from saysee.model.retriever import SpeechImageModel

TEXTS = ["a red square", "two green stars", "a dog runs on the beach"]  # words that the tiny CLIP knows


@pytest.fixture
def manifests(tmp_path: Path, sounds: Any) -> list[str]:
    """Two corpora: three images, then two, with a clip each and a text for it."""
    rng = np.random.default_rng(5)
    paths = []
    for name, count in (("one", 3), ("two", 2)):
        folder = tmp_path / name
        folder.mkdir()
        rows = []
        for number in range(count):
            soundfile.write(folder / f"{number}.wav", sounds[number] * rng.uniform(0.5, 1), 16_000)
            image = rng.integers(0, 255, (40, 40, 3), dtype=np.uint8)
            Image.fromarray(image).save(folder / f"{number}.png")
            rows.append(Row(f"{number}.wav", f"{number}.png", str(number), "test", TEXTS[number], speaker="ann"))
        paths.append(folder / "manifest.jsonl")
        Manifest(rows, folder).write(paths[-1])
    return [str(path) for path in paths]


@pytest.fixture
def model_folder(tmp_path: Path, hubert_configs: Any, clip_config: Any) -> str:
    model = SpeechImageModel.from_encoders(hubert_configs["base"], clip_config)
    model.speech_encoder.layer_mix.weights.data += 0.1  # as if it had been trained
    model.save_pretrained(tmp_path / "model")
    return str(tmp_path / "model")


def output_of(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    capsys.readouterr()
    assert main(["evaluate", *words]) == 0
    return capsys.readouterr().out


def test_several_manifests_give_a_row_each_and_each_what_it_scores_alone(
    manifests: list[str], model_folder: str, capsys: pytest.CaptureFixture[str]
) -> None:
    found = json.loads(output_of(capsys, model_folder, "--json", *manifests))
    assert found["model"] == model_folder
    assert [corpus["manifest"] for corpus in found["corpora"]] == manifests
    model = SpeechImageModel.from_pretrained(model_folder)
    for path, corpus in zip(manifests, found["corpora"], strict=True):
        alone = evaluate(model, Manifest.read(path), progress=False).overall
        assert corpus["overall"] == json.loads(json.dumps(alone.to_dict()))
        assert corpus["overall"]["clips"] == alone.gallery_images
    lines = output_of(capsys, model_folder, *manifests).splitlines()
    rows = {line.split("│")[1].strip(): line for line in lines if line.count("│") > 9}
    assert rows.keys() == {"one", "two"}
    for name, corpus in zip(rows, found["corpora"], strict=True):
        assert f"{corpus['overall']['mean_R@1']:.1f}" in rows[name]


def test_one_manifest_gives_what_it_gave_also_after_a_flag(
    manifests: list[str], model_folder: str, capsys: pytest.CaptureFixture[str]
) -> None:
    found = json.loads(output_of(capsys, model_folder, "--by", "speaker", manifests[0], "--json"))
    assert (found["model"], found["manifest"], found["split"]) == (model_folder, manifests[0], "test")
    assert found["by"]["speaker"]["ann"]["clips"] == 3
    assert "speaker = ann" in output_of(capsys, model_folder, "--by", "speaker", manifests[0])


def test_a_model_that_was_never_trained_is_scored_only_if_asked_for(
    tmp_path: Path, manifests: list[str], hubert_configs: Any, clip_config: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    place = str(tmp_path / "untrained")
    SpeechImageModel.from_encoders(hubert_configs["base"], clip_config).save_pretrained(place)
    assert main(["evaluate", place, manifests[0]]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert place in captured.err
    assert "--untrained" in captured.err
    found = json.loads(output_of(capsys, place, manifests[0], "--untrained", "--json"))
    assert found["untrained"] is True
    assert found["overall"]["clips"] == 3
    folder, index = tmp_path / "one", str(tmp_path / "index")
    for words in (["index", place, str(folder), "--to", index, "--json"], ["search", index, str(folder / "0.wav")]):
        assert main(words) == 0
        captured = capsys.readouterr()
        assert captured.err.count("\n") == 1
        assert place in captured.err
        if words[0] == "index":
            assert any(place in note for note in json.loads(captured.out)["notes"])


def test_a_cascade_on_the_manifests_texts_is_scored(
    manifests: list[str], clip_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cascade = f"cascade:manifest+{clip_folder}"
    one = json.loads(output_of(capsys, cascade, manifests[1], "--json"))
    assert one["cascade"] == {"transcripts": "manifest", "clip": str(clip_folder)}
    assert one["word_errors"] is None
    assert one["overall"]["clips"] == 2
    both = json.loads(output_of(capsys, cascade, *manifests, "--json"))
    assert both["corpora"][1]["overall"] == one["overall"]
    assert "R@1" in output_of(capsys, cascade, *manifests)


def test_localization_scores_maps_where_the_manifest_has_words_and_boxes(
    manifests: list[str], model_folder: str, capsys: pytest.CaptureFixture[str]
) -> None:
    corpus = Manifest.read(manifests[0])
    words = [{"word": "red", "start": 0.0, "end": 0.4, "objects": [0]}, {"word": "a", "start": 0.4, "end": 1.0}]
    seen = {"words": words, "objects": [{"box": [0.0, 0.0, 0.5, 1.0]}]}
    outside = {"words": words, "objects": [{"box": [0.2, 0.2, 0.2, 0.4]}]}
    rows = [replace(row, extra=extra) for row, extra in zip(corpus.rows, (seen, seen, outside), strict=True)]
    boxed = str(Path(manifests[0]).with_name("boxed.jsonl"))
    Manifest(rows, corpus.root).write(Path(boxed))
    (found,) = json.loads(output_of(capsys, model_folder, boxed, "--localization", "--json"))["localization"]
    assert (found["source"], found["images"], found["words"], found["outside"]) == ("interaction", 3, 2, 1)
    for name, chance in (("pointing", 3 / 7), ("mass", 0.5), ("iou", 0.5)):  # the middles of 3 of 7 columns
        score = found["scores"][name]
        assert score["chance"] == pytest.approx(chance)
        assert score["interval"][0] <= score["mean"] <= score["interval"][1]
    assert "interaction" in output_of(capsys, model_folder, boxed, "--localization")
    (line,) = csv.DictReader(io.StringIO(output_of(capsys, model_folder, boxed, "--localization", "--format", "csv")))
    assert float(line["mass mean"]) == pytest.approx(found["scores"]["mass"]["mean"])
    assert main(["evaluate", model_folder, manifests[0], "--localization"]) == 2
    assert "words" in capsys.readouterr().err
    assert main(["evaluate", "cascade:manifest+x", boxed, "--localization"]) == 2
    assert "--localization" in capsys.readouterr().err


def seed_of(folder: str, to: Path, seed: int) -> str:
    """A copy of a model as a run of that seed."""
    model = SpeechImageModel.from_pretrained(folder)
    if seed:
        for parameter in model.speech_encoder.head.parameters():
            parameter.data += 0.05 * seed
    recipe = {"training": {"seed": seed, "steps": 5}, "model": {"speech": "s", "image": "i"}}
    data = {"name": "c", "splits": {"train": {"clips": 1, "images": 1}}, "languages": [], "speakers": 0}
    model.save_pretrained(to / "best")
    facts = {"data": data, "recipe": recipe, "best": {}, "run": {}}
    (to / "best" / "training.json").write_text(json.dumps(facts))
    return str(to / "best")


def test_several_models_are_compared_with_the_first_and_seeds_are_one_row(
    manifests: list[str], clip_folder: Path, hubert_configs: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Models and manifests in any order, and a pattern that the shell has not expanded."""
    model_folder = str(tmp_path / "with-text")
    model = SpeechImageModel.from_encoders(hubert_configs["base"], clip_folder)
    model.speech_encoder.layer_mix.weights.data += 0.1  # as if it had been trained
    model.save_pretrained(model_folder)
    runs = [seed_of(model_folder, tmp_path / "runs" / f"cmd-{seed}", seed) for seed in (0, 1)]
    cascade, pattern = f"cascade:manifest+{clip_folder}", str(tmp_path / "runs" / "*" / "best")
    words = [model_folder, manifests[0], cascade, pattern, model_folder, manifests[1]]
    found = json.loads(output_of(capsys, *words, "--json"))
    assert [each.get("model", each.get("cascade")) for each in found["models"]] == [
        model_folder,
        {"transcripts": "manifest", "clip": str(clip_folder)},
        *runs,
        model_folder,
    ]
    for each in found["models"][2:4]:
        alone = json.loads(output_of(capsys, each["model"], *manifests, "--json"))
        assert [corpus["overall"] for corpus in alone["corpora"]] == [corpus["overall"] for corpus in each["corpora"]]
    rows = found["rows"]
    assert [row["corpus"] for row in rows] == ["one"] * 4 + ["two"] * 4
    assert [row.get("seeds") for row in rows[:4]] == [None, None, 2, None]
    assert rows[2]["model"] == "cmd-*"
    of_seeds = [each["corpora"][0]["overall"]["mean_R@1"] for each in found["models"][2:4]]
    assert rows[2]["mean_R@1"] == pytest.approx(sum(of_seeds) / 2)
    assert rows[2]["mean_R@1_deviation"] == pytest.approx(abs(of_seeds[0] - of_seeds[1]) / 2**0.5)
    assert [rows[3][f"mean_R@1_difference{end}"] for end in ("", "_low", "_high")] == [0, 0, 0]

    csv_lines = list(csv.DictReader(io.StringIO(output_of(capsys, *words, "--format", "csv", "--mteb"))))
    assert [float(line["mean_R@1"]) for line in csv_lines] == [row["mean_R@1"] for row in rows]
    assert float(csv_lines[0]["image_to_speech_hit_rate_at_1"]) * 100 == rows[0]["image_to_speech_R@1"]
    markdown = output_of(capsys, *words, "--format", "markdown")
    assert len([line for line in markdown.splitlines() if "| one | " in line]) == 4 + 3  # the manifest's texts: no S→T
    latex = output_of(capsys, *words, "--format", "latex", "--mteb")
    assert latex.count(r"\begin{tabular}") == latex.count(r"\end{tabular}") == 4
    assert r"hit\_rate\_at\_5" in latex
    assert "S→T R@5" in output_of(capsys, *words)


def test_the_card_takes_the_scores_of_its_model_among_several(
    manifests: list[str], model_folder: str, clip_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = seed_of(model_folder, tmp_path / "other", 1)
    scores = tmp_path / "scores.json"
    scores.write_text(output_of(capsys, other, model_folder, f"cascade:manifest+{clip_folder}", *manifests, "--json"))
    assert main(["card", model_folder, "--scores", str(scores), "--to", str(tmp_path / "card.md")]) == 0
    card = (tmp_path / "card.md").read_text()
    assert card.count("| this model |") == 2
    assert card.count("| other |") == 2
    assert other not in card  # no path of this machine goes with the model
    assert card.count("| cascade: ") == 2


def test_cached_features_are_taken_from_a_folder_and_give_the_same_scores(
    manifests: list[str], model_folder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = tmp_path / "features"
    plain, cached, again = (
        json.loads(output_of(capsys, model_folder, manifests[0], "--json", *words))
        for words in ([], ["--features", str(kept)], ["--features", str(kept)])
    )
    assert plain["overall"] == cached["overall"] == again["overall"]
    assert len(list(kept.rglob("*.values"))) == 2  # clips and images, once


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["my/model"], "MANIFEST"),
        (["one.parquet", "two.jsonl:val"], "MODEL"),
        (["my/model", "one.parquet", "runs/first/bset"], "runs/first/bset"),
        (["my/model", "one.csv"], "one.csv"),
        (["my/model", "one.parquet", "/tmp"], "/tmp"),
        (["my/model", "one.parquet", "two.jsonl", "--by", "speaker"], "--by"),
        (["my/model", "one.parquet", "--language", "en"], "--language"),
        (["cascade:manifest+clip", "one.parquet", "--language", "en"], "--language"),
        (["cascade:asr", "one.parquet"], "cascade:asr"),
        (["cascade:+clip", "one.parquet"], "cascade:+clip"),
        (["my/model", "one.parquet", "--nosuch", "two"], "--nosuch"),
        (["my/model", "one.parquet", "--format", "html"], "--format"),
    ],
)
def test_words_that_cannot_be_combined_are_named_in_one_line(
    words: list[str], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", *words]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert named in lines[0]


def test_each_manifest_may_have_a_split_of_its_own(
    manifests: list[str], model_folder: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also where the path itself holds a colon, and where one manifest is scored on two splits."""
    colon = Path(manifests[1]).parent.with_name("two.parquet:copy")
    Path(manifests[1]).parent.rename(colon)
    path = colon / "m.jsonl"
    rows = (colon / "manifest.jsonl").read_text().splitlines()
    path.write_text("\n".join([rows[0].replace('"test"', '"val"'), rows[1].replace('"test"', '"test:b"')]) + "\n")
    places = [manifests[0], f"{path}:val", f"{path}:test:b"]
    found = json.loads(output_of(capsys, model_folder, *places, "--json"))["corpora"]
    assert [corpus["manifest"] for corpus in found] == [manifests[0], str(path), str(path)]
    assert [(corpus["split"], corpus["overall"]["clips"]) for corpus in found] == [
        ("test", 3),
        ("val", 1),
        ("test:b", 1),
    ]
    table = output_of(capsys, model_folder, *places)
    rows_shown = [line.split("│")[1].strip() for line in table.splitlines() if line.count("│") > 9]
    assert rows_shown == ["one:test", "m:val", "m:test:b"]
    alone = json.loads(output_of(capsys, model_folder, f"{path}:val", "--split", "test", "--json"))
    assert (alone["manifest"], alone["split"]) == (str(path), "val")
    assert main(["evaluate", model_folder, f"{path}:dev"]) == 2
    assert str(path) in capsys.readouterr().err


def test_a_split_that_one_corpus_does_not_have_is_named_before_the_model_is_looked_for(
    manifests: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    path = Path(manifests[1])
    path.write_text(path.read_text().replace('"test"', '"val"'))
    assert main(["evaluate", "no/model", *manifests]) == 2
    assert str(path) in capsys.readouterr().err


def test_corpora_and_models_are_named_by_stem_folder_or_path() -> None:
    assert short_names(["a/flickr8k.parquet", "scenes/manifest.parquet"]) == ["flickr8k", "scenes"]
    assert short_names(["a/coco.parquet", "b/coco.jsonl"]) == ["a/coco.parquet", "b/coco.jsonl"]
    assert short_names(["a/coco.parquet"] * 2, ["val", "test"]) == ["coco:val", "coco:test"]
    assert short_names(["runs/cmd/best", "owner/model", "runs/cmd/best"]) == ["cmd", "owner/model", "cmd"]
    assert short_names(["runs/cmd/best", "a/last"]) == ["cmd", "a/last"]


def test_a_model_that_cannot_be_scored_as_asked_is_named_before_another_is_scored(
    tmp_path: Path,
    manifests: list[str],
    model_folder: str,
    hubert_configs: Any,
    clip_config: Any,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    untrained, matching = str(tmp_path / "untrained"), str(tmp_path / "matching")
    SpeechImageModel.from_encoders(hubert_configs["base"], clip_config).save_pretrained(untrained)
    model = SpeechImageModel.from_pretrained(model_folder)
    model.add_fusion(FusionConfig(width=16, layers=1, heads=2, matching=True))
    model.save_pretrained(matching, fusion=True)

    def none_yet(*arguments: Any, **options: Any) -> None:
        raise AssertionError("a model was scored")

    monkeypatch.setattr(protocols, "evaluate", none_yet)
    for words, named in (
        ([model_folder, untrained], untrained),
        ([matching, model_folder, "--rerank", "2"], model_folder),
    ):
        assert main(["evaluate", *words, manifests[0]]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert named in line


def test_reranking_is_a_row_below_the_model_s_with_the_gain_and_the_time(
    tmp_path: Path, manifests: list[str], model_folder: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", model_folder, manifests[0], "--rerank", "2"]) == 2
    assert "matching.weight" in capsys.readouterr().err
    model = SpeechImageModel.from_pretrained(model_folder)
    model.add_fusion(FusionConfig(width=16, layers=1, heads=2, matching=True))
    model.save_pretrained(tmp_path / "matching", fusion=True)
    assert "--rerank" in (tmp_path / "matching" / "README.md").read_text()
    assert "--rerank" not in (Path(model_folder) / "README.md").read_text()
    place = str(tmp_path / "matching")
    words = [place, manifests[0], "--rerank", "2", "--by", "speaker"]
    found = json.loads(output_of(capsys, *words, "--json"))
    before, after = found["models"]
    assert (before["model"], after["model"], after["rerank"]["first"]) == (place, place, 2)
    assert "rerank" not in before
    assert after["by"]["speaker"]["ann"]["clips"] == 3
    gain = after["overall"]["mean_R@1"] - before["overall"]["mean_R@1"]
    line = found["rows"][2]
    assert line["mean_R@1_difference"] == pytest.approx(gain)
    assert line["mean_R@1_difference_low"] <= gain <= line["mean_R@1_difference_high"]
    assert line["rerank_seconds"] > 0
    shown = output_of(capsys, *words)
    assert "matching, first 2 re-ranked" in shown
    assert "re-ranking (s/query)" in shown
    (tmp_path / "scores.json").write_text(json.dumps(found))
    assert [score.system for score in read_scores(tmp_path / "scores.json", place)] == [
        "this model", "this model, first 2 re-ranked",
    ]  # fmt: skip
    for wrong in (["--rerank", "0"], ["--rerank", "2", "--localization"]):
        assert main(["evaluate", place, manifests[0], *wrong]) == 2
        assert "--rerank" in capsys.readouterr().err
    assert main(["evaluate", place, "cascade:manifest+" + place, manifests[0], "--rerank", "2"]) == 2
