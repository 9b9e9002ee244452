"""Data sets of the hub: the same manifest from every form, the bytes unchanged, and each defect reported by row."""

from __future__ import annotations

import io
import json
import os
import re
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from saysee.cli import main
from saysee.data.corpora.hub import prepare_hub
from saysee.data.manifest import Manifest
from saysee.data.verify import verify
from saysee.errors import ConfigError, ManifestError, MissingExtraError, SaySeeError

datasets = pytest.importorskip("datasets", reason="needs the extra hub")

MEDIA = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
FEATURES = {
    "audio": {"sampling_rate": 16_000, "_type": "Audio"},
    "image": {"_type": "Image"},
    "caption": {"dtype": "string", "_type": "Value"},
    "speaker_id": {"dtype": "int64", "_type": "Value"},
    "lang": {"names": ["en", "de"], "_type": "ClassLabel"},
}
TYPES = {"audio": MEDIA, "image": MEDIA, "caption": pa.string(), "speaker_id": pa.int64(), "lang": pa.int64()}
Rows = dict[str, list[dict[str, Any]]]


@pytest.fixture
def rows(tmp_path: Path, files: Any) -> Rows:
    """Split → rows: two captions of each image, three images for training and one for validation."""
    found: Rows = {}
    for split, numbers in (("train", range(3)), ("validation", range(3, 4))):
        for number in numbers:
            for n in range(2):
                clip = files.clip(tmp_path / "made" / f"{number}_{n}.wav").read_bytes()
                image = files.image(tmp_path / "made" / f"{number}.jpg").read_bytes()
                found.setdefault(split, []).append(
                    {
                        "audio": {"bytes": clip, "path": f"{number}_{n}.wav"},
                        "image": {"bytes": image, "path": None},  # as the hub has images that came from Pillow
                        "caption": f"caption {n} of é {number}",
                        "speaker_id": n,
                        "lang": 1,
                    }
                )
    return found


def table(rows: list[dict[str, Any]], features: dict[str, Any] | None = FEATURES, **types: Any) -> Any:
    """A table with the metadata by which ``datasets`` knows its features."""
    names = list(rows[0])
    kinds = TYPES | types
    arrays = [pa.array([row[name] for row in rows], kinds.get(name)) for name in names]
    metadata = features and {"huggingface": json.dumps({"info": {"features": {n: features[n] for n in names}}})}
    return pa.Table.from_arrays(
        arrays, schema=pa.schema([(n, a.type) for n, a in zip(names, arrays, strict=True)], metadata)
    )


def write_arrow(content: Any, path: Path, file_format: bool = False) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    new = pa.ipc.new_file if file_format else pa.ipc.new_stream
    with pa.OSFile(str(path), "wb") as sink, new(sink, content.schema) as writer:
        writer.write_table(content, max_chunksize=3)


def write_tar(samples: list[dict[str, bytes]], path: Path, mode: str = "w") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as tar:  # type: ignore[call-overload]
        for members in samples:
            for name, data in members.items():
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return path


def parquet(rows: Rows, root: Path) -> list[str]:
    """As the hub has it: two shards of train, in ``data/``."""
    (root / "data").mkdir(parents=True)
    for split, part in rows.items():
        shards = [part[:3], part[3:]] if split == "train" else [part]
        for number, shard in enumerate(shards):
            name = f"{split}-{number:05d}-of-{len(shards):05d}.parquet"
            pq.write_table(table(shard), root / "data" / name, row_group_size=2)
    (root / "README.md").write_text("---\ndataset_info: {}\n---\n")
    return [str(root)]


def converted(rows: Rows, root: Path) -> list[str]:
    """As the hub's own conversion has it: a folder a split; without the features' metadata."""
    for split, part in rows.items():
        (root / "default" / split).mkdir(parents=True)
        pq.write_table(table(part, None), root / "default" / split / "0000.parquet")
    return [str(root)]


def saved(rows: Rows, root: Path) -> list[str]:
    """``DatasetDict.save_to_disk``, with selected rows that ``datasets`` keeps in a further file."""
    plain = {"bytes": datasets.Value("binary"), "path": datasets.Value("string")}  # encoding an Audio needs torchcodec
    features = datasets.Features(
        audio=plain,
        image=plain,
        caption=datasets.Value("string"),
        speaker_id=datasets.Value("int64"),
        lang=datasets.ClassLabel(names=["en", "de"]),
    )
    content = datasets.DatasetDict(
        {split: datasets.Dataset.from_list(part[::-1], features=features) for split, part in rows.items()}
    )
    content = content.cast_column("audio", datasets.Audio()).cast_column("image", datasets.Image())
    for split, part in rows.items():
        content[split] = content[split].select(range(len(part) - 1, -1, -1))
    content.save_to_disk(root)
    return [str(root)]


