"""``saysee robustness`` as a user meets it, and what the conditions do to clips and images."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from PIL import Image

from saysee.cli import main
from saysee.data.manifest import Manifest, Row
from saysee.encoding.encoder import Encoder
from saysee.errors import ConfigError, MediaError
from saysee.evaluation.protocols import evaluate
from saysee.media import changes
from saysee.model.retriever import SpeechImageModel
from saysee.studies.plots import Panel, panels_png
from saysee.studies.robustness.conditions import Draw, builtin_conditions, choose, noise_conditions, room_conditions

RATE, IMAGES, CLIPS = 16_000, 6, 2


@pytest.fixture
def manifest(tmp_path: Path) -> str:
    """Six images with two clips each, by two speakers."""
    rng, folder = np.random.default_rng(5), tmp_path / "corpus"
    folder.mkdir()
    rows = []
    for image in range(IMAGES):
        Image.fromarray(rng.integers(0, 255, (40, 50, 3), dtype=np.uint8)).save(folder / f"{image}.png")
        for clip in range(CLIPS):
            name = f"{image}-{clip}.wav"
            tone = 0.2 * np.sin(np.arange(6000 + 500 * image) * (0.05 + 0.03 * image + 0.01 * clip))
            soundfile.write(folder / name, tone + 0.01 * rng.standard_normal(len(tone)), RATE)
            rows.append(Row(name, f"{image}.png", str(image), "test", speaker="ann" if clip else "bob"))
    Manifest(rows, folder).write(folder / "manifest.jsonl")
    return str(folder / "manifest.jsonl")


@pytest.fixture
def models(tmp_path: Path, hubert_configs: Any, clip_config: Any) -> list[str]:
    """Two models that differ in their speech side."""
    model = SpeechImageModel.from_encoders(hubert_configs["base"], clip_config)
    for name, weight in (("one", 0.1), ("two", 3.0)):
        model.speech_encoder.layer_mix.weights.data[0] += weight
        model.save_pretrained(tmp_path / name)
    return [str(tmp_path / "one"), str(tmp_path / "two")]


def run(capsys: pytest.CaptureFixture[str], *words: object) -> dict[str, Any]:
    capsys.readouterr()
    assert main(["robustness", *map(str, words), "--json"]) == 0, capsys.readouterr().err
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def line_of(result: dict[str, Any], model: str, condition: str, strength: float | None, queries: str = "all") -> Any:
    (found,) = (
        line
        for line in result["lines"]
        if (line["model"], line["condition"], line["strength"], line["queries"])
        == (model, condition, strength, queries)
    )
    return found


def test_clean_is_what_evaluate_gives_and_every_point_has_its_drop_and_difference(
    manifest: str, models: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    to = tmp_path / "out"
    conditions = "white=20,-5,telephone=8,cut=50,blur=50"
    result = run(capsys, *models, manifest, "--to", to, "--conditions", conditions, "--by", "speaker")
    assert result == json.loads((to / "results.json").read_text())
    for place in models:
        name = Path(place).name
        expected = evaluate(Encoder(place), Manifest.read(manifest), by=["speaker"])
        clean = line_of(result, name, "clean", None)
        assert clean["mean_R@1"] == expected.overall.mean_recall_at_1
        assert [clean["mean_R@1_low"], clean["mean_R@1_high"]] == expected.overall.interval["mean_R@1"]
        ann = line_of(result, name, "clean", None, "speaker = ann")
        assert ann["clips"] == IMAGES
        assert ann["speech_to_image_R@1"] == expected.groups["speaker"]["ann"].speech_to_image["R@1"]
        for condition, strength in (("white", 20), ("white", -5), ("telephone", 8), ("cut", 50), ("blur", 50)):
            line = line_of(result, name, condition, strength)
            assert line["drop"] == pytest.approx(clean["mean_R@1"] - line["mean_R@1"])
            assert line["drop_low"] <= line["drop"] <= line["drop_high"]
            first = line_of(result, "one", condition, strength)
            assert line["difference"] == pytest.approx(line["mean_R@1"] - first["mean_R@1"])
    assert Image.open(to / "robustness.png").width > 300
    table = (to / "table.md").read_text().splitlines()
    assert sum("telephone" in row for row in table) == 1
    assert any("speaker = bob" in row for row in table)


def test_the_same_clips_are_heard_again_and_others_with_another_seed(
    manifest: str, models: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    heard: list[Any] = []
    with_noise = changes.with_noise
    monkeypatch.setattr(changes, "with_noise", lambda *given: heard.append(given[1]) or with_noise(*given))
    for folder, seed in (("first", 0), ("second", 0), ("third", 1)):
        words = ["--conditions", "white=0", "--seed", seed, "--to", tmp_path / folder]
        run(capsys, models[0], manifest, *words)
    parts = [sorted(float(noise[0]) for noise in heard[start : start + 12]) for start in (0, 12, 24)]
    assert len(heard) == 36
    assert parts[0] == parts[1]
    assert not set(parts[0]) & set(parts[2])
    assert len(set(parts[0])) == 12


def test_an_interrupted_study_goes_on_with_what_is_missing(
    manifest: str, models: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    words = [models[0], manifest, "--to", tmp_path / "out", "--conditions", "level=12,telephone=8,cut=50"]
    counts = {"recorded": 0, "cut": 0}

    def counting(name: str) -> Any:
        real = getattr(changes, name)

        def counted(*given: Any) -> Any:
            counts[name] += 1
            return real(*given)

        return counted

    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(changes, "recorded", counting("recorded"))
        patch.setattr(changes, "through_telephone", interrupted)
        assert main(["robustness", *map(str, words)]) == 130
    assert counts == {"recorded": IMAGES * CLIPS, "cut": 0}
    for name in counts:
        monkeypatch.setattr(changes, name, counting(name))
    resumed = run(capsys, *words)
    assert counts == {"recorded": IMAGES * CLIPS, "cut": IMAGES * CLIPS}
    words[3] = tmp_path / "whole"
    assert run(capsys, *words) == resumed


def test_a_sample_of_the_queries_searches_the_whole_gallery(
    manifest: str, models: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--conditions", "cut=50,gray=0", "--clips", 3, "--to", tmp_path / "out"]
    result = run(capsys, models[0], manifest, *words)
    assert {line["clips"] for line in result["lines"]} == {3}
    assert any("3 of the 12" in note and f"{IMAGES} images" in note for note in result["notes"])


def test_clips_in_which_nothing_is_left_are_counted_and_find_nothing(
    manifest: str, models: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = run(capsys, models[0], manifest, "--conditions", "dropouts=100", "--to", tmp_path / "out")
    line = line_of(result, "one", "dropouts", 100)
    assert line["unheard"] == IMAGES * CLIPS
    assert line["mean_R@1"] == 0
    assert any(f"{IMAGES * CLIPS}" in note for note in result["notes"][2:])


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--conditions", "nose=3"], "nose"),
        (["--conditions", "3,noise"], "3"),
        (["--conditions", "room=0"], "room"),
        (["--conditions", "jpeg=500"], "500"),
        (["--split", "dev"], "dev"),
        (["--by", "accent"], "accent"),
        (["--clips", "0"], "--clips"),
        (["--noises", "nowhere"], "nowhere"),
        (["--rooms", "."], "--rooms"),
    ],
)
def test_a_mistake_is_one_line_that_names_it(
    words: list[str], named: str, manifest: str, models: list[str], tmp_path: Path, capsys: Any, monkeypatch: Any
) -> None:
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    capsys.readouterr()
    assert main(["robustness", models[0], manifest, "--to", str(tmp_path / "out"), *words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert named in line


def test_noises_and_rooms_of_the_users_own_are_heard(
    manifest: str, models: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = np.random.default_rng(0)
    for place in ("musan/music/a/1.wav", "musan/noise/b/2.wav"):
        (tmp_path / place).parent.mkdir(parents=True)
        soundfile.write(tmp_path / place, 0.1 * rng.standard_normal(4000), RATE)
    rooms = tmp_path / "rirs"
    rooms.mkdir()
    for number, seconds in enumerate((0.2, 0.5, 1.0)):
        response = np.stack([changes.drawn_room(seconds, rng)] * 2, axis=1)  # two microphones
        soundfile.write(rooms / f"{number}.wav", 0.9 * response / np.abs(response).max(), RATE)
    words = ["--conditions", "noises=0", "--noises", tmp_path / "musan", "--rooms", rooms, "--to", tmp_path / "out"]
    result = run(capsys, models[0], manifest, *words)
    points = [(line["condition"], line["strength"]) for line in result["lines"]]
    assert points[:3] == [("clean", None), ("noises:music", 0), ("noises:noise", 0)]
    assert [name for name, _ in points[3:]] == ["rooms:rirs"] * 3
    assert [strength for _, strength in points[3:]] == pytest.approx([0.2, 0.5, 1.0], rel=0.12)


def test_other_noises_in_the_same_folder_are_scored_again(
    manifest: str, models: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    rng, kept, scored = np.random.default_rng(0), tmp_path / "out" / "kept", []
    words = ["--conditions", "noises=0", "--to", tmp_path / "out", "--noises"]
    (tmp_path / "musan").mkdir()
    monkeypatch.chdir(tmp_path)
    for samples, place in ((4000, "musan"), (4000, "./musan"), (5000, "musan")):
        if place == "musan":
            soundfile.write(tmp_path / "musan" / "1.wav", 0.1 * rng.standard_normal(samples), RATE)
        run(capsys, models[0], manifest, *words, place)
        scored.append(len(list(kept.iterdir())))
    assert scored[0] == scored[1] == scored[2] - 1


def test_slower_speech_may_be_longer_than_a_file_may(
    manifest: str, models: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    noise = 0.1 * np.random.default_rng(0).standard_normal(31 * RATE)
    soundfile.write(Path(manifest).with_name("0-0.wav"), noise, RATE)
    result = run(capsys, models[0], manifest, "--conditions", "rate=0.5", "--to", tmp_path / "out")
    assert line_of(result, "one", "rate", 0.5)["unheard"] == 0


def test_a_clip_that_cannot_be_read_any_more_is_an_error_and_not_unheard(
    manifest: str, models: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    cut = changes.cut

    def cut_and_remove(*given: Any) -> Any:
        for path in Path(manifest).parent.glob("5-*.wav"):
            path.unlink(missing_ok=True)
        return cut(*given)

    monkeypatch.setattr(changes, "cut", cut_and_remove)
    words = ["--conditions", "cut=50,25", "--to", str(tmp_path / "out")]
    assert main(["robustness", models[0], manifest, *words]) == 2
    assert "corpus/5-" in capsys.readouterr().err


def test_a_file_that_is_no_room_response_is_named(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "silent.wav", np.zeros(1000), RATE)
    with pytest.raises(MediaError, match=r"silent\.wav"):
        room_conditions(tmp_path, 0)
    (tmp_path / "silent.wav").write_bytes(b"nothing")
    with pytest.raises(MediaError, match=r"silent\.wav"):
        room_conditions(tmp_path, 0)
    with pytest.raises(MediaError, match=r"silent\.wav"):
        noise_conditions(tmp_path, 0)


def test_every_condition_changes_what_it_is_given_and_the_more_the_stronger() -> None:
    """At every strength, in a clip of noise bursts and an image with edges."""
    rng = np.random.default_rng(0)
    clip = (0.1 * rng.standard_normal(2 * RATE) * np.repeat(rng.random(20), RATE // 10)).astype(np.float32)
    others = [0.1 * rng.standard_normal(RATE).astype(np.float32) for _ in range(8)]
    image = Image.fromarray(rng.integers(0, 255, (60, 80, 3), dtype=np.uint8)).resize((320, 240))
    for condition in builtin_conditions():
        before = clip if condition.kind == "clip" else image
        errors = []
        for strength in condition.strengths:
            draws = [Draw(np.random.default_rng(1), others) for _ in range(2)]
            changed, again = (condition.change(before, strength, draw) for draw in draws)
            assert np.array_equal(np.asarray(changed), np.asarray(again)), condition.name
            assert condition.least <= strength <= condition.most
            if condition.kind == "clip":
                assert changed.dtype == np.float32
            if np.shape(changed) == np.shape(before):
                errors.append(float(((np.asarray(changed, np.float64) - np.asarray(before)) ** 2).mean()))
            else:
                assert condition.name in ("rate", "cut", "crop")
        assert all(error > 0 for error in errors), condition.name
        if condition.name not in ("level", "pitch", "room"):
            assert errors == sorted(errors), condition.name


def test_the_axis_goes_from_clean_to_the_strongest_or_has_clean_between() -> None:
    ordered = {condition.name: condition.ordered for condition in builtin_conditions()}
    assert ordered["white"][1:] == [20, 10, 5, 0, -5]
    assert ordered["room"] == [0, 0.2, 0.4, 0.8, 1.2]
    assert ordered["rate"] == [0.7, 0.85, 1, 1.2, 1.4]
    assert ordered["gray"] == [100, 50, 25, 0]


def test_conditions_are_chosen_by_name_or_family_with_strengths() -> None:
    conditions = builtin_conditions()
    assert choose("", conditions) == conditions
    found = choose("white=20,pink=5,white=0", conditions)
    assert {each.name: each.strengths for each in found} == {"white": (20.0, 0.0), "pink": (5.0,)}
    found = choose("noise=20,-5, room ,jpeg=30", conditions)
    assert {each.name: each.strengths for each in found} == {
        **dict.fromkeys(["white", "pink", "hum", "babble", "talker"], (20, -5)),
        "room": (0.2, 0.4, 0.8, 1.2),
        "jpeg": (30,),
    }
    with pytest.raises(ConfigError, match="telephone"):
        choose("telefone", conditions)


def test_the_scale_of_a_picture_holds_all_panels(monkeypatch: pytest.MonkeyPatch) -> None:
    from matplotlib.figure import Figure

    drawn: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda self, *_, **__: drawn.append(self))
    low, high = Panel("low", "x", {"m": [(0.0, 10.0, 5.0, 15.0)]}), Panel("high", "x", {"m": [(0.0, 70.0, 50.0, 90.0)]})
    panels_png("title", "y", [low, high])
    for axes in drawn[0].axes:
        bottom, top = axes.get_ylim()
        assert (bottom, top > 90) == (0, True)
