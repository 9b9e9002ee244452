"""``saysee explain``: which region of an image belongs to which moment of a clip, in three kinds of file."""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from PIL import Image

from saysee.cli import main
from saysee.encoding.attention import attend
from saysee.encoding.encoder import Encoder
from saysee.model.retriever import SpeechImageModel


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
    assert (answer["moments"], answer["rows"], answer["seconds"]) == (4, 7, 1.0)


def test_the_strip_has_an_image_for_each_moment(pair: list[str], tmp_path: Path) -> None:
    assert main(["explain", *pair, "--to", str(tmp_path / "found.png")]) == 0
    with Image.open(tmp_path / "found.png") as strip:
        assert strip.width % 4 == 0, "a second has four moments of 0.32 s"
        parts = [strip.crop((n * strip.width // 4, 0, (n + 1) * strip.width // 4, strip.height)) for n in range(4)]
    assert len({part.tobytes() for part in parts}) == 4


def test_the_page_holds_all_that_it_shows_and_plays(pair: list[str], tmp_path: Path) -> None:
    assert main(["explain", *pair, "--to", str(tmp_path / "found.html")]) == 0
    text = (tmp_path / "found.html").read_text(encoding="utf-8")
    assert not re.findall(r'(?:src|href|from)\s*=?\s*"(?!data:)', text), "it needs another file"
    kinds = dict(re.findall(r'"data:([a-z/]+);base64,([^"]+)"', text))
    assert kinds.keys() == {"image/jpeg", "audio/mpeg", "text/javascript"}
    assert b"export function drawAttention" in base64.b64decode(kinds["text/javascript"])
    values = json.loads(re.search(r"new Attention\((.+)\);", text)[1])  # type: ignore[index]
    assert np.sum(values["frames"], axis=1) == pytest.approx(np.ones(4), abs=0.01)
    assert values["box"] == [0.25, 0.0, 0.75, 1.0]


def test_what_cannot_be_explained_is_named_in_one_line(
    pair: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    soundfile.write(tmp_path / "long.wav", np.random.default_rng(0).normal(size=61 * 16_000) / 10, 16_000)
    soundfile.write(tmp_path / "silent.wav", np.zeros(16_000), 16_000)
    (tmp_path / "torn.png").write_bytes(b"torn")
    model, clip, image = pair
    for words, named in (
        ([model, clip, image, "--to", str(tmp_path / "found.mp4")], "found.mp4"),
        ([model, str(tmp_path / "long.wav"), image, "--to", str(tmp_path / "found.png")], "long.wav"),
        ([model, str(tmp_path / "silent.wav"), image, "--to", str(tmp_path / "found.png")], "silent.wav"),
        ([model, str(tmp_path / "none.wav"), image, "--to", str(tmp_path / "found.png")], "none.wav"),
        ([model, clip, str(tmp_path / "torn.png"), "--to", str(tmp_path / "found.png")], "torn.png"),
        ([model, clip, image, "--to", str(tmp_path / "no" / "found.png")], "found.png"),
    ):
        capsys.readouterr()
        assert main(["explain", *words]) == 2
        lines = capsys.readouterr().err.splitlines()
        assert named in lines[-1]
        assert len([line for line in lines if "never trained" not in line]) == 1
    assert not list(tmp_path.glob("found*"))
