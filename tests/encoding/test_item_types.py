"""What the encoder takes and what it refuses, in any mix and with the place of what is wrong."""

from __future__ import annotations

import json
import logging
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from tests.media.test_audio import make, tone

from media_files import picture
from saysee.encoding.encoder import Encoder
from saysee.encoding.inputs import checked
from saysee.errors import InputTypeError, SaySeeError
from saysee.model.retriever import SpeechImageModel


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    torch.manual_seed(0)
    return Encoder(SpeechImageModel.from_encoders("saysee/hubert-nano", "saysee/clip-nano"))


def test_clips_of_every_form_have_the_vector_of_their_file(encoder, tmp_path):
    path = make(tmp_path / "a.wav", tone(rate=48_000), 48_000)
    samples, content = tone(rate=48_000), path.read_bytes()
    forms = [
        str(path),
        content,
        bytearray(content),
        path.open("rb"),
        (samples, 48_000),
        (torch.tensor(samples), 48_000),
    ]
    forms += [{"array": samples, "sampling_rate": 48_000}, {"array": samples.tolist(), "sampling_rate": 48_000.0}]
    forms += [{"bytes": content, "path": None}, {"bytes": None, "path": str(path)}, (np.stack([samples] * 2), 48_000)]
    vectors = encoder.encode_speech([path, *forms])
    assert (vectors @ vectors[0]).min() > 0.999
    arrays = encoder.encode_speech(torch.tensor(np.stack([samples] * 3)), sampling_rate=48_000)
    assert arrays.shape == (3, encoder.dimension)
    assert (arrays @ vectors[0]).min() > 0.999


class AudioDecoder:
    """As the datasets library gives it; ``decoded`` counts."""

    def __init__(self, samples, rate):
        self.samples, self.rate, self.decoded = samples, rate, 0

    def get_all_samples(self):
        self.decoded += 1
        if self.samples is None:
            raise RuntimeError("Invalid data found when processing input")
        return SimpleNamespace(data=torch.tensor(self.samples)[None], sample_rate=self.rate)


def test_audio_of_datasets_is_decoded_when_it_is_read_and_a_broken_row_is_one_error(encoder):
    rows = [AudioDecoder(tone(rate=48_000), 48_000) for _ in range(2)]
    checked(rows, "clip")
    assert [row.decoded for row in rows] == [0, 0]
    errors = {}
    vectors = encoder.encode("clip", [rows[0], AudioDecoder(None, 48_000), (tone(rate=48_000), 48_000)], bad=errors)
    assert vectors[0] @ vectors[2] > 0.999
    assert [(place, error.code) for place, error in errors.items()] == [(1, "undecodable")]


def test_images_of_every_form_have_the_vector_of_their_file(encoder, tmp_path):
    path = picture(tmp_path / "a.png", 1)
    pixels = np.asarray(Image.open(path).convert("RGB"))
    forms = [path.read_bytes(), Image.open(path), pixels, torch.tensor(pixels), pixels.transpose(2, 0, 1)]
    forms += [{"bytes": path.read_bytes(), "path": "x"}, {"bytes": None, "path": path}]
    vectors = encoder.encode_images([path, *forms])
    assert (vectors @ vectors[0]).min() > 0.9999
    gray = encoder.encode_images([pixels[..., 0], pixels[..., :1], np.dstack([pixels[..., 0]] * 3)])
    assert (gray @ gray[0]).min() > 0.9999


@pytest.mark.parametrize("bad", [None, float("nan"), 3, b"words", ["words"], ("a", "b"), np.array("a")])
def test_what_is_no_text_is_refused_with_its_place(encoder, bad):
    with pytest.raises(TypeError, match=r"texts\[1\]"):
        encoder.encode_text(["a dog", bad])


