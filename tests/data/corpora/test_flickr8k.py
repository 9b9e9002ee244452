"""Flickr8k: the same manifest from every layout of a copy, and what is missing is reported by name."""

from __future__ import annotations

import json
import re
import shutil
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from saysee.data.corpora.flickr8k import ALLOW_MISSING, prepare_flickr8k
from saysee.data.manifest import Manifest
from saysee.data.verify import verify
from saysee.errors import ConfigError, ManifestError, SaySeeError

# Real names of Flickr8k, and two of modified copies: with a space, and with an accent.
SPLITS = {
    "train": ["1000268201_693b08cb0e", "1001773457_577c3a7d70", "two dogs"],
    "dev": ["2090545563_a4e66ec76b"],
    "test": ["3385593926_d3e9c21170", "été_2"],
}
STEMS = [stem for stems in SPLITS.values() for stem in stems]
OUTSIDE = "9999999999_0000000000"  # Flickr8k has 91 images that are in no split


def text_of(stem: str, number: int) -> str:
    return f'A "caption" {number}, of {stem} .'


def tokens() -> str:
    lines = [f"{stem}.jpg#{n}\t{text_of(stem, n)}" for stem in [*STEMS, OUTSIDE] for n in range(2)]
    return "\n".join([*lines, "2258277193_586949ec62.jpg.1#0\tthe one odd name of the real list"]) + "\n"


def split_lists(files: Any, folder: Path, windows: bool = False) -> None:
    for split, stems in SPLITS.items():
        content = "".join(f"{stem}.jpg\n" for stem in stems)
        files.text(folder / f"Flickr_8k.{split}Images.txt", content, windows=windows)


def clip_lists(files: Any, folder: Path, windows: bool = False) -> None:
    clips = [(f"{stem}_{n}.wav", f"{stem}.jpg", n) for stem in STEMS for n in range(2)]
    files.text(folder / "wav2capt.txt", "".join(f"{wav} {image} #{n}\n" for wav, image, n in clips), windows=windows)
    speakers = "".join(f"{wav} {n + 1}\n" for wav, _, n in clips)
    files.text(folder / "wav2spk.txt", speakers, windows=windows)


def published(files: Any, root: Path) -> tuple[Path, Path, Path | None]:
    """As the corpus was published."""
    for stem in STEMS:
        files.image(root / "Flicker8k_Dataset" / f"{stem}.jpg")
        for n in range(2):
            files.clip(root / "flickr_audio" / "wavs" / f"{stem}_{n}.wav")
    clip_lists(files, root / "flickr_audio")
    split_lists(files, root / "Flickr8k_text")
    files.text(root / "Flickr8k_text" / "Flickr8k.token.txt", tokens())
    files.text(root / "Flickr8k_text" / "Flickr8k.lemma.token.txt", tokens().replace("caption", "lemma"))
    return root / "flickr_audio", root / "Flicker8k_Dataset", root / "Flickr8k_text"


def windows_copy(files: Any, root: Path) -> tuple[Path, Path, Path | None]:
    """Unpacked on Windows: other folders, suffixes in capitals, CR LF and byte order marks, and the wavs are named."""
    for stem in STEMS:
        files.image(root / "archive" / "Images" / f"{stem}.JPG")
        for n in range(2):
            files.clip(root / "audio" / "flickr_audio" / "flickr_audio" / "wavs" / f"{stem}_{n}.WAV")
    clip_lists(files, root / "audio" / "flickr_audio" / "flickr_audio", windows=True)
    split_lists(files, root / "archive" / "text", windows=True)
    files.text(root / "archive" / "text" / "Flickr8k.token.txt", tokens(), windows=True)
    return root / "audio" / "flickr_audio" / "flickr_audio" / "wavs", root / "archive", None


def flat_copy(files: Any, root: Path) -> tuple[Path, Path, Path | None]:
    """All in one folder, clips as FLAC, accents decomposed as macOS does."""
    for stem in STEMS:
        on_disk = unicodedata.normalize("NFD", stem)
        files.image(root / f"{on_disk}.jpeg")
        files.text(root / f"._{on_disk}.jpeg", "what macOS packs beside a file")
        for n in range(2):
            files.clip(root / f"{on_disk}_{n}.flac")
    clip_lists(files, root)
    split_lists(files, root)
    files.text(root / "Flickr8k.token.txt", tokens())
    return root, root, None