def tars(rows: Rows, root: Path) -> list[str]:
    """WebDataset shards by braces; one image in each sample, numbered captions, and an object."""
    for split, part in rows.items():
        samples = []
        for at in range(0, len(part), 2):
            key, pair = f"./{split}/{at:06d}", part[at : at + 2]
            members = {f"{key}.jpg": pair[0]["image"]["bytes"]}
            for n, row in enumerate(pair):
                members |= {f"{key}.{n}.wav": row["audio"]["bytes"], f"{key}.{n}.txt": row["caption"].encode()}
            members[f"{key}.json"] = json.dumps({"lang": "de"}).encode()
            samples.append(members)
        half = (len(samples) + 1) // 2
        for number, shard in enumerate((samples[:half], samples[half:])):
            write_tar(shard, root / f"{split}-{number:03d}.tar")
    return [str(root / "{train,validation}-{000..001}.tar")]


def lists(rows: Rows, root: Path) -> list[str]:
    """One row for each image: lists of clips and captions, with features of older versions, in Arrow's file format."""
    features = FEATURES | {"audio": [FEATURES["audio"]], "caption": {"feature": FEATURES["caption"], "_type": "List"}}
    sources = []
    for split, part in rows.items():
        pairs = [part[at : at + 2] for at in range(0, len(part), 2)]
        grouped = [
            {
                "audio": [row["audio"] for row in pair],
                "image": pair[0]["image"],
                "caption": [row["caption"] for row in pair],
                "lang": 1,
            }
            for pair in pairs
        ]
        content = table(grouped, features, audio=pa.list_(MEDIA), caption=pa.list_(pa.string()))
        write_arrow(content, root / f"sets-{split}.arrow", file_format=True)
        sources.append(str(root / f"sets-{split}.arrow"))
    return sources


FORMS = [parquet, converted, saved, tars, lists]
Form = Callable[[Rows, Path], list[str]]


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_manifest_with_the_bytes_unchanged(tmp_path: Path, rows: Rows, form: Form) -> None:
    language = "de" if form is converted else None
    prepared = prepare_hub(form(rows, tmp_path / "set"), tmp_path / "out" / "m.parquet", language=language)
    manifest = Manifest.read(prepared.manifest)
    has_speakers = form not in (tars, lists)
    found = {
        (
            manifest.clip_path(row).read_bytes(),
            manifest.image_path(row).read_bytes(),
            row.split,
            row.text,
            row.speaker,
        )
        for row in manifest
    }
    assert found == {
        (
            row["audio"]["bytes"],
            row["image"]["bytes"],
            split.replace("validation", "val"),
            row["caption"],
            str(row["speaker_id"]) if has_speakers else None,
        )
        for split, part in rows.items()
        for row in part
    }
    assert prepared.clips == {"train": 6, "val": 2}
    assert prepared.images == {"train": 3, "val": 1}
    assert {row.language for row in manifest} == {"1" if form is converted else "de"}  # a bare number has no name
    assert prepared.problems.counts() == {"missing": 0, "empty": 0, "extra": 0}
    assert verify(manifest, workers=1) == []
    assert not any(Path(row.clip).is_absolute() for row in manifest)


