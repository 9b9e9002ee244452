"""SpokenCOCO: its official split and Karpathy's, from every layout of a copy."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from saysee.data.corpora.spokencoco import coco_key, prepare_spokencoco
from saysee.data.manifest import Manifest
from saysee.data.verify import verify
from saysee.errors import ManifestError, SaySeeError

# Number of an image in COCO → its split in SpokenCOCO and in Karpathy's.
IMAGES = {
    "000000325114": ("val", "test"),
    "000000000042": ("val", "val"),
    "000000000073": ("val", "restval"),
    "000000000009": ("train", "train"),
    "000000000025": ("train", "train"),
}


def image_of(number: str) -> str:
    split = IMAGES[number][0]
    return f"{split}2014/COCO_{split}2014_{number}.jpg"


def entry(number: str, folder: str = "wavs") -> dict[str, Any]:
    split = IMAGES[number][0]
    captions = []
    for at in range(2):
        uttid = f"m{at}071506418gb9vo-3LUY3GC63Z0R9_{int(number)}_{at}"
        captions.append(
            {
                "text": f"AN IMAGE OF {number} É {at}",
                "speaker": f"m{at}071506418gb9vo",
                "uttid": uttid,
                "wav": f"{folder}/{split}/{at}/{uttid}.wav",
            }
        )
    return {"image": image_of(number), "captions": captions}


def write_json(files: Any, folder: Path, ending: str, by: int, *, windows: bool = False, unroll: bool = False) -> None:
    """The JSON files of a split: of SpokenCOCO (``by`` 0) or Karpathy's (1)."""
    splits: dict[str, list[dict[str, Any]]] = {}
    for number, names in IMAGES.items():
        data = splits.setdefault(names[by].replace("rest", "") if by == 0 else names[by], [])
        whole = entry(number)
        data += [{"image": whole["image"], "caption": caption} for caption in whole["captions"]] if unroll else [whole]
    if "restval" in splits:
        splits["train"] += splits.pop("restval")
    for split, data in splits.items():
        content = json.dumps({"data": data}, ensure_ascii=False, indent=1)
        files.text(folder / f"SpokenCOCO_{split}{ending}.json", content, windows=windows)


def clips(files: Any, folder: Path, suffix: str = ".wav", flat: bool = False) -> None:
    for number in IMAGES:
        for caption in entry(number)["captions"]:
            path = Path(caption["wav"]).with_suffix(suffix)
            files.clip(folder / (path.name if flat else path))


def published(files: Any, root: Path) -> tuple[Path, Path]:
    """As published, with COCO 2014."""
    clips(files, root / "SpokenCOCO")
    write_json(files, root / "SpokenCOCO", "", 0)
    for number in IMAGES:
        files.image(root / "coco" / image_of(number))
    return root / "SpokenCOCO", root / "coco"


def nested_copy(files: Any, root: Path) -> tuple[Path, Path]:
    """JSON files of Windows in a sub-folder; a second set with parse trees; nested clips; COCO 2017."""
    clips(files, root / "speech data" / "SpokenCOCO" / "audio é")
    write_json(files, root / "speech data" / "json files", "", 0, windows=True)
    write_json(files, root / "speech data" / "json files", "_wparse", 0)
    for number in IMAGES:
        files.image(root / "coco" / "images" / f"{IMAGES[number][1][:5]}2017" / f"{number}.jpg")
    return root / "speech data", root / "coco"


def flat_copy(files: Any, root: Path) -> tuple[Path, Path]:
    """All in one folder, clips as FLAC, images as .JPEG."""
    clips(files, root, ".flac", flat=True)
    write_json(files, root, "_unrolled", 0, unroll=True)
    for number in IMAGES:
        files.image(root / Path(image_of(number)).with_suffix(".JPEG").name)
    return root, root


def beside_copy(files: Any, root: Path) -> tuple[Path, Path]:
    """The folder of the clips; the JSON files are beside it."""
    audio, images = published(files, root)
    return audio / "wavs", images


Lay = Callable[[Any, Path], tuple[Path, Path]]
LAYOUTS = [published, nested_copy, flat_copy, beside_copy]


def rows_by(split_of: int) -> set[tuple[str, ...]]:
    rows = set()
    for number, names in IMAGES.items():
        split = names[split_of].replace("restval", "train")
        for caption in entry(number)["captions"]:
            image_id = image_of(number).removesuffix(".jpg")
            rows.add((caption["uttid"], image_id, split, caption["text"], caption["speaker"], "en"))
    return rows