def karpathy_copy(files: Any, root: Path) -> tuple[Path, Path, Path | None]:
    """Splits and captions as Karpathy's JSON, no wav2capt.txt, and the captions in another order in a CSV table."""
    for stem in STEMS:
        files.image(root / "Images" / f"{stem}.jpg")
        for n in range(2):
            files.clip(root / "wavs" / f"{stem}_{n}.wav")
    files.text(root / "captions.txt", captions_table())
    records = [
        {
            "filename": f"{stem}.jpg",
            "split": split.replace("dev", "val"),
            "sentences": [{"raw": text_of(stem, n), "tokens": []} for n in range(2)],
        }
        for split, stems in SPLITS.items()
        for stem in stems
    ]
    files.text(root / "karpathy" / "dataset_flickr8k.json", json.dumps({"images": records}))
    speakers = "".join(f"{stem}_{n}.wav {n + 1}\n" for stem in STEMS for n in range(2))
    files.text(root / "wav2spk.txt", speakers)
    return root / "wavs", root / "Images", root / "karpathy"


def fast_vgs_copy(files: Any, root: Path) -> tuple[Path, Path, Path | None]:
    """The JSON files of FaST-VGS beside flickr_audio, and one that is none of them."""
    audio, images, _ = published(files, root)
    shutil.rmtree(root / "Flickr8k_text")
    (audio / "wav2capt.txt").unlink()
    for split, stems in SPLITS.items():
        data = [
            {
                "uttid": f"{stem}_{n}",
                "speaker": str(n + 1),
                "asr_text": text_of(stem, n),
                "wav": f"{stem}_{n}.wav",
                "image": f"{stem}.jpg",
            }
            for stem in stems
            for n in (1, 0)
        ]
        content = {"image_base_path": "/home/images", "audio_base_path": "/home/flickr_audio", "data": data}
        files.text(root / f"flickr8k_{split}.json", json.dumps(content))
        files.text(root / f"flickr8k_{split}_imgid2idex.json", "{}")
    return audio, images, None


def captions_table() -> str:
    """As Kaggle has it: the captions of an image in another order than their numbers."""
    lines = []
    for stem in STEMS:
        for n in (1, 0):
            quoted = text_of(stem, n).replace('"', '""')
            lines.append(f'{stem}.jpg,"{quoted}"\n')
    return "".join(["image,caption\n", *lines])


LAYOUTS = [published, windows_copy, flat_copy, karpathy_copy, fast_vgs_copy]
Lay = Callable[[Any, Path], tuple[Path, Path, Path | None]]


@pytest.mark.parametrize("lay", LAYOUTS)
def test_every_layout_gives_the_same_manifest(tmp_path: Path, files: Any, lay: Lay) -> None:
    audio, images, text = lay(files, tmp_path / "corpus")
    prepared = prepare_flickr8k(audio, images, tmp_path / "flickr8k.jsonl", text=text, allow_missing=0)
    manifest = Manifest.read(prepared.manifest)
    found = {(row.image_id, row.split, row.text, row.speaker, row.language) for row in manifest}
    names = {"train": "train", "dev": "val", "test": "test"}
    assert found == {
        (stem, names[split], text_of(stem, n), str(n + 1), "en")
        for split, stems in SPLITS.items()
        for stem in stems
        for n in range(2)
    }
    for row in manifest:
        clip, image = manifest.clip_path(row), manifest.image_path(row)
        assert not Path(row.clip).is_absolute()
        assert unicodedata.normalize("NFC", clip.stem).rpartition("_")[0] == row.image_id
        assert unicodedata.normalize("NFC", image.stem) == row.image_id
    assert verify(manifest, workers=1) == []
    assert prepared.problems.counts() == {"missing": 0, "empty": 0, "extra": 0}
    assert prepared.problems_file is None
    assert prepared.clips == {"train": 6, "val": 2, "test": 4}
    assert prepared.images == {"train": 3, "val": 1, "test": 2}


@pytest.mark.parametrize("sentences", [5, [{"raw": 5}]])
def test_sentences_that_are_no_texts_are_rejected(tmp_path: Path, files: Any, sentences: Any) -> None:
    audio, images, text = karpathy_copy(files, tmp_path)
    path = tmp_path / "karpathy" / "dataset_flickr8k.json"
    records = json.loads(path.read_text())
    records["images"][0]["sentences"] = sentences
    path.write_text(json.dumps(records))
    with pytest.raises(ManifestError, match="image 1"):
        prepare_flickr8k(audio, images, tmp_path / "m.jsonl", text=text)


