"""Places audio: the same manifest from every layout of a copy."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from saysee.data.corpora.places import prepare_places
from saysee.data.manifest import Manifest
from saysee.data.verify import verify
from saysee.errors import ConfigError, ManifestError, SaySeeError

# Places205 has one name in several categories; the last two differ only by it.
IMAGES = {
    "train": ["a/abbey/gsun_0a1b.jpg", "c/café terrace/gsun 2c3d.jpg", "a/abbey/00000001.jpg"],
    "val": ["b/beach/00000001.jpg"],
}


def entries(split: str) -> list[dict[str, str]]:
    found = []
    for number, image in enumerate(IMAGES[split]):
        uttid = f"A1V95SQ-{split}{number}_é {number}"
        found.append(
            {
                "uttid": uttid,
                "speaker": f"A{number}",
                "asr_text": f"this is é {split} {number}",
                "wav": f"wavs/{number}/utterance_{uttid}.wav",
                "image": image,
            }
        )
    return found


def write_json(files: Any, folder: Path, name: str = "{}.json", windows: bool = False, **more: Any) -> None:
    for split in IMAGES:
        content = {
            "image_base_path": "/data/vision/images256/",
            "audio_base_path": "/data/sls/",
            "data": entries(split),
        }
        files.text(
            folder / name.format(split), json.dumps(content | more, ensure_ascii=False, indent=1), windows=windows
        )


Layout = tuple[Path | Sequence[Path], Path, Path]


def published(files: Any, root: Path) -> Layout:
    for split in IMAGES:
        for found in entries(split):
            files.clip(root / "PlacesAudio_400k_distro" / found["wav"])
            files.image(root / "images256" / found["image"])
    write_json(files, root / "PlacesAudio_400k_distro" / "metadata")
    return root / "PlacesAudio_400k_distro" / "metadata", root / "PlacesAudio_400k_distro", root / "images256"


def windows_copy(files: Any, root: Path) -> Layout:
    """Flat clips as FLAC, nested images, JSON files with byte order marks, and a second release of them."""
    for split in IMAGES:
        for found in entries(split):
            files.clip(root / "clips" / Path(found["wav"]).with_suffix(".FLAC").name)
            files.image(root / "data" / "vision" / "Places 205" / Path(found["image"]).with_suffix(".JPG"))
    write_json(files, root / "json", windows=True)
    write_json(files, root / "json" / "2020", "{}_2020.json", data=[])
    return root / "json", root / "clips", root / "data"


def one_folder(files: Any, root: Path) -> Layout:
    """All under one folder, the files of metadata named one by one."""
    for split in IMAGES:
        for found in entries(split):
            files.clip(root / split / found["wav"])
            files.image(root / "photos" / found["image"])
    write_json(files, root, "places_{}_v2.json")
    return [root / "places_train_v2.json", root / "places_val_v2.json"], root, root


Lay = Callable[[Any, Path], Layout]


@pytest.mark.parametrize("lay", [published, windows_copy, one_folder])
def test_every_layout_gives_the_same_manifest(tmp_path: Path, files: Any, lay: Lay) -> None:
    metadata, audio, images = lay(files, tmp_path / "c")
    prepared = prepare_places(metadata, audio, images, tmp_path / "m.jsonl")
    manifest = Manifest.read(prepared.manifest)
    found = {(manifest.clip_path(row).stem, row.image_id, row.split, row.text, row.speaker) for row in manifest}
    assert found == {
        (f"utterance_{one['uttid']}", one["image"].removesuffix(".jpg"), split, one["asr_text"], one["speaker"])
        for split in IMAGES
        for one in entries(split)
    }
    for row in manifest:  # the image of its own category
        assert Path(row.image).parts[-2] == row.image_id.split("/")[-2]
    assert verify(manifest, workers=1) == []
    assert prepared.problems.counts() == {"missing": 0, "empty": 0, "extra": 0}
    assert "3 clips in train, not 400,000; 1 clips in val, not 1,000" in prepared.notes[-1]


def test_defects_are_counted_left_out_and_listed(tmp_path: Path, files: Any) -> None:
    metadata, audio, images = published(files, tmp_path / "c")
    wavs = {split: [audio / one["wav"] for one in entries(split)] for split in IMAGES}
    files.clip(wavs["train"][0], rate=8_000)
    wavs["train"][1].write_bytes(b"")
    # Another category has an image of this name, which must not be used for it.
    (images / "b" / "beach" / "00000001.jpg").unlink()
    files.image(images / "a" / "abbey" / "unlisted.jpg")
    with pytest.raises(
        SaySeeError, match=r"1 missing image \(b/beach/00000001\.jpg\), 1 empty clip .*--allow-missing 2"
    ):
        prepare_places(metadata, audio, images, tmp_path / "m.jsonl", allow_missing=1)
    prepared = prepare_places(metadata, audio, images, tmp_path / "m.jsonl", allow_missing=2)
    manifest = Manifest.read(prepared.manifest)
    assert [row.image_id for row in manifest] == ["a/abbey/gsun_0a1b", "a/abbey/00000001"]
    assert prepared.problems.extra["images"] == ["a/abbey/unlisted.jpg"]
    assert verify(manifest, workers=1) == []
    wavs["train"][2].unlink()
    with pytest.raises(SaySeeError, match="1 missing clip"):
        prepare_places(metadata, audio, images, tmp_path / "m.jsonl", allow_missing=2)


def test_the_splits_of_2020_keep_their_names(tmp_path: Path, files: Any) -> None:
    _, audio, images = published(files, tmp_path / "c")
    for name, split in (("train_2020", "train"), ("test_seen_2020", "val")):
        files.text(tmp_path / "2020" / f"{name}.json", json.dumps({"data": entries(split)}))
    prepared = prepare_places(tmp_path / "2020", audio, images, tmp_path / "m.jsonl")
    assert prepared.clips == {"train": 3, "test_seen": 1}


def test_metadata_that_is_not_there_is_rejected(tmp_path: Path, files: Any) -> None:
    _, audio, images = published(files, tmp_path / "c")
    with pytest.raises(SaySeeError, match=r"--metadata"):
        prepare_places(audio / "wavs", audio, images, tmp_path / "m.jsonl")
    with pytest.raises(SaySeeError, match=r"other\.json: .*train\.json"):
        prepare_places([tmp_path / "other.json"], audio, images, tmp_path / "m.jsonl")
    with pytest.raises(ManifestError, match=r"val\.json: cannot be read"):
        prepare_places([tmp_path / "val.json"], audio, images, tmp_path / "m.jsonl")


def test_a_clip_of_two_images_and_a_wrong_type_are_rejected(tmp_path: Path, files: Any) -> None:
    metadata, audio, images = published(files, tmp_path / "c")
    assert isinstance(metadata, Path)
    doubled = entries("train")
    files.text(metadata / "train.json", json.dumps({"data": [*doubled, doubled[0] | {"image": doubled[1]["image"]}]}))
    with pytest.raises(ManifestError, match=r"clip .* for two images"):
        prepare_places(metadata, audio, images, tmp_path / "m.jsonl")
    files.text(metadata / "train.json", json.dumps({"data": [doubled[0] | {"speaker": 7}]}))
    with pytest.raises(ManifestError, match=r"train\.json: entry 1: 'speaker' is 7"):
        prepare_places(metadata, audio, images, tmp_path / "m.jsonl")
    files.text(metadata / "train.json", json.dumps({"data": [*doubled, doubled[0]]}))
    prepared = prepare_places(metadata, audio, images, tmp_path / "m.jsonl")
    assert prepared.clips["train"] == 3
    assert any("listed more than once" in note for note in prepared.notes)


def test_names_of_images_may_begin_with_a_slash(tmp_path: Path, files: Any) -> None:
    _, audio, images = published(files, tmp_path / "c")
    slashed = [one | {"image": f"/{one['image']}"} for one in entries("train")]
    for name, data in (("train_2020", slashed), ("dev_unseen_2020", entries("val"))):
        files.text(tmp_path / "2020" / f"{name}.json", json.dumps({"data": data}))
    prepared = prepare_places(tmp_path / "2020", audio, images, tmp_path / "m.jsonl")
    found = {row.image_id for row in Manifest.read(prepared.manifest)}
    assert found == {name.removesuffix(".jpg") for names in IMAGES.values() for name in names}
    assert prepared.clips == {"train": 3, "val_unseen": 1}


def bilingual(files: Any, root: Path, languages: Sequence[str]) -> Layout:
    """Hindi and English clips of one image in one entry, as ``hindi_english_100k_train.json`` has them."""
    for split in IMAGES:
        data = []
        for number, one in enumerate(entries(split)):
            entry = {"image": one["image"], "uttid": one["uttid"]}
            files.image(root / "images" / one["image"])
            for language in languages:
                clip = f"{language}_{split}_{number}.wav"
                files.clip(root / f"{language}_wavs" / clip)
                entry |= {f"{language}_wav": clip, f"{language}_speaker": f"{language[0]}{number}"}
                entry |= {f"{language}_asr_text": f"{language} words {number}"}
            data.append(entry)
        content = {"hindi_base_path": "/data/hindi_wavs", "data": data}
        files.text(root / "json" / f"{'_'.join(languages)}_100k_{split}.json", json.dumps(content))
    return root / "json", root, root / "images"


def test_an_entry_may_have_clips_in_several_languages(tmp_path: Path, files: Any) -> None:
    metadata, audio, images = bilingual(files, tmp_path / "c", ["hindi", "english"])
    to = tmp_path / "m.jsonl"
    prepared = prepare_places(metadata, audio, images, to)
    found = {(row.language, row.speaker, row.text, row.image_id) for row in Manifest.read(to)}
    assert found == {
        (tag, f"{language[0]}{number}", f"{language} words {number}", one["image"].removesuffix(".jpg"))
        for split in IMAGES
        for number, one in enumerate(entries(split))
        for language, tag in (("hindi", "hi"), ("english", "en"))
    }
    assert prepared.clips == {"train": 6, "val": 2}
    assert prepare_places(metadata, audio, images, to, language="hi").clips == {"train": 3, "val": 1}
    assert {row.language for row in Manifest.read(to)} == {"hi"}
    with pytest.raises(ConfigError, match=r"--language is ja.*hi, en"):
        prepare_places(metadata, audio, images, to, language="ja")


def test_a_language_without_any_clip_is_left_out_and_reported(tmp_path: Path, files: Any) -> None:
    metadata, audio, images = bilingual(files, tmp_path / "c", ["hindi", "english"])
    prepared = prepare_places(metadata, audio / "hindi_wavs", images, tmp_path / "m.jsonl")
    assert {row.language for row in Manifest.read(prepared.manifest)} == {"hi"}
    assert any("4 in en" in note and "--language" in note for note in prepared.notes)


def test_the_hindi_and_the_japanese_release_are_read(tmp_path: Path, files: Any) -> None:
    root = tmp_path / "c"
    for split in IMAGES:
        lines = []
        for number, one in enumerate(entries(split)):
            image = one["image"].replace(" ", "_")
            files.image(root / "images" / image)
            files.clip(root / "PlacesAudioJpn_100k" / "wavs" / f"{split}{number}.wav")
            lines.append(f"/{image} /wavs/{split}{number}.wav\n")
        files.text(root / "PlacesAudioJpn_100k" / f"PlacesAudioJpn_100k_image2audio_{split}.txt", "".join(lines))
        hindi = [
            {"wav": f"wavs/{split}{number}.wav", "image": one["image"].replace(" ", "_"), "asr_text": "एक कमरा"}
            for number, one in enumerate(entries(split))
        ]
        files.text(root / "hindi" / f"PlacesHindi100k_{split}.json", json.dumps({"data": hindi}))
    for metadata, language, text in (("PlacesAudioJpn_100k", "ja", None), ("hindi", "hi", "एक कमरा")):
        audio, images = root / "PlacesAudioJpn_100k", root / "images"
        prepared = prepare_places(root / metadata, audio, images, tmp_path / "m.jsonl")
        assert {(row.language, row.text) for row in Manifest.read(prepared.manifest)} == {(language, text)}
        assert prepared.clips == {"train": 3, "val": 1}
    files.text(root / "PlacesAudioJpn_100k" / "PlacesAudioJpn_100k_image2audio_val.txt", "one two three\n")
    with pytest.raises(ManifestError, match=r"image2audio_val\.txt: line 1"):
        prepare_places(root / "PlacesAudioJpn_100k", audio, images, tmp_path / "m.jsonl")


@pytest.mark.parametrize("change", ["none", "clips", "texts"])
def test_the_language_is_english_only_for_clips_and_texts_of_the_english_release(
    tmp_path: Path, files: Any, change: str
) -> None:
    metadata, audio, images = published(files, tmp_path / "c")
    assert isinstance(metadata, Path)
    if change != "none":
        for split in IMAGES:
            data = entries(split)
            for one in data:
                if change == "clips":
                    one["wav"] = files.clip(audio / f"{one['uttid']}.wav").name
                else:
                    one["asr_text"] = "美しい修道院の写真です"
            files.text(metadata / f"{split}.json", json.dumps({"data": data}))
    prepared = prepare_places(metadata, audio, images, tmp_path / "m.jsonl")
    language = "en" if change == "none" else None
    assert {row.language for row in Manifest.read(prepared.manifest)} == {language}
    assert any("--language" in note for note in prepared.notes) == (language is None)
    prepare_places(metadata, audio, images, tmp_path / "m.jsonl", language="ja")
    assert {row.language for row in Manifest.read(tmp_path / "m.jsonl")} == {"ja"}