def rows_of(path: Path) -> set[tuple[str | None, ...]]:
    manifest = Manifest.read(path)
    for row in manifest:
        assert coco_key(row.image) == coco_key(row.image_id)
    return {
        (manifest.clip_path(row).stem, row.image_id, row.split, row.text, row.speaker, row.language) for row in manifest
    }


def karpathy_json(files: Any, path: Path, numbers: list[str]) -> Path:
    images = [
        {
            "filename": Path(image_of(number)).name,
            "filepath": image_of(number).split("/")[0],
            "split": IMAGES[number][1],
            "cocoid": int(number),
        }
        for number in numbers
    ]
    return files.text(path, json.dumps({"images": images, "dataset": "coco"}))


@pytest.mark.parametrize("lay", LAYOUTS)
def test_every_layout_gives_the_same_manifest(tmp_path: Path, files: Any, lay: Lay) -> None:
    audio, images = lay(files, tmp_path / "c")
    prepared = prepare_spokencoco(audio, images, tmp_path / "m.parquet")
    assert rows_of(prepared.manifest) == rows_by(0)
    assert prepared.problems.counts() == {"missing": 0, "empty": 0, "extra": 0}
    assert verify(Manifest.read(prepared.manifest), workers=1) == []


@pytest.mark.parametrize("lay", LAYOUTS)
def test_karpathys_json_splits_every_layout(tmp_path: Path, files: Any, lay: Lay) -> None:
    audio, images = lay(files, tmp_path / "c")
    karpathy = karpathy_json(files, tmp_path / "dataset_coco.json", list(IMAGES))
    prepared = prepare_spokencoco(audio, images, tmp_path / "m.parquet", karpathy=karpathy)
    assert rows_of(prepared.manifest) == rows_by(1)
    assert prepared.images == {"test": 1, "val": 1, "train": 3}
    assert any("test, not 5,000" in note for note in prepared.notes)


@pytest.mark.parametrize(("ending", "unroll"), [("_karpathy", False), ("_unrolled_karpathy", True), ("", False)])
def test_files_in_karpathys_split_are_recognized(tmp_path: Path, files: Any, ending: str, unroll: bool) -> None:
    audio, images = published(files, tmp_path / "c")
    write_json(files, audio, ending, 1, unroll=unroll)
    prepared = prepare_spokencoco(audio, images, tmp_path / "m.parquet")
    assert rows_of(prepared.manifest) == rows_by(1)
    assert f"SpokenCOCO_test{ending}.json" in prepared.notes[0]
    assert "Karpathy's split" in prepared.notes[-1]


def test_karpathys_json_divides_the_official_files(tmp_path: Path, files: Any) -> None:
    audio, images = published(files, tmp_path / "c")
    write_json(files, audio, "_karpathy", 1)
    karpathy = karpathy_json(files, tmp_path / "dataset_coco.json", list(IMAGES))
    prepared = prepare_spokencoco(audio, images, tmp_path / "m.parquet", karpathy=karpathy)
    assert rows_of(prepared.manifest) == rows_by(1)
    assert "SpokenCOCO_train.json" in prepared.notes[0].split("; not used: ")[0]
    assert "SpokenCOCO_test_karpathy.json" in prepared.notes[0].split("; not used: ")[1]


def test_images_that_karpathy_does_not_have_are_reported(tmp_path: Path, files: Any) -> None:
    audio, images = published(files, tmp_path / "c")
    karpathy = karpathy_json(files, tmp_path / "dataset_coco.json", ["000000325114", "000000000009"])
    prepared = prepare_spokencoco(audio, images, tmp_path / "m.parquet", karpathy=karpathy)
    assert prepared.clips == {"test": 2, "train": 2}
    assert any("3 images are not in" in note for note in prepared.notes)