def spoil(files: Any, root: Path) -> None:
    """Each known defect once."""
    wavs, photos = root / "flickr_audio" / "wavs", root / "Flicker8k_Dataset"
    (wavs / "two dogs_1.wav").unlink()
    (wavs / "été_2_0.wav").write_bytes(b"")
    (photos / "1001773457_577c3a7d70.jpg").unlink()  # its two clips then have no image
    files.clip(wavs / "1000268201_693b08cb0e_0.wav", rate=44_100)
    files.image(photos / f"{OUTSIDE}.jpg")
    files.clip(wavs / f"{OUTSIDE}_0.wav")
    with (root / "Flickr8k_text" / "Flickr8k.token.txt").open("a") as lines:
        lines.write("1000268201_693b08cb0e.jpg#2\tA caption without a clip .\n")


MISSING = {"1001773457_577c3a7d70.jpg", "1000268201_693b08cb0e_2.wav", "two dogs_1.wav", "été_2_0.wav"}


def test_defects_are_rejected_in_one_line_with_their_names(tmp_path: Path, files: Any) -> None:
    audio, images, text = published(files, tmp_path)
    spoil(files, tmp_path)
    with pytest.raises(SaySeeError) as error:
        prepare_flickr8k(audio, images, tmp_path / "m.jsonl", text=text, allow_missing=3)
    message = str(error.value)
    assert "\n" not in message
    for name in MISSING:
        assert name in message
    assert "--allow-missing 4" in message
    assert not (tmp_path / "m.jsonl").exists()
    assert (tmp_path / "m.jsonl.problems.json").exists()


def test_defects_within_the_limit_are_skipped_and_listed(tmp_path: Path, files: Any) -> None:
    audio, images, text = published(files, tmp_path)
    spoil(files, tmp_path)
    prepared = prepare_flickr8k(audio, images, tmp_path / "m.jsonl", text=text, allow_missing=4)
    assert json.loads((tmp_path / "m.jsonl.problems.json").read_text(encoding="utf-8")) == {
        "missing": {
            "clips": ["1000268201_693b08cb0e_2.wav", "two dogs_1.wav"],
            "images": ["1001773457_577c3a7d70.jpg"],
        },
        "empty": {"clips": ["été_2_0.wav"], "images": []},
        "extra": {"clips": [f"wavs/{OUTSIDE}_0.wav"], "images": [f"{OUTSIDE}.jpg"]},
    }
    manifest = Manifest.read(prepared.manifest)
    names = {manifest.clip_path(row).name for row in manifest}
    assert len(names) == 12 - 4
    assert "1000268201_693b08cb0e_0.wav" in names  # another sampling rate is not a defect
    assert not names & MISSING
    assert verify(manifest, workers=1) == []
    notes = "\n".join(prepared.notes)
    assert "5 listed clips skipped" in notes
    assert f"1 extra image ({OUTSIDE}.jpg)" in notes


def test_a_repaired_copy_leaves_no_list_of_problems(tmp_path: Path, files: Any) -> None:
    audio, images, text = published(files, tmp_path)
    missing = tmp_path / "flickr_audio" / "wavs" / "two dogs_1.wav"
    missing.unlink()
    assert prepare_flickr8k(audio, images, tmp_path / "m.jsonl", text=text).problems_file is not None
    files.clip(missing)
    assert prepare_flickr8k(audio, images, tmp_path / "m.jsonl", text=text).problems_file is None
    assert not (tmp_path / "m.jsonl.problems.json").exists()


def test_the_few_clips_that_copies_are_known_to_lack_are_allowed(tmp_path: Path, files: Any) -> None:
    audio, images, text = published(files, tmp_path)
    for stem in STEMS[:-1]:
        for n in range(2):
            (tmp_path / "flickr_audio" / "wavs" / f"{stem}_{n}.wav").write_bytes(b"")
    assert ALLOW_MISSING == 10
    prepared = prepare_flickr8k(audio, images, tmp_path / "m.jsonl", text=text)
    assert prepared.problems.counts()["empty"] == 10


def test_a_image_without_any_clip_is_counted(tmp_path: Path, files: Any) -> None:
    audio, images, text = published(files, tmp_path)
    (tmp_path / "Flickr8k_text" / "Flickr8k.token.txt").unlink()
    (audio / "wav2capt.txt").unlink()
    for n in range(2):
        (audio / "wavs" / f"two dogs_{n}.wav").unlink()
    with pytest.raises(SaySeeError, match=r"1 missing clip \(any clip of two dogs\.jpg\)"):
        prepare_flickr8k(audio, images, tmp_path / "m.jsonl", text=text, allow_missing=0)


def test_a_difference_from_the_published_counts_is_reported(tmp_path: Path, files: Any) -> None:
    audio, images, text = published(files, tmp_path)
    notes = prepare_flickr8k(audio, images, tmp_path / "m.jsonl", text=text).notes
    assert any("Flickr8k" in note and "3 images in train, not 6,000" in note for note in notes)


