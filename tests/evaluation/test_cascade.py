"""A recogniser and CLIP as one system: random weights, in the format that the hub has."""

from __future__ import annotations

import io
import json
from functools import partial

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image
from rich.console import Console

from saysee.cli import main
from saysee.data.manifest import Manifest, Row
from saysee.encoding.encoder import Encoder
from saysee.encoding.recognizer import SpeechRecognizer
from saysee.errors import CheckpointError, SaySeeError
from saysee.evaluation.cascade import evaluate_cascade
from saysee.evaluation.protocols import evaluate_vectors, to_table
from saysee.evaluation.word_errors import count_word_errors

TEXTS = ["a red square", "two green stars", "a dog on the beach", "a blue circle", "red circle above a green square"]
MARKS = ["<|startoftranscript|>", "<|en|>", "<|de|>", "<|translate|>", "<|transcribe|>", "<|nospeech|>"]
MARKS += ["<|notimestamps|>"]
SIZE = {"layers": 1, "attention_heads": 2, "ffn_dim": 32}


@pytest.fixture
def whisper_folder(tmp_path):
    """A multilingual Whisper that hears one second and writes bytes."""
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import (
        GenerationConfig,
        WhisperConfig,
        WhisperFeatureExtractor,
        WhisperForConditionalGeneration,
        WhisperProcessor,
        WhisperTokenizer,
    )

    letters = [letter for letter in sorted(ByteLevel.alphabet()) if letter.isascii()] + ["Ġ"]
    tokenizer = WhisperTokenizer(vocab={letter: number for number, letter in enumerate(letters)}, merges=[])
    tokenizer.add_tokens(MARKS, special_tokens=True)
    number = dict(zip(MARKS, tokenizer.convert_tokens_to_ids(MARKS), strict=True))
    size = {f"{side}_{name}": value for side in ("encoder", "decoder") for name, value in SIZE.items()}
    marks = {"pad_token_id": tokenizer.eos_token_id, "eos_token_id": tokenizer.eos_token_id}
    marks |= {"bos_token_id": tokenizer.eos_token_id, "decoder_start_token_id": number["<|startoftranscript|>"]}
    config = WhisperConfig(
        vocab_size=len(tokenizer),
        num_mel_bins=16,
        d_model=16,
        max_source_positions=50,
        max_target_positions=32,
        init_std=0.5,  # with the usual 0.02 so small a model writes the same of every sound
        **size,
        **marks,
    )
    torch.manual_seed(0)
    model = WhisperForConditionalGeneration(config)
    model.generation_config = GenerationConfig(
        max_length=16,
        is_multilingual=True,
        lang_to_id={mark: number[mark] for mark in ("<|en|>", "<|de|>")},
        task_to_id={"transcribe": number["<|transcribe|>"], "translate": number["<|translate|>"]},
        no_timestamps_token_id=number["<|notimestamps|>"],
        **marks,
    )
    model.save_pretrained(tmp_path / "whisper")
    extractor = WhisperFeatureExtractor(feature_size=16, chunk_length=1)
    WhisperProcessor(extractor, tokenizer).save_pretrained(tmp_path / "whisper")
    return tmp_path / "whisper"


@pytest.fixture
def ctc_folder(tmp_path, hubert_configs):
    """Makes a CTC recogniser: wav2vec 2.0 of the base kind (group norm) or HuBERT of the large kind (layer norm)."""
    from transformers import (
        HubertForCTC,
        Wav2Vec2Config,
        Wav2Vec2CTCTokenizer,
        Wav2Vec2FeatureExtractor,
        Wav2Vec2ForCTC,
        Wav2Vec2Processor,
    )

    def make(kind):
        letters = ["<pad>", "<s>", "</s>", "<unk>", "|", *"ABCDEFGHIJ"]
        (tmp_path / "vocab.json").write_text(json.dumps({letter: number for number, letter in enumerate(letters)}))
        tokenizer = Wav2Vec2CTCTokenizer(str(tmp_path / "vocab.json"))
        config = hubert_configs["base" if kind == "wav2vec2" else "large"]
        config.vocab_size, config.initializer_range = len(letters), 1.0
        if kind == "wav2vec2":
            given = {name: value for name, value in config.to_dict().items() if name != "model_type"}
            config = Wav2Vec2Config(**given)
        torch.manual_seed(0)
        model = (Wav2Vec2ForCTC if kind == "wav2vec2" else HubertForCTC)(config)
        model.save_pretrained(tmp_path / kind)
        extractor = Wav2Vec2FeatureExtractor(return_attention_mask=kind != "wav2vec2")
        Wav2Vec2Processor(extractor, tokenizer).save_pretrained(tmp_path / kind)
        return tmp_path / kind

    return make