def test_defects_are_counted_skipped_and_listed(tmp_path: Path, files: Any) -> None:
    audio, images = published(files, tmp_path / "c")
    gone, empty, fast, orphan = (audio / entry(number)["captions"][0]["wav"] for number in list(IMAGES)[:4])
    gone.unlink()
    empty.write_bytes(b"")
    files.clip(fast, rate=22_050)
    (images / image_of("000000000009")).unlink()
    files.clip(audio / "wavs" / "train" / "extra.wav")
    data = json.loads((audio / "SpokenCOCO_train.json").read_text(encoding="utf-8"))
    data["data"].append({"image": "train2014/COCO_train2014_000000000099.jpg", "captions": []})
    (audio / "SpokenCOCO_train.json").write_text(json.dumps(data))
    files.image(images / "train2014" / "COCO_train2014_000000000099.jpg")
    with pytest.raises(SaySeeError, match="--allow-missing 4") as error:
        prepare_spokencoco(audio, images, tmp_path / "m.parquet")
    assert "\n" not in str(error.value)
    assert gone.name in str(error.value)
    prepared = prepare_spokencoco(audio, images, tmp_path / "m.parquet", allow_missing=4)
    listed = json.loads((tmp_path / "m.parquet.problems.json").read_text(encoding="utf-8"))
    assert [Path(name).name for name in listed["missing"]["clips"]] == [
        "COCO_train2014_000000000099.jpg",  # "any clip of" it
        gone.name,
    ]
    assert listed["missing"]["images"] == ["train2014/COCO_train2014_000000000009.jpg"]
    assert [Path(name).name for name in listed["empty"]["clips"]] == [empty.name]
    assert listed["extra"] == {"clips": ["wavs/train/extra.wav"], "images": []}
    manifest = Manifest.read(prepared.manifest)
    names = {manifest.clip_path(row).name for row in manifest}
    assert len(names) == 10 - 4
    assert fast.name in names
    assert orphan.name not in names
    assert verify(manifest, workers=1) == []


def test_a_caption_without_a_wav_is_found_by_its_utterance(tmp_path: Path, files: Any) -> None:
    audio, images = published(files, tmp_path / "c")
    text = (audio / "SpokenCOCO_val.json").read_text(encoding="utf-8").replace('"wav"', '"elsewhere"')
    (audio / "SpokenCOCO_val.json").write_text(text, encoding="utf-8")
    assert rows_of(prepare_spokencoco(audio, images, tmp_path / "m.parquet").manifest) == rows_by(0)
    (audio / "SpokenCOCO_val.json").write_text(text.replace('"uttid"', '"id"'), encoding="utf-8")
    with pytest.raises(ManifestError, match=r"SpokenCOCO_val\.json: entry 1 has no 'wav'"):
        prepare_spokencoco(audio, images, tmp_path / "m.parquet")


def test_a_image_in_two_splits_is_rejected(tmp_path: Path, files: Any) -> None:
    audio, images = published(files, tmp_path / "c")
    files.text(audio / "SpokenCOCO_test.json", json.dumps({"data": [entry("000000325114", "wavs/again")]}))
    with pytest.raises(ManifestError, match="'test' and 'val'"):
        prepare_spokencoco(audio, images, tmp_path / "m.parquet")


@pytest.mark.parametrize(
    ("content", "message"), [("{", "not JSON"), ("{}", "'data'"), ('[{"captions": []}]', "entry 1 has no 'image'")]
)
def test_damaged_json_is_rejected_by_name(tmp_path: Path, files: Any, content: str, message: str) -> None:
    audio, images = published(files, tmp_path / "c")
    (audio / "SpokenCOCO_val.json").write_text(content)
    with pytest.raises(ManifestError, match=rf"SpokenCOCO_val\.json: .*{message}"):
        prepare_spokencoco(audio, images, tmp_path / "m.parquet")


def test_missing_json_is_rejected(tmp_path: Path, files: Any) -> None:
    audio, images = published(files, tmp_path / "c")
    karpathy_json(files, images / "dataset_coco.json", list(IMAGES))
    with pytest.raises(SaySeeError, match=r"SpokenCOCO_train\.json"):
        prepare_spokencoco(images, images, tmp_path / "m.parquet")
    with pytest.raises(ManifestError, match=r"gone\.json: cannot be read"):
        prepare_spokencoco(audio, images, tmp_path / "m.parquet", karpathy=tmp_path / "gone.json")


@pytest.mark.parametrize("name", ["SpokenCOCO_val.json", "SpokenCOCO_hi_val.json", "texts in Hindi"])
def test_the_language_is_english_only_for_the_files_of_the_corpus(tmp_path: Path, files: Any, name: str) -> None:
    audio, images = published(files, tmp_path / "c")
    (audio / "SpokenCOCO_train.json").unlink()
    listed = audio / "SpokenCOCO_val.json"
    if name.endswith(".json"):
        listed.rename(audio / name)
    else:
        content = json.loads(listed.read_text(encoding="utf-8"))
        for each in content["data"]:
            for caption in each["captions"]:
                caption["text"] = "समुद्र तट पर एक कुत्ता"
        listed.write_text(json.dumps(content), encoding="utf-8")
    prepared = prepare_spokencoco(audio, images, tmp_path / "m.jsonl")
    assert {row[-1] for row in rows_of(prepared.manifest)} == {"en" if name == "SpokenCOCO_val.json" else None}
    prepared = prepare_spokencoco(audio, images, tmp_path / "m.jsonl", language="hi")
    assert {row[-1] for row in rows_of(prepared.manifest)} == {"hi"}
