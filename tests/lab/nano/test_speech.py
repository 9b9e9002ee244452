"""Speech for hubert-nano: whose voices it has, where its phones lie, and what augmentation does to it."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from lab.nano.sentences import sentences
from lab.nano.speech import SpeechPool, phone_name

from lab.nano import speech
from saysee.data.scenes.speakers import speaker_pools
from saysee.data.scenes.speech import SAMPLE_RATE

pytest.importorskip("espeakng_loader", reason="needs the 'scenes' extra")


def voices(split):
    return {(speaker.accent, speaker.variant) for speaker in speaker_pools()[split]}


@pytest.fixture(scope="module")
def pool(tmp_path_factory):
    return SpeechPool(tmp_path_factory.mktemp("speech"), 24, 0, "train")


@pytest.fixture
def heard(monkeypatch):
    """The speakers whom the pool lets speak."""
    found = []

    def recorded(text, speaker):
        found.append(speaker)
        return speech_of(text, speaker)

    speech_of = speech.synthesize
    monkeypatch.setattr(speech, "synthesize", recorded)
    return found


@pytest.mark.parametrize("split", ["train", "val"])
def test_only_voices_of_the_split_speak_and_never_one_of_the_test(split, heard, tmp_path):
    SpeechPool(tmp_path, 40, 3, split)
    spoken = {(speaker.accent, speaker.variant) for speaker in heard}
    assert len(heard) == 40
    assert len(spoken) > 20
    assert spoken <= voices(split)
    assert not spoken & voices("test")
    assert not voices("train") & voices("val")
    assert len({speaker.pitch for speaker in heard}) > 10
    assert len({speaker.rate for speaker in heard}) > 10


def test_pre_training_takes_the_voices_of_train_and_its_curve_those_of_val(monkeypatch, tmp_path):
    from lab.nano import hubert as hubert_nano

    asked = []

    class Stop(Exception):
        pass

    def recorded(folder, utterances, seed, split, *rest):
        asked.append((split, seed, *rest))
        if len(asked) == 3:
            raise Stop

    monkeypatch.setattr(hubert_nano, "SpeechPool", recorded)
    with pytest.raises(Stop):
        hubert_nano.pretrain_hubert_nano(tmp_path, hubert_nano.HubertNanoSettings())
    assert asked == [("train", 0, "many"), ("val", 1), ("val", 2, "unheard")]


def test_items_lie_one_after_the_other_and_phones_and_words_inside_them(pool):
    assert len(pool.items) == 24
    end = 0
    texts = sentences(0, 0, 24)
    for number, (item, text) in enumerate(zip(pool.items, texts, strict=True)):
        assert item.offset == end
        end += item.length
        sound = pool.waveform(number)
        assert sound.dtype == np.float32
        assert len(sound) == item.length
        assert 0.02 < np.abs(sound).max() <= 1
        for found in (item.phones, item.words):
            assert all(0 <= start < stop <= item.length / SAMPLE_RATE + 1e-3 for _, start, stop in found)
        assert [word for word, _, _ in item.words] == [
            word.strip(",?").lower().replace("'", "") for word in text.split()
        ]
        assert len(item.phones) > len(item.words)
    assert end == len(pool.samples)


def test_stress_is_no_phone_of_its_own(pool):
    assert phone_name("'a") == "a"
    assert phone_name("=") == "="
    names = {name for item in pool.items for name, _, _ in item.phones}
    assert 25 < len(names) < 120
    assert not any(name[0] in "',%" and len(name) > 1 for name in names)


def test_the_same_seed_gives_the_same_pool_and_a_missing_chunk_is_made_again(pool, tmp_path, monkeypatch):
    again = SpeechPool(tmp_path / "again", 24, 0, "train")
    assert (again.samples == pool.samples).all()
    assert again.items == pool.items
    assert SpeechPool(tmp_path / "other", 4, 1, "train").items[0] != pool.items[0]

    monkeypatch.setattr(speech, "CHUNK", 4)
    monkeypatch.setattr(speech, "make_missing", one_after_the_other)
    first = SpeechPool(tmp_path / "c", 10, 0, "train")
    chunks = sorted((tmp_path / "c").iterdir())
    assert [len(json.loads((chunk / "items.json").read_text())) for chunk in chunks] == [4, 4, 2]
    times = [(chunk / "samples.npy").stat().st_mtime_ns for chunk in chunks]
    shutil.rmtree(chunks[1])
    (tmp_path / "c" / f".writing-{chunks[1].name}").mkdir()
    second = SpeechPool(tmp_path / "c", 10, 0, "train")
    assert second.items == first.items
    assert (second.samples == first.samples).all()
    assert sorted((tmp_path / "c").iterdir()) == chunks
    assert [(chunks[i] / "samples.npy").stat().st_mtime_ns for i in (0, 2)] == [times[0], times[2]]


def one_after_the_other(what, chunks, make):
    from lab.nano.chunks import make_missing

    for chunk in chunks:
        make_missing(what, [chunk], make)