@pytest.fixture
def wav_files(tmp_path, sounds):
    paths = []
    for number, clip in enumerate(sounds):
        paths.append(tmp_path / f"{number}.wav")
        soundfile.write(paths[-1], clip, 16_000, subtype="FLOAT")
    return paths


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


def refused(error, action, *words):
    with pytest.raises(error) as refusal:
        action()
    assert "\n" not in str(refusal.value)
    for word in words:
        assert str(word) in str(refusal.value)


# ---------------------------------------------------------------------- recognisers


def test_whisper_gives_the_same_text_in_any_batch_as_transformers_alone(whisper_folder, wav_files, sounds):
    from transformers import WhisperForConditionalGeneration, WhisperProcessor

    recognizer = SpeechRecognizer(whisper_folder)
    heard = recognizer.transcribe(wav_files, batch_size=4, progress=False)
    assert heard == recognizer.transcribe(wav_files, batch_size=1, progress=False)
    assert len(set(heard)) > 2
    processor = WhisperProcessor.from_pretrained(whisper_folder)
    model = WhisperForConditionalGeneration.from_pretrained(whisper_folder)
    for text, clip in zip(heard, sounds, strict=True):
        tokens = model.generate(**processor(clip, sampling_rate=16_000, return_tensors="pt"))
        assert text == processor.decode(tokens[0], skip_special_tokens=True).strip()


def test_a_clip_longer_than_whispers_window_is_recognized_window_by_window(whisper_folder, tmp_path, sounds):
    long = np.concatenate([sounds[0], sounds[4], sounds[3]])  # 2.1 s; the window is 1 s
    soundfile.write(tmp_path / "long.wav", long, 16_000, subtype="FLOAT")
    parts = []
    for number, start in enumerate(range(0, len(long), 16_000)):
        parts.append(tmp_path / f"part{number}.wav")
        soundfile.write(parts[-1], long[start : start + 16_000], 16_000, subtype="FLOAT")
    recognizer = SpeechRecognizer(whisper_folder)
    whole, *alone = recognizer.transcribe([tmp_path / "long.wav", *parts], batch_size=2, progress=False)
    assert len(alone) == 3
    assert whole == " ".join(text for text in alone if text)


@pytest.mark.parametrize("kind", ["wav2vec2", "hubert"])
def test_a_ctc_recognizer_gives_each_clip_the_text_that_it_has_alone(kind, ctc_folder, wav_files, sounds):
    from transformers import AutoModelForCTC, Wav2Vec2Processor

    folder = ctc_folder(kind)
    heard = SpeechRecognizer(folder).transcribe(wav_files, batch_size=4, progress=False)
    assert len(set(heard)) > 2
    processor, model = Wav2Vec2Processor.from_pretrained(folder), AutoModelForCTC.from_pretrained(folder)
    for text, clip in zip(heard, sounds, strict=True):
        with torch.no_grad():
            logits = model(processor(clip, sampling_rate=16_000, return_tensors="pt").input_values).logits
        assert text == processor.decode(logits[0].argmax(dim=-1)).strip()


def test_a_recognizer_takes_a_language_that_it_knows(whisper_folder, ctc_folder, wav_files):
    told = {
        tag: SpeechRecognizer(whisper_folder, language=tag).transcribe(wav_files, progress=False)
        for tag in ("en", "de")
    }
    assert told["en"] != told["de"]
    refused(SaySeeError, lambda: SpeechRecognizer(whisper_folder, language="fr"), "'fr'", "de, en")
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


# ---------------------------------------------------------------------- the cascade


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
    heard = recognizer.transcribe([corpus.clip_path(row) for row in corpus], progress=False)
    speech, images = clip_vectors(clip_folder, heard, [corpus.image_path(row) for row in corpus])
    np.testing.assert_allclose(encoder.encode_text(heard), speech, atol=1e-5)
    np.testing.assert_allclose(encoder.encode_images([corpus.image_path(row) for row in corpus]), images, atol=1e-5)
    assert result.overall == evaluate_vectors(speech, images, corpus).overall
    known = [(row.text, text) for row, text in zip(corpus, heard, strict=True)][:4]
    assert result.word_errors == count_word_errors(known)
    assert result.word_errors.clips == 4
    assert result.to_dict()["word_errors"]["rate"] == result.word_errors.rate
    page = io.StringIO()
    Console(file=page, width=250).print(to_table(result))
    assert "word error rate" in page.getvalue()


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
