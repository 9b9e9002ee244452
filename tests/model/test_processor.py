"""The processor against HuBERT's and CLIP's own."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoTokenizer, CLIPImageProcessorPil, Wav2Vec2FeatureExtractor

from saysee.model.processor import SpeechImageProcessor


@pytest.fixture
def processor(hubert_folder, clip_folder):
    return SpeechImageProcessor.from_sources(str(hubert_folder), str(clip_folder), 32, text=True)


@pytest.fixture
def image():
    rng = np.random.default_rng(0)
    return Image.fromarray(rng.integers(0, 255, (50, 70, 3), dtype=np.uint8))


def test_speech_is_prepared_as_hubert_s_own_extractor_does(processor, sounds):
    for clip in sounds:
        expected = Wav2Vec2FeatureExtractor()(clip, sampling_rate=16_000).input_values[0]
        prepared = processor.prepare_speech(clip)
        assert prepared.dtype == np.float32
        np.testing.assert_allclose(prepared, expected, atol=1e-6)
    processor.feature_extractor.do_normalize = False
    assert processor.prepare_speech(sounds[0]) is sounds[0]


def test_images_are_prepared_as_clip_s_own_processor_does(processor, image, clip_folder):
    expected = CLIPImageProcessorPil.from_pretrained(clip_folder)(image, return_tensors="pt")["pixel_values"][0]
    prepared = processor.prepare_image(image)
    assert prepared.shape == (3, 32, 32)
    torch.testing.assert_close(prepared, expected)


def test_texts_are_cut_at_the_tokenizer_s_limit_and_end_in_its_end_mark(processor, clip_folder):
    texts = ["two green stars", "a dog " * 50]
    own = AutoTokenizer.from_pretrained(clip_folder)
    for limit, most in ((77, 40), (7, 7)):
        expected = own(texts, padding=True, truncation=True, max_length=most)["input_ids"]
        assert processor.tokenizer.ids(texts, limit).tolist() == expected
        assert expected[1][most - 1 :] == [own.eos_token_id]


def test_a_text_with_half_of_a_character_has_a_question_mark_there(processor):
    tokenizer = processor.tokenizer
    assert tokenizer.ids(["a dog \ud83d"], 77).tolist() == tokenizer.ids(["a dog ?"], 77).tolist()
    assert tokenizer.used("\ud83d dog " * 50, 10).startswith("\ud83d dog")
    assert "\ud83d" not in tokenizer.unknown_words("a dog \ud83d")


def test_padding_is_zeros_and_the_mask_is_exact(processor, sounds):
    padded, mask = processor.pad(sounds)
    assert padded.shape == mask.shape == (5, 16_000)
    assert mask.dtype == torch.bool
    for row, clip in enumerate(sounds):
        np.testing.assert_array_equal(padded[row, : len(clip)].numpy(), clip)
        assert not padded[row, len(clip) :].any()
        assert mask[row].tolist() == [True] * len(clip) + [False] * (16_000 - len(clip))


def test_what_is_saved_prepares_the_same(processor, image, sounds, tmp_path):
    processor.feature_extractor.do_normalize = False
    processor.image_processor.image_mean = [0.1, 0.2, 0.3]
    processor.save_pretrained(tmp_path / "saved")
    again = SpeechImageProcessor.from_pretrained(tmp_path / "saved")
    np.testing.assert_array_equal(again.prepare_speech(sounds[0]), processor.prepare_speech(sounds[0]))
    assert torch.equal(again.prepare_image(image), processor.prepare_image(image))
    texts = ["a red square above a blue circle", "two"]
    assert torch.equal(again.tokenizer.ids(texts, 77), processor.tokenizer.ids(texts, 77))


def test_without_text_no_tokenizer_is_saved(tmp_path, image):
    processor = SpeechImageProcessor.from_sources(None, None, 32, text=False)
    processor.save_pretrained(tmp_path)
    assert not list(tmp_path.glob("tokenizer*"))
    again = SpeechImageProcessor.from_pretrained(tmp_path)
    assert again.tokenizer is None
    assert torch.equal(again.prepare_image(image), processor.prepare_image(image))