@pytest.mark.parametrize(
    "bad",
    [
        None,
        3.5,
        [0.1, 0.2, 0.3],
        {"array": [1.0]},
        ("a", 16_000),
        (np.zeros(9), float("inf")),
        {"array": "a", "sampling_rate": 16_000},
        object(),
    ],
)
def test_what_is_no_clip_is_refused_with_its_place_before_anything_is_read(encoder, bad):
    for errors in (None, {}):
        with pytest.raises(InputTypeError, match=r"clips\[1\]"):
            encoder.encode("clip", ["there is no such file.wav", bad], bad=errors)


@pytest.mark.parametrize("bad", [None, 3, np.zeros((4, 4, 3), np.float32), np.zeros((9, 9, 9), np.uint8), [[1]]])
def test_what_is_no_image_is_refused_with_its_place(encoder, bad):
    with pytest.raises(InputTypeError, match=r"images\[0\]"):
        encoder.encode_images([bad])


def test_one_item_without_a_list_is_refused(encoder, tmp_path):
    samples = tone(rate=16_000)
    singles = [tmp_path, "a.wav", b"RIFF", samples, torch.tensor(samples), (samples, 16_000), samples[:, None]]
    for single in [*singles, {"array": samples, "sampling_rate": 16_000}, 3, None, {tmp_path}]:
        with pytest.raises(InputTypeError, match="clips"):
            encoder.encode_speech(single)
    for single in ("a.png", Image.new("RGB", (4, 4)), np.zeros((4, 4, 3), np.uint8), 3):
        with pytest.raises(InputTypeError, match="images"):
            encoder.encode_images(single)
    for single in ("a dog", 3, None, {"a": "dog"}):
        with pytest.raises(InputTypeError, match="texts"):
            encoder.encode_text(single)
    for encode in (encoder.encode_speech, encoder.encode_images, encoder.encode_text):
        assert encode([]).shape == (0, encoder.dimension)


def test_a_text_over_the_limit_is_reported_once_with_what_is_used(encoder, caplog):
    limit = encoder.model.image_encoder.clip.config.text_config.max_position_embeddings
    words = ["dog"] * (2 * limit)
    text = " ".join(words)
    used = encoder.used_text(text)
    assert used is not None
    assert text.startswith(used)
    assert 0 < len(used) < len(text)
    assert encoder.used_text("a dog") is None
    assert encoder.used_text(used) is None
    with caplog.at_level(logging.WARNING):
        vectors = encoder.encode_text([text, text, used])
    assert sum(used in record.getMessage() for record in caplog.records) == 1
    np.testing.assert_allclose(vectors[0], vectors[2], atol=1e-5)


def test_a_tokenizer_without_a_limit_takes_that_of_the_text_encoder(encoder, tmp_path):
    encoder.model.save_pretrained(tmp_path)
    place = tmp_path / "tokenizer_config.json"
    settings = json.loads(place.read_text())
    del settings["model_max_length"]
    place.write_text(json.dumps(settings))
    bare = Encoder(str(tmp_path))
    assert bare.model.processor.tokenizer.limit > 1e6
    text = " ".join(["dog"] * 200)
    np.testing.assert_allclose(bare.encode_text([text]), encoder.encode_text([text]), atol=1e-5)
    assert bare.used_text(text) == encoder.used_text(text)


def test_a_wrong_type_is_an_error_of_saysee_too():
    assert issubclass(InputTypeError, SaySeeError)
    assert issubclass(InputTypeError, TypeError)


def test_texts_that_are_looked_at_in_threads_are_padded_all_the_same():
    """A tokenizer keeps how it pads: what several threads ask it may not change a batch that is encoded meanwhile."""
    encoder = Encoder("saysee/clip-nano", workers=4)
    texts = [" ".join(["a small red ring above a blue star"] * (3 + number % 9)) for number in range(64)]
    alone = np.concatenate([encoder.encode_text([text]) for text in texts[:9]])
    for _ in range(10):
        together = encoder.encode_text(texts, batch_size=4, progress=False)
    np.testing.assert_allclose(together[:9], alone, atol=1e-5)
