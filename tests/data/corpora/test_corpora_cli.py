"""The verbs of corpora: exit codes, one result on stdout, notes or one error message on stderr."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from saysee.cli import main
from saysee.data.corpora.flickr8k import ALLOW_MISSING
from saysee.data.manifest import Manifest

Words = list[str]


def flickr8k(files: Any, root: Path) -> Words:
    files.clip(root / "flickr_audio" / "wavs" / "1_2_0.wav")
    files.clip(root / "flickr_audio" / "wavs" / "1_2_1.wav")
    files.image(root / "Images" / "1_2.jpg")
    files.text(root / "flickr_audio" / "wav2capt.txt", "1_2_0.wav 1_2.jpg #0\n1_2_1.wav 1_2.jpg #1\n")
    files.text(root / "text" / "Flickr_8k.testImages.txt", "1_2.jpg\n")
    folders = {"--audio": "flickr_audio", "--images": "Images", "--text": "text"}
    return ["flickr8k", *(word for flag, name in folders.items() for word in (flag, str(root / name)))]


def spokencoco(files: Any, root: Path) -> Words:
    captions = [{"text": "A", "speaker": "s", "uttid": f"u{n}", "wav": f"wavs/val/0/u{n}.wav"} for n in range(2)]
    for caption in captions:
        files.clip(root / "SpokenCOCO" / caption["wav"])
    image = "val2014/COCO_val2014_000000325114.jpg"
    files.image(root / "coco" / image)
    content = json.dumps({"data": [{"image": image, "captions": captions}]})
    files.text(root / "SpokenCOCO" / "SpokenCOCO_val.json", content)
    karpathy = json.dumps({"images": [{"filename": Path(image).name, "filepath": "val2014", "split": "test"}]})
    files.text(root / "dataset_coco.json", karpathy)
    words = ["spokencoco", "--audio", str(root / "SpokenCOCO"), "--images", str(root / "coco")]
    return [*words, "--karpathy", str(root / "dataset_coco.json")]


def places(files: Any, root: Path) -> Words:
    data = []
    for n in range(2):
        files.clip(root / "audio" / "wavs" / f"{n}.wav")
        files.image(root / "images" / "a" / f"{n}.jpg")
        data.append({"uttid": str(n), "speaker": "s", "asr_text": "a", "wav": f"wavs/{n}.wav", "image": f"a/{n}.jpg"})
    files.text(root / "audio" / "metadata" / "test.json", json.dumps({"data": data}))
    metadata = str(root / "audio" / "metadata")
    return ["places", "--metadata", metadata, "--audio", str(root / "audio"), "--images", str(root / "images")]


def folder(files: Any, root: Path) -> Words:
    for n in range(2):
        files.clip(root / f"{n}.wav")
        files.image(root / f"{n}.jpg")
    return ["folder", str(root), "--val-share", "0", "--test-share", "0.999999"]


VERBS = [flickr8k, spokencoco, places, folder]
Lay = Callable[[Any, Path], Words]


@pytest.mark.parametrize("lay", VERBS)
def test_a_verb_writes_a_manifest_and_prints_what_is_in_it(
    tmp_path: Path, files: Any, capsys: pytest.CaptureFixture[str], lay: Lay
) -> None:
    to = tmp_path / "out" / "m.parquet"
    assert main(["data", *lay(files, tmp_path / "c"), "--to", str(to)]) == 0
    printed = capsys.readouterr()
    images = "1 image" if lay in (flickr8k, spokencoco) else "2 images"
    assert printed.out == f"{to}: test 2 clips of {images}\n"
    assert printed.err
    assert all(line.startswith("saysee: ") for line in printed.err.splitlines())
    assert len(Manifest.read(to)) == 2
    assert main(["data", "verify", str(to)]) == 0


@pytest.mark.parametrize("lay", VERBS)
def test_a_verb_prints_json(tmp_path: Path, files: Any, capsys: pytest.CaptureFixture[str], lay: Lay) -> None:
    words = ["data", *lay(files, tmp_path / "c"), "--to", str(tmp_path / "m.jsonl")]
    files.clip(tmp_path / "c" / "audio" / "extra.wav")
    assert main([*words, "--allow-missing", "5", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["manifest"] == str(tmp_path / "m.jsonl")
    assert result["splits"]["test"]["clips"] == 2
    assert {"missing", "empty", "extra", "problems", "notes"} <= result.keys()


@pytest.mark.parametrize("lay", VERBS)
def test_more_missing_files_than_allowed_exit_with_2_in_one_line(
    tmp_path: Path, files: Any, capsys: pytest.CaptureFixture[str], lay: Lay
) -> None:
    words = ["data", *lay(files, tmp_path / "c"), "--to", str(tmp_path / "m.parquet")]
    first = sorted((tmp_path / "c").rglob("*.wav"))[0]
    first.write_bytes(b"")
    assert main([*words, "--allow-missing", "0"]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert len(printed.err.strip().splitlines()) == 1
    assert first.name in printed.err
    assert "--allow-missing 1" in printed.err
    assert "Traceback" not in printed.err
    assert not (tmp_path / "m.parquet").exists()
    assert main([*words, "--allow-missing", "1"]) == 0
    assert len(Manifest.read(tmp_path / "m.parquet")) == 1


@pytest.mark.parametrize("lay", VERBS)
def test_a_wrong_folder_exits_with_2_in_one_line(
    tmp_path: Path, files: Any, capsys: pytest.CaptureFixture[str], lay: Lay
) -> None:
    words = [word.replace(str(tmp_path / "c"), str(tmp_path / "gone")) for word in lay(files, tmp_path / "c")]
    assert main(["data", *words, "--to", str(tmp_path / "m.parquet")]) == 2
    printed = capsys.readouterr().err
    assert len(printed.strip().splitlines()) == 1
    assert str(tmp_path / "gone") in printed


def test_help_states_the_default_limit(capsys: pytest.CaptureFixture[str]) -> None:
    for verb, limit in (("flickr8k", ALLOW_MISSING), ("spokencoco", 0), ("places", 0), ("folder", 0)):
        assert main(["data", verb, "--help"]) == 0
        assert f"missing or empty (default: {limit})" in " ".join(capsys.readouterr().out.split())