def test_without_captions_the_manifest_has_no_text_and_a_note_says_so(tmp_path: Path, files: Any) -> None:
    audio, images, text = published(files, tmp_path)
    (tmp_path / "Flickr8k_text" / "Flickr8k.token.txt").unlink()
    prepared = prepare_flickr8k(audio, images, tmp_path / "m.jsonl", text=text)
    assert set(Manifest.read(prepared.manifest).column("text")) == {None}
    assert any("no text" in note for note in prepared.notes)


def test_a_image_in_two_splits_is_rejected(tmp_path: Path, files: Any) -> None:
    audio, images, text = published(files, tmp_path)
    with (tmp_path / "Flickr8k_text" / "Flickr_8k.testImages.txt").open("a") as lines:
        lines.write("two dogs.jpg\n")
    with pytest.raises(ManifestError, match=r"'two dogs\.jpg' is in the splits 'train' and 'test'"):
        prepare_flickr8k(audio, images, tmp_path / "m.jsonl", text=text)


@pytest.mark.parametrize("name", ["flickr_audio/wav2capt.txt", "Flickr8k_text/Flickr8k.token.txt"])
def test_a_damaged_line_is_rejected_by_its_number(tmp_path: Path, files: Any, name: str) -> None:
    audio, images, text = published(files, tmp_path)
    content = (tmp_path / name).read_text(encoding="utf-8").splitlines()
    (tmp_path / name).write_text("\n".join([content[0], "rubbish", *content[1:]]), encoding="utf-8")
    with pytest.raises(ManifestError, match=re.escape(str(tmp_path / name)) + ": line 2 'rubbish'"):
        prepare_flickr8k(audio, images, tmp_path / "m.jsonl", text=text)


def test_missing_lists_wrong_folders_and_wrong_settings_are_rejected(tmp_path: Path, files: Any) -> None:
    audio, images, text = published(files, tmp_path / "c")
    with pytest.raises(SaySeeError, match="--text"):
        prepare_flickr8k(audio / "wavs", images, tmp_path / "m.jsonl")
    with pytest.raises(SaySeeError, match="none of the 12 listed clips"):
        prepare_flickr8k(images, images, tmp_path / "m.jsonl", text=text, allow_missing=100)
    with pytest.raises(ManifestError, match=r"\.csv"):
        prepare_flickr8k(audio, images, tmp_path / "m.csv", text=text)
    with pytest.raises(ConfigError, match="--allow-missing is -1"):
        prepare_flickr8k(audio, images, tmp_path / "m.jsonl", text=text, allow_missing=-1)


def test_captions_in_an_order_that_nothing_proves_are_not_used(tmp_path: Path, files: Any) -> None:
    """The n-th line of an image in Kaggle's table is often not the n-th caption: the text would be of another clip."""
    audio, images, text = published(files, tmp_path / "c")
    assert text is not None
    (text / "Flickr8k.token.txt").unlink()
    files.text(text / "captions.txt", captions_table())
    prepared = prepare_flickr8k(audio, images, tmp_path / "m.jsonl", text=text)
    assert {row.text for row in Manifest.read(prepared.manifest)} == {None}
    assert prepared.clips == {"train": 6, "val": 2, "test": 4}
    assert any("captions.txt" in note and "12 texts" in note for note in prepared.notes)
    numbered = "".join(f'{stem}.jpg#{n},"Text {n}, of {stem}"\n' for stem in STEMS for n in (1, 0))
    files.text(text / "captions.txt", "image,caption\n" + numbered)
    manifest = Manifest.read(prepare_flickr8k(audio, images, tmp_path / "m.jsonl", text=text).manifest)
    for row in manifest:
        number = manifest.clip_path(row).stem.rpartition("_")[2]
        assert row.text == f"Text {number}, of {row.image_id}"


def test_karpathys_captions_are_used_beside_the_split_lists(tmp_path: Path, files: Any) -> None:
    audio, images, text = published(files, tmp_path / "c")
    assert text is not None
    (text / "Flickr8k.token.txt").unlink()
    files.text(text / "captions.txt", captions_table())
    sentences = [{"raw": text_of("two dogs", n)} for n in range(2)]
    record = {"filename": "two dogs.jpg", "split": "train", "sentences": sentences}
    files.text(text / "dataset_flickr8k.json", json.dumps({"images": [record]}))
    manifest = Manifest.read(prepare_flickr8k(audio, images, tmp_path / "m.jsonl", text=text).manifest)
    texts = {manifest.clip_path(row).stem: row.text for row in manifest}
    assert texts["two dogs_1"] == text_of("two dogs", 1)
    assert [stem for stem, found in texts.items() if found] == ["two dogs_0", "two dogs_1"]


