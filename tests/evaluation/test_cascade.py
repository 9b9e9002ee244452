"""A recognizer and CLIP as one system: random weights, in the format that the hub has."""

from __future__ import annotations

import io
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

from refusals import refused
from saysee.cli import main
from saysee.data.manifest import Manifest, Row
from saysee.encoding.encoder import Encoder
from saysee.encoding.recognizer import SpeechRecognizer
from saysee.errors import CheckpointError, MediaError, SaySeeError
from saysee.evaluation.cascade import evaluate_cascade
from saysee.evaluation.comparison import Comparison, System
from saysee.evaluation.protocols import evaluate_vectors
from saysee.evaluation.word_errors import count_word_errors
from saysee.media.audio import load_audio

TEXTS = ["a red square", "two green stars", "a dog on the beach", "a blue circle", "red circle above a green square"]


@pytest.fixture
def corpus(tmp_path, wav_files):
    """Five clips with an image each; the last has no text."""
    rng = np.random.default_rng(4)
    rows = []
    for number, (clip, text) in enumerate(zip(wav_files, [*TEXTS[:4], None], strict=True)):
        image_file = tmp_path / f"{number}.png"
        Image.fromarray(rng.integers(0, 255, (40, 60, 3), dtype=np.uint8)).save(image_file)
        rows.append(Row(clip.name, image_file.name, str(number), "test", text))
    return Manifest(rows, tmp_path)


def clip_vectors(folder, texts, images):
    """What transformers' own CLIP gives."""
    from transformers import AutoTokenizer, CLIPImageProcessorPil, CLIPModel

    model = CLIPModel.from_pretrained(folder).eval()
    tokenizer, prepare = AutoTokenizer.from_pretrained(folder), CLIPImageProcessorPil.from_pretrained(folder)
    with torch.no_grad():
        tokens = [tokenizer(text, truncation=True, return_tensors="pt") for text in texts]
        speech = [model.get_text_features(**of_text).pooler_output[0] for of_text in tokens]
        opened = [prepare(Image.open(path).convert("RGB"), return_tensors="pt") for path in images]
        images = [model.get_image_features(**pixels).pooler_output[0] for pixels in opened]
    return tuple(torch.nn.functional.normalize(torch.stack(side), dim=-1).numpy() for side in (speech, images))


def test_its_vectors_are_clips_own_of_the_texts_and_its_word_errors_are_counted(ctc_folder, clip_folder, corpus):
    encoder, recognizer = Encoder(clip_folder), SpeechRecognizer(ctc_folder("hubert"))
    result = evaluate_cascade(encoder, corpus, recognizer, batch_size=2, progress=False)
    heard = [recognizer.hear(load_audio(corpus.clip_path(row))).text for row in corpus]
    speech, images = clip_vectors(clip_folder, heard, [corpus.image_path(row) for row in corpus])
    np.testing.assert_allclose(encoder.encode_text(heard), speech, atol=1e-5)
    speech[[not text for text in heard]] = 0  # where nothing is heard, nothing is found
    np.testing.assert_allclose(encoder.encode_images([corpus.image_path(row) for row in corpus]), images, atol=1e-5)
    assert result.overall == evaluate_vectors(speech, images, corpus).overall
    known = [(row.text, text) for row, text in zip(corpus, heard, strict=True)][:4]
    assert result.word_errors == count_word_errors(known)
    assert result.word_errors.clips == 4
    assert result.to_dict()["word_errors"]["rate"] == result.word_errors.rate
    page = io.StringIO()
    Console(file=page, width=250).print(*Comparison(["c"], [System("m", [result])]).tables())
    assert "word error rate" in page.getvalue()


def test_a_clip_in_which_nothing_is_heard_finds_nothing(ctc_folder, clip_folder, corpus, monkeypatch):
    encoder, recognizer = Encoder(clip_folder), SpeechRecognizer(ctc_folder("hubert"))
    hear, silent = recognizer.hear, load_audio(corpus.clip_path(corpus.rows[1]))
    monkeypatch.setattr(
        recognizer, "hear", lambda clip: replace(hear(clip), text="") if np.array_equal(clip, silent) else hear(clip)
    )
    result = evaluate_cascade(encoder, corpus, recognizer, progress=False)
    heard = [recognizer.hear(load_audio(corpus.clip_path(row))).text for row in corpus]
    speech, images = clip_vectors(clip_folder, heard, [corpus.image_path(row) for row in corpus])
    assert heard[1] == ""
    speech[[not text for text in heard]] = 0
    assert result.overall == evaluate_vectors(speech, images, corpus).overall
    assert result.word_errors == count_word_errors([(r.text, t) for r, t in zip(corpus, heard, strict=True)])


def test_a_bad_file_ends_it_before_the_others_are_heard(ctc_folder, clip_folder, corpus, monkeypatch):
    recognizer, heard = SpeechRecognizer(ctc_folder("hubert")), []
    hear = recognizer.hear
    monkeypatch.setattr(recognizer, "hear", lambda clip: heard.append(len(clip)) or hear(clip))
    corpus.clip_path(corpus.rows[0]).write_bytes(b"")
    refused(
        MediaError, lambda: evaluate_cascade(Encoder(clip_folder, workers=1), corpus, recognizer, batch_size=1), "0.wav"
    )
    assert len(heard) < len(corpus) - 1


def test_with_the_manifests_texts_clip_reads_what_was_said(clip_folder, corpus):
    rows = Manifest(corpus.rows[:4], corpus.root)
    encoder = Encoder(clip_folder)
    result = evaluate_cascade(encoder, rows, None, progress=False)
    speech, images = clip_vectors(clip_folder, TEXTS[:4], [rows.image_path(row) for row in rows])
    assert result.overall == evaluate_vectors(speech, images, rows).overall
    assert result.word_errors is None
    refused(SaySeeError, lambda: evaluate_cascade(encoder, corpus, None), "4.wav")


def test_the_command_gives_what_python_gives(ctc_folder, clip_folder, corpus, tmp_path, capsys):
    asr, manifest = str(ctc_folder("wav2vec2")), str(tmp_path / "corpus.jsonl")
    corpus.write(manifest)
    assert main(["evaluate", f"cascade:{asr}+{clip_folder}", manifest, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    found = evaluate_cascade(Encoder(clip_folder), corpus, SpeechRecognizer(asr), progress=False).to_dict()
    assert told.pop("cascade") == {"asr": asr, "clip": str(clip_folder)}
    assert told.pop("manifest") == manifest
    assert told.pop("seconds").keys() == found.pop("seconds").keys()
    assert told == json.loads(json.dumps(found))
    assert told["word_errors"]["clips"] == 4


def test_a_clip_without_text_encoder_is_an_error(tmp_path, clip_config, clip_folder, corpus):
    from transformers import CLIPVisionModelWithProjection

    clip_config.vision_config.projection_dim = clip_config.projection_dim
    CLIPVisionModelWithProjection(clip_config.vision_config).save_pretrained(tmp_path / "vision")
    (clip_folder / "preprocessor_config.json").rename(tmp_path / "vision" / "preprocessor_config.json")
    refused(CheckpointError, lambda: evaluate_cascade(Encoder(tmp_path / "vision"), corpus, None), "no text encoder")
    refused(CheckpointError, lambda: Encoder(clip_folder), "no processor of a CLIP", clip_folder)