def test_an_interrupted_run_is_continued(tmp_path: Path, rows: Rows, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kill leaves no partial file under its name; complete files are not written again, files of another size are."""
    sources = parquet(rows, tmp_path / "set")
    to = tmp_path / "m.parquet"
    replaced: list[str] = []
    replace = os.replace

    def interrupted_at_the_third(source: Any, target: Any) -> None:
        if len(replaced) == 2:
            raise KeyboardInterrupt
        replaced.append(str(target))
        replace(source, target)

    monkeypatch.setattr("saysee.files.os.replace", interrupted_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        prepare_hub(sources, to)
    monkeypatch.undo()
    assert not to.exists()
    times = {path: Path(path).stat().st_mtime_ns for path in replaced}
    torn = Path(replaced[1])
    torn.write_bytes(b"")  # as after a power cut
    prepare_hub(sources, to)
    assert verify(Manifest.read(to), workers=1) == []
    assert Path(replaced[0]).stat().st_mtime_ns == times[replaced[0]]
    assert torn.stat().st_size > 0
    assert not [path for path in (tmp_path / "m.files").rglob("*") if path.name.startswith(".")]


def test_files_to_which_a_table_refers_stay_where_they_are(tmp_path: Path, rows: Rows) -> None:
    part = [
        {
            "audio": {"bytes": None, "path": f"clips/{row['audio']['path']}"},
            "image": {"bytes": None, "path": str(tmp_path / "made" / f"{row['audio']['path'][0]}.jpg")},
        }
        for row in rows["train"]
    ]
    (tmp_path / "set").mkdir()
    pq.write_table(table(part), tmp_path / "set" / "train.parquet")
    (tmp_path / "made").rename(tmp_path / "set" / "clips")
    (tmp_path / "made").symlink_to(tmp_path / "set" / "clips")
    prepared = prepare_hub([tmp_path / "set"], tmp_path / "m.jsonl")
    manifest = Manifest.read(prepared.manifest)
    assert {manifest.clip_path(row).resolve().parent for row in manifest} == {tmp_path / "set" / "clips"}
    assert not (tmp_path / "m.files").exists()
    assert prepared.images == {"train": 3}


def test_each_table_refers_to_the_files_beside_it(tmp_path: Path, files: Any) -> None:
    for name in ("a", "b"):
        files.clip(tmp_path / name / "clips" / f"{name}.wav").rename(tmp_path / name / "clips" / "1.wav")
        files.image(tmp_path / name / "img" / f"{name}.jpg").rename(tmp_path / name / "img" / "1.jpg")
        content = pa.table({"audio": ["clips/1.wav"], "image": ["img/1.jpg"]})
        pq.write_table(content, tmp_path / name / "data.parquet")
    for number, named in enumerate(("data.parquet", "")):
        to = tmp_path / f"{number}.jsonl"
        prepare_hub([tmp_path / name / named for name in ("a", "b")], to)
        assert [(row.clip, row.image) for row in Manifest.read(to)] == [
            ("a/clips/1.wav", "a/img/1.jpg"),
            ("b/clips/1.wav", "b/img/1.jpg"),
        ]


def test_the_manifest_may_lie_in_the_folder_of_the_data_set(tmp_path: Path, rows: Rows) -> None:
    (tmp_path / "set").mkdir()
    pq.write_table(table(rows["train"]), tmp_path / "set" / "data.parquet")
    for suffix in ("jsonl", "parquet"):
        to = tmp_path / "set" / f"m.{suffix}"
        prepare_hub([tmp_path / "set"], to)
        before = to.read_bytes()
        prepare_hub([tmp_path / "set"], to)
        assert to.read_bytes() == before
        to.unlink()


def test_a_shard_of_save_to_disk_that_is_cut_off_is_reported(tmp_path: Path, rows: Rows) -> None:
    saved(rows, tmp_path / "set")
    shard = next((tmp_path / "set" / "validation").glob("*.arrow"))
    shard.write_bytes(shard.read_bytes()[: shard.stat().st_size // 2])
    with pytest.raises(SaySeeError, match=rf"missing shard.*{shard.name}"):
        prepare_hub([tmp_path / "set"], tmp_path / "m.jsonl")
    prepare_hub([tmp_path / "set"], tmp_path / "m.jsonl", allow_missing=1)
    assert Manifest.read(tmp_path / "m.jsonl").splits() == {"train": 6}


def test_columns_of_paths_are_found_and_texts_that_look_like_files_are_not(tmp_path: Path, rows: Rows) -> None:
    part = [
        {"wav_path": row["audio"]["path"], "image": row["image"], "image_id": f"{n // 2}.jpg", "caption": "one.wav."}
        for n, row in enumerate(rows["train"])
    ]
    content = table(part, None)
    pq.write_table(content, tmp_path / "made" / "x.parquet")
    prepared = prepare_hub([tmp_path / "made" / "x.parquet"], tmp_path / "m.jsonl")
    assert [row.image_id for row in Manifest.read(prepared.manifest)] == ["0.jpg", "0.jpg", "1.jpg", "1.jpg"] + [
        "2.jpg"
    ] * 2


def test_the_same_audio_for_two_images_is_a_clip_of_each(tmp_path: Path, rows: Rows) -> None:
    part = [row | {"audio": rows["train"][0]["audio"]} for row in rows["train"]]
    pq.write_table(table(part), tmp_path / "x.parquet")
    prepared = prepare_hub([tmp_path / "x.parquet"], tmp_path / "m.jsonl")
    manifest = Manifest.read(prepared.manifest)
    assert prepared.clips == {"train": 3}
    assert len({row.image_id for row in manifest}) == 3
    assert any("listed more than once" in note for note in prepared.notes)
    assert len({manifest.clip_path(row).read_bytes() for row in manifest}) == 1


def test_defects_are_counted_listed_by_row_and_skipped(tmp_path: Path, rows: Rows) -> None:
    part = rows["train"] + rows["validation"]
    part[0] = part[0] | {"audio": {"bytes": b"", "path": "a.wav"}}
    part[1] = part[1] | {"audio": None}
    part[2] = part[2] | {"audio": {"bytes": part[2]["image"]["bytes"], "path": "b.wav"}}  # an image
    part[3] = part[3] | {"audio": {"bytes": None, "path": "https://example.org/c.wav"}}
    part[4] = part[4] | {"image": {"bytes": None, "path": "gone.jpg"}}
    part[5] = part[5] | {"image": {"bytes": b"neither", "path": "neither.bin"}}
    pq.write_table(table(part), tmp_path / "train-00000-of-00002.parquet")
    (tmp_path / "train-00001-of-00002.parquet").write_bytes(b"PAR1 cut short")
    with pytest.raises(SaySeeError, match="--allow-missing 7") as error:
        prepare_hub(sorted(tmp_path.glob("*.parquet")), tmp_path / "m.jsonl")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "m.jsonl").exists()
    prepared = prepare_hub(sorted(tmp_path.glob("*.parquet")), tmp_path / "m.jsonl", allow_missing=7)
    listed = json.loads((tmp_path / "m.jsonl.problems.json").read_text(encoding="utf-8"))
    place = "train-00000-of-00002.parquet row"
    assert listed["empty"] == {"clips": [f"{place} 1: no bytes"], "images": []}
    assert [name.split(": ")[0] for name in listed["missing"]["clips"]] == [f"{place} {n}" for n in (2, 3, 4)]
    assert [name.split(": ")[0] for name in listed["missing"]["images"]] == [f"{place} {n}" for n in (5, 6)]
    assert listed["missing"]["shards"][0].startswith("train-00001-of-00002.parquet: damaged or cut short")
    assert prepared.clips == {"train": 2}


def test_a_shard_that_does_not_exist_counts_as_missing(tmp_path: Path, rows: Rows) -> None:
    sources = parquet(rows, tmp_path / "set")
    (tmp_path / "set" / "data" / "train-00000-of-00002.parquet").unlink()
    with pytest.raises(SaySeeError, match=r"1 missing shard \(train-00000-of-00002: no such file\)"):
        prepare_hub(sources, tmp_path / "m.jsonl")
    tars(rows, tmp_path / "tars")
    (tmp_path / "tars" / "train-001.tar").unlink()
    with pytest.raises(SaySeeError, match=r"train-001\.tar: no such file"):
        prepare_hub([tmp_path / "tars" / "train-{000..001}.tar"], tmp_path / "m.jsonl")
    assert prepare_hub([tmp_path / "tars" / "train-{000..001}.tar"], tmp_path / "m.jsonl", allow_missing=1).clips


@pytest.mark.parametrize("left", [0.6, "header", "end"])
def test_a_tar_that_is_cut_off_is_reported_wherever_it_was_cut(tmp_path: Path, rows: Rows, left: float | str) -> None:
    """Also between two members and within a header, where Python's tarfile takes it for complete."""
    members = {f"{n}.{e}": row[c]["bytes"] for n, row in enumerate(rows["train"]) for e, c in PAIR}
    path = write_tar([members], tmp_path / "train.tar")
    with tarfile.open(path) as tar:
        last = tar.getmembers()[-1]
        whole = last.offset_data + (last.size + 511) // 512 * 512
    size = {"header": last.offset + 100, "end": whole}.get(str(left)) or int(whole * float(left))
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(SaySeeError, match=r"missing shard.*train\.tar: damaged or cut short"):
        prepare_hub([path], tmp_path / "m.jsonl")


PAIR = (("wav", "audio"), ("jpg", "image"))


@pytest.mark.parametrize("form", ["parquet", "arrow"])
def test_a_table_that_is_cut_off_is_reported(tmp_path: Path, rows: Rows, form: str) -> None:
    path = tmp_path / f"train.{form}"
    if form == "arrow":
        write_arrow(table(rows["train"]), path)
    else:
        pq.write_table(table(rows["train"]), path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(SaySeeError, match=rf"missing shard.*train\.{form}"):
        prepare_hub([path], tmp_path / "m.jsonl")


def test_a_sample_without_clip_or_image_is_reported_by_its_key(tmp_path: Path, rows: Rows) -> None:
    clip, image = rows["train"][0]["audio"]["bytes"], rows["train"][0]["image"]["bytes"]
    samples = [
        {"a.jpg": image, "a.wav": clip},
        {"b.wav": clip},
        {"c.png": image},
        {"d.wav": b"", "d.jpg": image},
    ]
    write_tar(samples, tmp_path / "test.tar.gz", "w:gz")
    with pytest.raises(SaySeeError, match="--allow-missing 3"):
        prepare_hub([tmp_path / "test.tar.gz"], tmp_path / "m.jsonl")
    prepared = prepare_hub([tmp_path / "test.tar.gz"], tmp_path / "m.jsonl", allow_missing=3)
    problems = prepared.problems
    assert problems.missing["images"] == ["b of test.tar.gz: no bytes and no path"]
    assert problems.missing["clips"] == ["c of test.tar.gz: no bytes and no path"]
    assert problems.empty["clips"] == ["d of test.tar.gz: no bytes"]
    assert prepared.clips == {"test": 1}


def test_a_named_column_that_does_not_exist_is_rejected(tmp_path: Path, rows: Rows) -> None:
    pq.write_table(table(rows["train"]), tmp_path / "x.parquet")
    with pytest.raises(ManifestError, match=r"x\.parquet: .*'audoi'.*'audio'.*--audio-column"):
        prepare_hub([tmp_path / "x.parquet"], tmp_path / "m.jsonl", audio_column="audoi")


def test_a_named_column_of_another_type_is_reported_by_row(tmp_path: Path, rows: Rows) -> None:
    pq.write_table(table(rows["train"]), tmp_path / "x.parquet")
    with pytest.raises(SaySeeError, match=r"6 missing clips \(x\.parquet row 1: "):
        prepare_hub([tmp_path / "x.parquet"], tmp_path / "m.jsonl", audio_column="image")
    with pytest.raises(SaySeeError, match=r"6 missing clips \(x\.parquet row 1: "):
        prepare_hub([tmp_path / "x.parquet"], tmp_path / "m.jsonl", audio_column="speaker_id")
    with pytest.raises(ManifestError, match=r"x\.parquet row 1: .*--text-column"):
        prepare_hub([tmp_path / "x.parquet"], tmp_path / "m.jsonl", text_column="image")


def test_of_two_columns_of_images_one_must_be_named(tmp_path: Path, rows: Rows) -> None:
    features = FEATURES | {"left": {"_type": "Image"}, "right": {"_type": "Image"}}
    part = [row | {"left": row["image"], "right": row["image"]} for row in rows["train"]]
    pq.write_table(table(part, features, left=MEDIA, right=MEDIA), tmp_path / "x.parquet")
    assert prepare_hub([tmp_path / "x.parquet"], tmp_path / "m.jsonl").clips  # by the title "image"
    without = [{name: value for name, value in row.items() if name != "image"} for row in part]
    pq.write_table(table(without, features, left=MEDIA, right=MEDIA), tmp_path / "x.parquet")
    with pytest.raises(ManifestError, match="--image-column"):
        prepare_hub([tmp_path / "x.parquet"], tmp_path / "m.jsonl")
    assert prepare_hub([tmp_path / "x.parquet"], tmp_path / "m.jsonl", image_column="left").clips


def test_decoded_audio_in_an_array_is_reported_by_row(tmp_path: Path, rows: Rows) -> None:
    part = [{"audio": {"array": [0.1], "sampling_rate": 16_000}, "image": row["image"]} for row in rows["train"]]
    kind = pa.struct([("array", pa.list_(pa.float64())), ("sampling_rate", pa.int64())])
    pq.write_table(table(part, None, audio=kind), tmp_path / "x.parquet")
    with pytest.raises(SaySeeError, match=r"6 missing clips \(x\.parquet row 1: no bytes"):
        prepare_hub([tmp_path / "x.parquet"], tmp_path / "m.jsonl")


@pytest.mark.parametrize(
    ("members", "named", "message"),
    [
        ({"a.jpg": b"1", "a.png": b"2"}, {}, r"a of t\.tar: .*jpg, png.*--image-column"),
        ({"a.json": b"{"}, {}, r"a of t\.tar: .*\.json"),
        ({"a.txt": b"\xff"}, {}, r"a of t\.tar: .*\.txt"),
        ({"a.json": b'{"texts": ["one", "two"]}', "a.wav": b"RIFF"}, {}, r"a of t\.tar: .*'two'.*--text-column"),
        ({"a.wav": b"RIFF"}, {"speaker_column": "who"}, r"t\.tar: .*'who' \(--speaker-column\).*wav"),
    ],
)
def test_samples_that_cannot_be_understood_are_rejected(
    tmp_path: Path, members: dict[str, bytes], named: dict[str, str], message: str
) -> None:
    write_tar([members], tmp_path / "t.tar")
    with pytest.raises(ManifestError, match=message):
        prepare_hub([tmp_path / "t.tar"], tmp_path / "m.jsonl", **named)


def test_a_member_twice_is_rejected(tmp_path: Path) -> None:
    write_tar([{"a.wav": b"1"}, {"a.wav": b"2"}], tmp_path / "t.tar")
    with pytest.raises(ManifestError, match=r"t\.tar: .*'a\.wav'"):
        prepare_hub([tmp_path / "t.tar"], tmp_path / "m.jsonl")


def test_a_sample_may_name_its_text_speaker_and_split_in_its_object(tmp_path: Path, rows: Rows) -> None:
    samples = []
    for n, row in enumerate(rows["train"][::2]):
        about = {"said": f"text {n}", "who": n, "split": "dev", "image_id": f"id {n}"}
        samples.append({f"{n}.wav": row["audio"]["bytes"], f"{n}.jpg": row["image"]["bytes"], f"{n}.json": about})
    for sample in samples:
        sample |= {name: json.dumps(value).encode() for name, value in sample.items() if name.endswith(".json")}
    write_tar(samples, tmp_path / "t.tar")
    prepare_hub([tmp_path / "t.tar"], tmp_path / "m.jsonl", text_column="said", speaker_column="who")
    found = [(row.text, row.speaker, row.split, row.image_id) for row in Manifest.read(tmp_path / "m.jsonl")]
    assert found == [(f"text {n}", str(n), "val", f"id {n}") for n in range(3)]


def test_splits_are_renamed_divided_or_rejected(tmp_path: Path, rows: Rows) -> None:
    sources = parquet(rows, tmp_path / "set")
    to = tmp_path / "m.jsonl"
    assert prepare_hub(sources, to, splits={"validation": "test"}).clips == {"train": 6, "test": 2}
    with pytest.raises(ConfigError, match=r"--split dev.*train, validation"):
        prepare_hub(sources, to, splits={"dev": "test"})
    with pytest.raises(ConfigError, match="--image-column"):
        prepare_hub(sources, to, image_column="")
    with pytest.raises(ConfigError, match=r"--val-share.*train, validation"):
        prepare_hub(sources, to, val_share=0.5)
    one = [tmp_path / "set" / "data" / f"train-0000{n}-of-00002.parquet" for n in range(2)]
    divided = prepare_hub(one, to, val_share=0.3, test_share=0.4, seed=2)
    assert sum(divided.clips.values()) == 6
    assert len(divided.clips) > 1


def test_an_image_in_two_splits_is_rejected(tmp_path: Path, rows: Rows) -> None:
    rows["validation"][0]["image"] = rows["train"][0]["image"]
    with pytest.raises(ManifestError, match=r"'train'.*'val'"):
        prepare_hub(parquet(rows, tmp_path / "set"), tmp_path / "m.jsonl")


def test_unused_files_of_an_earlier_run_are_reported(tmp_path: Path, rows: Rows) -> None:
    prepare_hub(parquet(rows, tmp_path / "set"), tmp_path / "m.jsonl")
    one = prepare_hub([tmp_path / "set" / "data" / "validation-00000-of-00001.parquet"], tmp_path / "m.jsonl")
    assert {what: len(names) for what, names in one.problems.extra.items()} == {"clips": 6, "images": 3}


def test_braces_stand_for_numbers_and_words(tmp_path: Path, rows: Rows) -> None:
    tars(rows, tmp_path)
    to = tmp_path / "m.jsonl"
    assert prepare_hub([tmp_path / "{train,validation}-{000..001}.tar"], to).clips == {"train": 6, "val": 2}
    with pytest.raises(SaySeeError, match=r"2 missing shards \(train-002\.tar.*train-003\.tar"):
        prepare_hub([tmp_path / "train-{000..003}.tar"], to)
    with pytest.raises(SaySeeError, match=r"1 missing shard \(train-002\.tar"):  # as a shell expands braces
        prepare_hub([tmp_path / f"train-00{n}.tar" for n in range(3)], to)


def test_files_are_read_in_folders_with_characters_of_patterns(tmp_path: Path, rows: Rows) -> None:
    [folder] = parquet(rows, tmp_path / "a [1] b*é")
    files = sorted(Path(folder, "data").iterdir())
    assert prepare_hub(files, tmp_path / "m.jsonl").clips == {"train": 6, "val": 2}
    with pytest.raises(SaySeeError, match=r"a \[1\] b"):
        prepare_hub([folder], tmp_path / "m.jsonl")


@pytest.mark.parametrize("source", ["no/such/folder", "x.csv", "empty", "two", "gone.parquet", "texts"])
def test_sources_that_cannot_be_read_are_rejected_by_name(tmp_path: Path, source: str) -> None:
    (tmp_path / "x.csv").write_text("a")
    (tmp_path / "empty").mkdir()
    write_tar([{"a.wav": b"1"}], tmp_path / "two" / "a.tar")
    pq.write_table(pa.table({"a": [1]}), tmp_path / "two" / "a.parquet")
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.jsonl").write_text('{"a": 1}\n')
    sources = [tmp_path / "two" / "a.tar", tmp_path / "two" / "a.parquet"] if source == "two" else [tmp_path / source]
    with pytest.raises(SaySeeError, match=source) as error:
        prepare_hub(sources, tmp_path / "m.jsonl")
    assert "\n" not in str(error.value)


def test_a_data_set_of_the_hub_is_found_by_its_name(
    tmp_path: Path, rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a local folder in the place of the hub, which cannot be reached from tests."""
    [folder] = parquet(rows, tmp_path / "set")
    load, asked = datasets.load_dataset_builder, []

    def load_builder(source: str, config: str | None) -> Any:
        asked.append((source, config))
        return load(folder)

    monkeypatch.setattr(datasets, "load_dataset_builder", load_builder)
    prepared = prepare_hub(["someone/spoken-images"], tmp_path / "m.jsonl", config="small")
    assert asked == [("someone/spoken-images", "small")]
    assert prepared.clips == {"train": 6, "val": 2}


@pytest.mark.parametrize("source", ["/gone/train", "./train", "gone", "a/b/c", "übung/train", "C:\\gone", "~/gone"])
def test_a_mistyped_path_is_rejected_before_the_hub_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str
) -> None:
    asked: list[str] = []
    monkeypatch.setattr(datasets, "load_dataset_builder", lambda *words: asked.append(words))
    with pytest.raises(SaySeeError, match=re.escape(source)):
        prepare_hub(["someone/spoken-images", source], tmp_path / "m.jsonl")
    assert not asked


def test_without_the_hub_a_name_is_rejected_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(SaySeeError, match="someone/spoken-images") as error:
        prepare_hub(["someone/spoken-images"], tmp_path / "m.jsonl")
    assert "\n" not in str(error.value)


def test_without_datasets_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingExtraError, match=r"saysee\[hub\]"):
        prepare_hub([tmp_path], tmp_path / "m.jsonl")


@pytest.mark.parametrize("verb", ["hub", "hf"])
def test_the_verb_takes_columns_and_splits_by_flags(
    tmp_path: Path, rows: Rows, capsys: pytest.CaptureFixture[str], verb: str
) -> None:
    sources = parquet(rows, tmp_path / "set")
    words = ["data", verb, *sources, "--to", str(tmp_path / "m.parquet")]
    flags = ["--text-column", "", "--id-column", "caption", "--split", "validation=test", "--json"]
    assert main([*words, *flags]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["splits"] == {"train": {"images": 6, "clips": 6}, "test": {"images": 2, "clips": 2}}
    assert {row.text for row in Manifest.read(tmp_path / "m.parquet")} == {None}
    assert main([*words, "--split", "validation"]) == 2
    assert "NAME=SPLIT" in capsys.readouterr().err


def wide(rows: Rows, *columns: str) -> Rows:
    """One row for each image, with ``audio_0``, ``caption_0``, ``audio_1`` and so on."""
    found: Rows = {}
    for split, part in rows.items():
        for at in range(0, len(part), 2):
            row = {"image": part[at]["image"]}
            for n, each in enumerate(part[at : at + 2]):
                row |= {column.format(n): each[column.format("").strip("_- ")] for column in columns}
            found.setdefault(split, []).append(row)
    return found


@pytest.mark.parametrize("columns", [("audio_{}", "caption_{}"), ("audio{}", "caption{}"), ("audio-{}", "caption-{}")])
@pytest.mark.parametrize("typed", [True, False])
def test_a_row_may_have_a_column_for_each_clip(
    tmp_path: Path, rows: Rows, columns: tuple[str, ...], typed: bool
) -> None:
    rows["train"][3] |= {"audio": None, "caption": None}  # an image with one caption only
    for split, part in wide(rows, *columns).items():
        names = {column.format(n): column.format("").strip("_-") for n in range(2) for column in columns}
        types = {name: TYPES[plain] for name, plain in names.items()}
        features = FEATURES | {name: FEATURES[plain] for name, plain in names.items()}
        path = tmp_path / "set" / "data" / f"{split}-00000-of-00001.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table(part, features if typed else None, **types), path)
    manifest = Manifest.read(prepare_hub([tmp_path / "set"], tmp_path / "m.jsonl").manifest)
    found = {manifest.clip_path(row).read_bytes(): (row.text, row.split) for row in manifest}
    assert found == {
        row["audio"]["bytes"]: (row["caption"], split.replace("validation", "val"))
        for split, part in rows.items()
        for row in part
        if row["audio"]
    }
    assert len(manifest.images()) == 4


def test_numbered_columns_that_do_not_fit_are_rejected(tmp_path: Path, rows: Rows) -> None:
    [first, *_] = wide(rows, "audio_{}", "caption_{}")["train"]
    other = {name.replace("caption_1", "caption_2"): value for name, value in first.items()}
    kinds = {name: MEDIA for name in first if name.startswith("audio")}
    pq.write_table(table([other], None, **kinds), tmp_path / "x.parquet")
    with pytest.raises(ManifestError, match=r"x\.parquet: .*caption_0, caption_2.*--text-column"):
        prepare_hub([tmp_path / "x.parquet"], tmp_path / "m.jsonl")
    assert prepare_hub([tmp_path / "x.parquet"], tmp_path / "m.jsonl", text_column="").clips == {"train": 2}
    both = first | {"audio": first["audio_0"]}
    pq.write_table(table([both], None, **kinds), tmp_path / "x.parquet")
    with pytest.raises(ManifestError, match=r"more than one column for the clip.*--audio-column"):
        prepare_hub([tmp_path / "x.parquet"], tmp_path / "m.jsonl")


COLUMNS = {"split": ["train"] * 3 + ["test"] * 2 + ["dev"], "speaker": list("aabbcc"), "language": ["de"] * 6}
ARROW = {
    "dictionary": lambda values: pa.array(values).dictionary_encode(),
    "string_view": lambda values: pa.array(values, pa.string_view()),
    "large_string": lambda values: pa.array(values, pa.large_string()),
}


@pytest.mark.parametrize("form", ["parquet", "arrow"])
@pytest.mark.parametrize("kind", ARROW)
def test_every_way_in_which_arrow_stores_words_and_bytes_is_read(
    tmp_path: Path, rows: Rows, kind: str, form: str
) -> None:
    media = {"dictionary": pa.binary(), "string_view": pa.binary_view(), "large_string": pa.large_binary()}[kind]
    part = [*rows["train"][::2], *rows["validation"], rows["train"][0]]
    clips = [row["audio"]["bytes"] for row in part[:5]] + [rows["train"][1]["audio"]["bytes"]]
    images = [row["image"]["bytes"] for row in part[:3]] + [rows["validation"][0]["image"]["bytes"]] * 2 + [b"\x89PNG"]
    images[5] = images[3] + b" "  # the bytes of another file
    content = {"audio": pa.array(clips, media), "image": pa.array(images, media)}
    if kind == "dictionary":
        content = {name: column.dictionary_encode() for name, column in content.items()}
    content |= {name: ARROW[kind](values) for name, values in COLUMNS.items()}
    path = tmp_path / f"x.{form}"
    if form == "arrow":
        write_arrow(pa.table(content), path)
    else:
        pq.write_table(pa.table(content), path)
    prepared = prepare_hub([path], tmp_path / "m.jsonl")
    assert prepared.clips == {"train": 3, "test": 2, "val": 1}
    manifest = Manifest.read(prepared.manifest)
    assert [manifest.clip_path(row).read_bytes() for row in manifest] == clips
    assert [row.speaker for row in manifest] == COLUMNS["speaker"]
    assert manifest.column("language") == COLUMNS["language"]


@pytest.mark.parametrize(
    ("column", "values"),
    [
        ("split", [b"train"] * 6),
        ("speaker", [{"id": 1}] * 6),
        ("language", pa.array([[("a", 1)]] * 6, pa.map_(pa.string(), pa.int64()))),
        ("split", ["train", "test", None, "", "test", "train"]),
    ],
)
def test_a_column_of_a_role_that_cannot_be_read_is_named(tmp_path: Path, rows: Rows, column: str, values: Any) -> None:
    media = {name: pa.array([row[name]["bytes"] for row in rows["train"]]) for name in ("audio", "image")}
    pq.write_table(pa.table(media | {column: values}), tmp_path / "x.parquet")
    with pytest.raises(ManifestError, match=column):
        prepare_hub([tmp_path / "x.parquet"], tmp_path / "m.jsonl")
    chosen = {f"{column}_column": ""}
    assert prepare_hub([tmp_path / "x.parquet"], tmp_path / "m.jsonl", **chosen).clips == {"train": 6}


def test_a_column_of_no_role_may_have_any_type(tmp_path: Path, rows: Rows) -> None:
    media = {name: pa.array([row[name]["bytes"] for row in rows["train"]]) for name in ("audio", "image")}
    other = pa.array([[("a", 1)]] * 6, pa.map_(pa.string(), pa.int64()))
    pq.write_table(pa.table(media | {"about": other}), tmp_path / "x.parquet")
    assert prepare_hub([tmp_path / "x.parquet"], tmp_path / "m.jsonl").clips == {"train": 6}


def members_of(rows: Rows, at: int, key: str) -> dict[str, bytes]:
    return {f"{key}.{suffix}": rows["train"][at][column]["bytes"] for suffix, column in PAIR}


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:xz"])
def test_tars_that_cat_joined_are_read_to_their_end(tmp_path: Path, rows: Rows, mode: str) -> None:
    """The same stems in both, as shards often have: they are different samples."""
    suffix = ".tar" if mode == "w" else ".tar.gz"
    shards = [
        write_tar([members_of(rows, at + n, f"./00000{n}") for n in range(2)], tmp_path / f"{at}{suffix}", mode)
        for at in (0, 2)
    ]
    joined = tmp_path / f"joined{suffix}"
    joined.write_bytes(b"".join(shard.read_bytes() for shard in shards))
    apart = prepare_hub(shards, tmp_path / "apart.jsonl")
    prepared = prepare_hub([joined], tmp_path / "m.jsonl")
    assert prepared.clips == apart.clips == {"train": 4}
    manifest = Manifest.read(prepared.manifest)
    expected = [row["audio"]["bytes"] for row in rows["train"][:4]]
    assert [manifest.clip_path(row).read_bytes() for row in manifest] == expected
    joined.write_bytes(joined.read_bytes()[: -shards[1].stat().st_size // 2])
    with pytest.raises(SaySeeError, match=re.escape(joined.name)):
        prepare_hub([joined], tmp_path / "m.jsonl")


def test_an_unsorted_tar_is_named(tmp_path: Path, rows: Rows) -> None:
    one, other = (members_of(rows, at, f"dir.x/00{at}.v2") for at in (0, 2))
    assert prepare_hub([write_tar([one, other], tmp_path / "sorted.tar")], tmp_path / "m.jsonl").clips == {"train": 2}
    mixed = [dict([each]) for pair in zip(one.items(), other.items(), strict=True) for each in pair]
    with pytest.raises(ManifestError, match=r"mixed\.tar: .*sort"):
        prepare_hub([write_tar(mixed, tmp_path / "mixed.tar")], tmp_path / "m.jsonl")


@pytest.mark.parametrize("content", [b"", b"no tar" * 200, b"\x1f\x8b\x08\x00 broken"])
def test_what_is_no_tar_is_reported_by_name(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.tar").write_bytes(content)
    with pytest.raises(SaySeeError, match=r"missing shard \(x\.tar: "):
        prepare_hub([tmp_path / "x.tar"], tmp_path / "m.jsonl")


def test_an_empty_tar_is_reported(tmp_path: Path, rows: Rows) -> None:
    shards = [
        write_tar([], tmp_path / "train-000.tar"),
        write_tar([members_of(rows, 0, "a")], tmp_path / "train-001.tar"),
    ]
    prepared = prepare_hub(shards, tmp_path / "m.jsonl")
    assert prepared.clips == {"train": 1}
    assert any("train-000.tar" in note for note in prepared.notes)