def yoruba(files: Any, root: Path) -> dict[str, tuple[str, str, int]]:
    """As YFACC was published: 48 kHz clips, and copies of 16 kHz; one clip of an image. Clip → split, image, number."""
    clips = {}
    for split, stems in SPLITS.items():
        lines = ""
        for at, stem in enumerate(stems):
            name = f"S001_{stem}_{at}"
            files.clip(root / f"flickr_audio_yoruba_{split}" / f"{name}.wav", rate=48_000)
            files.image(root / "Flicker8k_Dataset" / f"{stem}.jpg")
            clips[name] = (split.replace("dev", "val"), stem, at)
            lines += f"{stem}.jpg#{at}\tAjá kan ń sáré {at}\n"
        files.text(root / "Flickr8k_text" / f"Flickr8k.token.{split}_yoruba.txt", lines)
    files.image(root / "Flicker8k_Dataset" / f"{OUTSIDE}.jpg")  # not translated
    return clips


@pytest.mark.parametrize("lists", ["yoruba", "english too", "none"])
def test_a_copy_of_another_language_has_one_clip_an_image(tmp_path: Path, files: Any, lists: str) -> None:
    clips = yoruba(files, tmp_path / "c")
    text = tmp_path / "c" / "Flickr8k_text"
    if lists == "none":
        shutil.rmtree(text)
    elif lists == "english too":
        split_lists(files, text)
        files.text(text / "Flickr8k.token.txt", tokens())
    images = tmp_path / "c" / "Flicker8k_Dataset"
    prepared = prepare_flickr8k(tmp_path / "c", images, tmp_path / "m.jsonl", allow_missing=0)
    manifest = Manifest.read(prepared.manifest)
    found = {manifest.clip_path(row).stem: row for row in manifest}
    assert {name: (row.split, row.image_id, row.speaker, row.language) for name, row in found.items()} == {
        name: (split, stem, "S001", "yo") for name, (split, stem, _) in clips.items()
    }
    for name, (_, _, number) in clips.items():
        assert found[name].text == (None if lists == "none" else f"Ajá kan ń sáré {number}")
    assert prepared.problems.extra["images"] == [f"{OUTSIDE}.jpg"]


def test_english_texts_are_not_those_of_translated_clips(tmp_path: Path, files: Any) -> None:
    for stem in STEMS:
        files.clip(tmp_path / "audio" / f"sp1-F_{stem}_0.wav")
        files.image(tmp_path / "Images" / f"{stem}.jpg")
    split_lists(files, tmp_path / "text")
    english = files.text(tmp_path / "text" / "Flickr8k.token.txt", tokens())
    words = ("audio", "Images", "m.jsonl")
    audio, images, to = (tmp_path / word for word in words)
    prepared = prepare_flickr8k(audio, images, to, text=tmp_path / "text", allow_missing=0)
    rows = Manifest.read(prepared.manifest)
    assert {(row.text, row.language, row.speaker) for row in rows} == {(None, None, "sp1-F")}
    assert any(str(english) in note for note in prepared.notes)
    prepare_flickr8k(audio, images, to, text=tmp_path / "text", language="ha")
    assert {row.language for row in Manifest.read(to)} == {"ha"}


@pytest.mark.parametrize("change", ["texts", "lists", "one clip an image"])
def test_the_language_is_unknown_unless_the_lists_of_the_english_corpus_have_the_clips(
    tmp_path: Path, files: Any, change: str
) -> None:
    audio, images, text = published(files, tmp_path / "c")
    assert text is not None
    if change == "texts":
        japanese = tokens().replace("caption", "二匹の犬が浜辺を走っている。子供が遊んでいる。")
        files.text(text / "Flickr8k.token.txt", japanese)
    elif change == "lists":
        (audio / "wav2capt.txt").unlink()
        (audio / "wav2spk.txt").unlink()
    else:
        (text / "Flickr8k.token.txt").unlink()
        files.text(audio / "wav2capt.txt", "".join(f"{stem}_0.wav {stem}.jpg #0\n" for stem in STEMS))
    prepare_flickr8k(audio, images, tmp_path / "m.jsonl", text=text)
    assert {row.language for row in Manifest.read(tmp_path / "m.jsonl")} == {None}
    prepare_flickr8k(audio, images, tmp_path / "m.jsonl", text=text, language="ja")
    assert {row.language for row in Manifest.read(tmp_path / "m.jsonl")} == {"ja"}
