"""The whole corpus: always the same bytes, resumed after a real kill, never mixed with anything else."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image

from saysee.data.manifest import Manifest
from saysee.data.scenes.corpus import GENERATOR_VERSION, build_scenes
from saysee.data.scenes.planning import novel_pairs, split_sizes
from saysee.errors import ConfigError, MissingExtraError, SaySeeError
from saysee.files import UNFINISHED
from saysee_process import has_ended, wait_for

pytest.importorskip("espeakng_loader", reason="needs the 'scenes' extra")

COUNTS = {"images": 36, "val_images": 6, "test_images": 12, "seed": 3}
BUILD = (
    "import sys\n"
    "from saysee.data.scenes.corpus import build_scenes\n"
    f"build_scenes(sys.argv[1], workers=2, **{COUNTS!r})\n"
)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """A corpus made in one run by two workers."""
    folder = tmp_path_factory.mktemp("corpus") / "scenes"
    build_scenes(folder, workers=2, **COUNTS)
    return folder


@pytest.fixture(scope="module")
def manifest(corpus):
    return Manifest.read(corpus / "manifest.parquet")


def content(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def start_build(folder, **options):
    return subprocess.Popen([sys.executable, "-c", BUILD, str(folder)], stderr=subprocess.PIPE, text=True, **options)


def wait_for_records(folder, process, count):
    """Waits until ``count`` images, but not all, are finished."""
    wait_for(lambda: len(list(folder.glob("records/*/*.json"))) >= count, process)


def kill(process):
    """Kills a run, and waits until its workers have ended too."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    workers = children.read_text().split() if children.exists() else []
    process.kill()
    process.wait()
    deadline = time.monotonic() + 10
    while not all(has_ended(pid) for pid in workers) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert all(has_ended(pid) for pid in workers), "workers outlived the killed run"


def assert_all_whole(folder):
    """Every file with a final name can be decoded."""
    for path in folder.rglob("*"):
        if path.name.startswith(UNFINISHED) or path.is_dir():
            continue
        if path.suffix == ".png":
            Image.open(path).load()
        elif path.suffix == ".flac":
            assert len(soundfile.read(path)[0]) > 8000
        else:
            json.loads(path.read_text())


def test_manifest_has_every_image_five_times_with_files_that_decode(corpus, manifest):
    assert len(manifest) == 5 * 36
    assert Counter(row.split for row in manifest.images()) == {"train": 18, "val": 6, "test": 12}
    assert {path.name for path in corpus.iterdir()} == {"scenes.json", "manifest.parquet", "images", "clips"}
    for row in manifest:
        samples, rate = soundfile.read(manifest.clip_path(row), dtype="int16", always_2d=True)
        assert (rate, samples.shape[1]) == (16_000, 1)
        assert row.extra["seconds"] == pytest.approx(len(samples) / rate, abs=1e-3)
        assert np.abs(samples).max() > 1500
    for row in manifest.images():
        image = Image.open(manifest.image_path(row))
        assert (image.mode, image.size, image.format) == ("RGB", (224, 224), "PNG")


def test_the_ground_truth_of_objects_and_words_is_kept(manifest):
    for row in manifest:
        objects, words = row.extra["objects"], row.extra["words"]
        assert all(set(item) == {"shape", "color", "size", "fill", "box"} for item in objects)
        assert [word["word"] for word in words] == [word.rstrip(",") for word in row.text.split()]
        assert all(0 <= word["start"] < word["end"] <= row.extra["seconds"] for word in words)
        for word in words:
            for i in word["objects"]:
                said = word["word"]
                for attribute in ("color", "size", "fill"):
                    known = {item[attribute] for item in objects}
                    assert said not in known or objects[i][attribute] == said
        assert {i for word in words for i in word["objects"]}


def test_no_image_speaker_or_voice_is_in_two_splits(manifest):
    splits = defaultdict(set)
    for row in manifest:
        for key in (row.image_id, row.image, row.speaker, row.speaker.split("-p")[0]):
            splits[key].add(row.split)
        assert row.speaker.startswith(row.extra["accent"] + "+")
        assert row.language == "en"
    assert all(len(found) == 1 for found in splits.values())
    speakers = defaultdict(set)
    for row in manifest:
        speakers[row.image_id].add(row.speaker)
    assert all(len(found) == 5 for found in speakers.values())


def test_novel_pairs_and_hard_twins_have_their_columns(manifest):
    pairs = novel_pairs()
    images = {row.image_id: row for row in manifest.images()}
    for row in images.values():
        has_one = any((item["color"], item["shape"]) in pairs for item in row.extra["objects"])
        assert row.extra["novel_pair"] == has_one
        assert row.split == "test" or not (has_one or row.extra["hard_twin"])
        assert row.extra["hard_twin"] == (row.extra["twin_of"] is not None)
        if row.extra["hard_twin"]:
            twin = images[row.extra["twin_of"]]
            assert twin.extra["twin_of"] == row.image_id
            both = zip(row.extra["objects"], twin.extra["objects"], strict=True)
            assert sum(a != b for a, b in both) == 1
    assert sum(row.extra["hard_twin"] for row in images.values()) == 2
    assert any(row.extra["novel_pair"] for row in images.values())


def test_one_worker_makes_the_same_bytes_as_two(corpus, tmp_path):
    build_scenes(tmp_path / "scenes", workers=1, **COUNTS)
    assert content(tmp_path / "scenes") == content(corpus)


def test_killed_and_resumed_equals_never_killed(corpus, tmp_path):
    """Also where, as by a power cut, a clip and a record that were finished are empty."""
    folder = tmp_path / "scenes"
    process = start_build(folder)
    wait_for_records(folder, process, 6)
    kill(process)
    finished = sorted(folder.glob("records/*/*.json"))
    assert 0 < len(finished) < 36
    assert not (folder / "manifest.parquet").exists()
    assert_all_whole(folder)
    (folder / "clips" / "000" / f"{UNFINISHED}000001-0.flac").write_bytes(b"half")
    kept = {path: path.stat().st_mtime_ns for record in finished[2:] for path in folder.glob(f"clips/*/{record.stem}*")}
    assert len(kept) == 5 * len(finished[2:])
    (folder / "clips" / "000" / f"{finished[0].stem}-2.flac").write_bytes(b"")
    finished[1].write_bytes(b"")

    build_scenes(folder, workers=2, **COUNTS)
    assert content(folder) == content(corpus)
    assert not any(path.name.startswith(UNFINISHED) for path in folder.rglob("*"))
    assert {path: path.stat().st_mtime_ns for path in kept} == kept, "a finished clip was made again"


@pytest.mark.skipif(sys.platform == "win32", reason="Ctrl-C works differently there")
def test_ctrl_c_ends_early_and_quietly_and_keeps_what_is_finished(tmp_path):
    folder = tmp_path / "scenes"
    code = (
        BUILD.replace("build_scenes(sys", "try:\n    build_scenes(sys").replace("'images': 36", "'images': 90")
        + "except KeyboardInterrupt:\n    sys.exit(130)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(folder)], stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    wait_for_records(folder, process, 4)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in errors
    assert 4 <= len(list(folder.glob("records/*/*.json"))) < 90
    assert_all_whole(folder)


def test_a_complete_corpus_returns_at_once_also_without_the_synthesizer(corpus, monkeypatch):
    monkeypatch.setitem(sys.modules, "espeakng_loader", None)
    before = content(corpus)
    begun = time.monotonic()
    assert build_scenes(corpus, **COUNTS) == corpus / "manifest.parquet"
    assert time.monotonic() - begun < 0.5
    assert content(corpus) == before


def test_other_settings_are_rejected_in_one_line_that_names_them(corpus):
    for changed, difference in [
        ({"seed": 4}, "seed=3, not 4"),
        ({"image_size": 64}, "image_size=224, not 64"),
        ({"images": 40}, "images=18 train/6 val/12 test, not 22 train/6 val/12 test"),
    ]:
        with pytest.raises(SaySeeError, match=difference) as error:
            build_scenes(corpus, **{**COUNTS, **changed})
        assert "\n" not in str(error.value)


def test_an_unfinished_corpus_of_another_synthesizer_is_rejected(tmp_path):
    settings = {
        "version": GENERATOR_VERSION,
        "seed": 3,
        "images": split_sizes(36, 6, 12),
        "picture_size": 224,
        "speech": "loader 0.0",
    }
    (tmp_path / "scenes.json").write_text(json.dumps(settings))
    with pytest.raises(SaySeeError, match=r"speech=loader 0\.0, not espeakng-loader"):
        build_scenes(tmp_path, **COUNTS)


def test_a_folder_of_something_else_is_rejected_and_not_changed(tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_bytes(b"cat")
    with pytest.raises(SaySeeError, match="'photos'"):
        build_scenes(tmp_path, **COUNTS)
    with pytest.raises(SaySeeError, match=r"cat\.jpg"):
        build_scenes(tmp_path / "photos" / "cat.jpg", **COUNTS)
    (tmp_path / "photos" / "scenes.json").write_text("{half")
    with pytest.raises(SaySeeError, match=r"scenes\.json"):
        build_scenes(tmp_path / "photos", **COUNTS)
    assert [path.name for path in tmp_path.rglob("*.*")] == ["cat.jpg", "scenes.json"] or len(content(tmp_path)) == 2


def test_invalid_numbers_are_rejected_before_anything_is_written(tmp_path):
    for wrong in ({"images": 2}, {"image_size": 8}, {"workers": 0}, {"images": 10, "test_images": 10}):
        with pytest.raises(ConfigError):
            build_scenes(tmp_path / "scenes", **wrong)
    assert not (tmp_path / "scenes").exists()


def test_without_the_synthesizer_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "espeakng_loader", None)
    with pytest.raises(MissingExtraError, match=r"saysee\[scenes\]"):
        build_scenes(tmp_path / "scenes", **COUNTS)
    assert not (tmp_path / "scenes").exists()


def test_workers_load_neither_torch_nor_pyarrow():
    code = "import sys, saysee.data.scenes.making; print({'torch', 'pyarrow', 'transformers'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "set()\n"
