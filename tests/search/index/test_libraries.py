"""A library of photos as people have it: drives that come and go, trash, thumbnails, raw files, videos, links."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import socket
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from media_files import clip, picture, rows
from saysee import Index, SaySeeError
from saysee.cli import main
from saysee.data.manifest import Manifest, Row
from saysee.search.index.index import open_store
from saysee.search.index.sources import find_source, watch_index
from saysee.search.index.store import About, Item
from saysee.search.index.updating import update_index
from saysee_process import start_saysee


def paths(place: str | Path) -> set[str]:
    return {path for _, path in rows(place)}


def photo(path: Path, taken: str = "2024:06:03 14:05:09", model: str = "Pixel 7") -> Path:
    exif = Image.Exif()
    exif[0x0110] = model
    exif.get_ifd(0x8769)[0x9003] = taken
    exif.get_ifd(0x8825).update({1: "N", 2: (52.0, 31.0, 12.0), 3: "E", 4: (13.0, 24.0, 18.0)})
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (30, 30), "red").save(path, "JPEG", exif=exif)
    return path


def video(path: Path) -> Path:
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as output:
        track = output.add_stream("mpeg4", rate=10)
        track.width, track.height, track.pix_fmt = 64, 64, "yuv420p"
        frame = av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8), "rgb24")
        for packet in (*track.encode(frame), *track.encode(None)):
            output.mux(packet)
    path.write_bytes(file.getvalue())
    return path


def test_what_is_not_read_is_counted_and_content_decides_where_a_suffix_does_not(encoder, photos, place, capsys):
    jpeg = photo(photos / "holiday/shown.jpg")
    for name in ("copy.jfif", "copy", "copy.bin", "copy.photo"):
        shutil.copy(jpeg, photos / name)
    (photos / "raw.cr2").write_bytes(b"II*\0junk")
    (photos / "raw.NEF").write_bytes(Path(picture(photos / "a.tif", 9)).read_bytes())
    (photos / "a.tif").unlink()
    (photos / "notes").write_bytes("\ufeffUTF-16 begins as MP3 does".encode("utf-16-le"))
    (photos / "empty").touch()
    os.mkfifo(photos / "pipe")
    shutil.copy(jpeg, photos / "letter.txt")  # not opened
    video(photos / "party.mp4")
    report = update_index(encoder, photos, place)
    assert dict(report.ignored) == {".cr2": 1, ".nef": 1, ".txt": 1, ".mp4": 1, "without suffix": 3}
    assert report.refused == []
    assert {"copy.jfif", "copy", "copy.bin", "copy.photo"} < paths(place)
    assert json.loads(json.dumps(report.to_dict()))["ignored"][".mp4"] == 1
    assert ".nef" in report.to_line()
    assert (report.images, report.clips) == (11, 3)
    assert update_index(encoder, photos, place).kept == 14


def test_only_files_that_are_not_read_are_an_error_that_counts_them(tmp_path):
    (tmp_path / "a.cr2").touch()
    with pytest.raises(SaySeeError, match=r"1 \.cr2"):
        find_source(tmp_path)


def test_trash_thumbnails_and_what_the_user_excludes(encoder, photos, place):
    for folder in ("@eaDir", "#RECYCLE", "$RECYCLE.BIN", "lost+found", "System Volume Information", ".Trash-1000"):
        picture(photos / "work" / folder / "a.png", 8)
    picture(photos / "phone/whatsapp/a.png", 8)
    (photos / "phone/.nomedia").touch()
    update_index(encoder, photos, place)
    assert paths(place) == {f"holiday/{n}.png" for n in range(4)} | {"work/4.png", "work/5.png"} | {
        f"clips/{n}.wav" for n in range(3)
    }
    source = find_source(photos, ["Holiday/3*", "5.PNG", "nothing"])
    report = update_index(encoder, source, place)
    assert dict(report.excluded) == {
        "@eaDir": 1,
        "#recycle": 1,
        "$RECYCLE.BIN": 1,
        "lost+found": 1,
        "System Volume Information": 1,
        ".*": 1,
        ".nomedia": 1,
        "Holiday/3*": 1,
        "5.PNG": 1,
        "nothing": 0,
    }
    assert report.removed == 2  # they exist, and the user no longer wants them
    assert {"holiday/3.png", "work/5.png"}.isdisjoint(paths(place))


def test_a_folder_keeps_its_place_whatever_links_lead_to_it(encoder, photos, place):
    (photos / "a link").symlink_to("holiday")
    (photos / "work/up").symlink_to("..")
    (photos / "work/self").symlink_to("self")
    (photos / "usb").symlink_to("/nowhere/usb")
    picture(photos.parent / "disk/far.png", 7)
    (photos / "z").symlink_to(photos.parent / "disk")
    (photos / "y").symlink_to(photos.parent / "disk")
    report = update_index(encoder, photos, place)
    assert {path for path in paths(place) if not path.startswith("clips")} == {
        *(f"holiday/{n}.png" for n in range(4)),
        *("work/4.png", "work/5.png", "y/far.png"),
    }
    assert sorted(Path(path).name for path, _ in report.unreadable) == ["self", "usb"]


def test_rows_of_a_link_listed_by_an_earlier_release_leave(encoder, photos, place):
    update_index(encoder, photos, place)
    (photos / "link").symlink_to("holiday")
    with open_store(place).writing() as writer, writer.transaction():
        writer.put([Item("image", "link/0.png", 1, 1, "x")], np.eye(1, 24, dtype=np.float32))
    assert update_index(encoder, photos, place).removed == 1
    assert "link/0.png" not in paths(place)


def test_rows_below_what_cannot_be_read_are_kept(encoder, photos, place, monkeypatch):
    (photos / "usb").symlink_to(photos.parent / "drive")
    picture(photos.parent / "drive/a.png", 7)
    picture(photos / "work/5.png", 8)
    update_index(encoder, photos, place)
    before = paths(place)
    assert "usb/a.png" in before
    shutil.rmtree(photos.parent / "drive")
    (photos / "work/4.png").unlink()
    scan = os.scandir

    def scandir(path):
        if str(path).endswith("holiday"):
            raise PermissionError(13, "Permission denied", path)
        if str(path).endswith("clips"):  # a network drive fails midway
            raise OSError(5, "Input/output error", path)
        return scan(path)

    monkeypatch.setattr(os, "scandir", scandir)
    report = update_index(encoder, photos, place)
    assert paths(place) == before - {"work/4.png"}
    assert {Path(path).name: reason for path, reason in report.unreadable}["holiday"] == "Permission denied"
    assert (dict(report.missing), report.removed) == ({"holiday": 4, "clips": 3, "usb": 1}, 1)
    with pytest.raises(SaySeeError, match="Permission denied"):
        find_source(photos / "holiday")


def test_a_file_that_cannot_be_opened_keeps_its_row(encoder, photos, place):
    update_index(encoder, photos, place)
    (photos / "work/4.png").unlink()
    (photos / "work/4.png").symlink_to("/nowhere/4.png")
    report = update_index(encoder, photos, place)
    assert "does not exist" in report.refused[0][1]
    assert dict(report.missing) == {"work": 1}
    assert "work/4.png" in paths(place)


@pytest.mark.parametrize("empty", [True, False], ids=["mount point", "gone"])
def test_a_folder_that_vanished_whole_keeps_its_rows_until_allowed(encoder, photos, place, counted, empty):
    update_index(encoder, photos, place)
    counted()
    shutil.move(photos / "work", photos.parent / "drive")
    if empty:
        (photos / "work").mkdir()
    report = update_index(encoder, photos, place)
    assert (dict(report.missing), report.removed, len(rows(place))) == ({"work": 2}, 0, 9)
    assert "2 work" in report.notes[0]
    assert "--allow-removals" in report.notes[0]
    shutil.rmtree(photos / "work", ignore_errors=True)
    shutil.move(photos.parent / "drive", photos / "work")  # mounted again
    report = update_index(encoder, photos, place)
    assert (dict(report.missing), report.kept, counted()) == ({}, 9, 0)
    shutil.rmtree(photos / "work")
    assert update_index(encoder, photos, place, allow_removals=True).removed == 2
    assert len(rows(place)) == 7


def test_more_than_half_of_all_rows_are_kept_until_allowed(encoder, photos, place):
    update_index(encoder, photos, place)
    (photos / "notes.txt").touch()
    for number in range(3):
        (photos / f"holiday/{number}.png").unlink()
    (photos / "work/4.png").unlink()
    for number in range(1):
        (photos / f"clips/{number}.wav").unlink()
    report = update_index(encoder, photos, place)
    assert (dict(report.missing), report.removed) == ({".": 5}, 0)
    assert "5 of 9" in report.notes[0]
    assert update_index(encoder, photos, place, allow_removals=True).removed == 5


def test_a_moved_folder_has_not_vanished(encoder, photos, place, counted):
    update_index(encoder, photos, place)
    counted()
    (photos / "holiday").rename(photos / "vacation")
    report = update_index(encoder, photos, place)
    assert (report.moved, report.removed, dict(report.missing), counted()) == (4, 0, {}, 0)


def test_files_of_a_manifest_on_a_drive_that_is_not_mounted(encoder, place, tmp_path):
    for number in range(3):
        picture(tmp_path / f"images/{number}.png", number)
        clip(tmp_path / f"clips/{number}.wav", number)
    listed = [Row(f"clips/{n}.wav", f"images/{n}.png", str(n), "test", f"text {n}") for n in range(3)]
    Manifest(listed, tmp_path).write(tmp_path / "m.jsonl")
    update_index(encoder, tmp_path / "m.jsonl", place)
    (tmp_path / "images").rename(tmp_path / "away")
    (tmp_path / "clips/0.wav").unlink()
    report = update_index(encoder, tmp_path / "m.jsonl", place)
    assert (report.removed, len(rows(place)), len(report.refused)) == (0, 6, 4)


def test_exif_is_metadata_and_a_manifest_has_the_last_word(encoder, place, tmp_path):
    photo(tmp_path / "photos/a.jpg")
    photo(tmp_path / "photos/b.jpg", taken="2023:01:01 00:00:00", model="X")
    picture(tmp_path / "photos/c.png", 1)
    update_index(encoder, tmp_path / "photos", place)
    index = Index.open(place, model=encoder.model)

    def found(*filters: str, **conditions: str) -> dict[str, dict]:
        (hits,) = index.search(vectors=np.ones((1, 24)), filters=filters, **conditions)
        return {Path(hit.path).name: hit.metadata for hit in hits}

    assert found("taken:2024-06..2024-08") == {
        "a.jpg": {"taken": "2024-06-03T14:05:09", "camera": "Pixel 7", "lat": 52.52, "lon": 13.405}
    }
    assert found("lat:52..53", "camera:pixel*") == {}
    assert found("lat:52..53", "camera:X").keys() == {"b.jpg"}
    assert found(where="metadata ->> 'taken' < '2024'").keys() == {"b.jpg"}
    photo(tmp_path / "photos/b.jpg", taken="2024:07:01 00:00:00")  # changed
    update_index(encoder, tmp_path / "photos", place)
    assert found("taken:2024-06..2024-08").keys() == {"a.jpg", "b.jpg"}
    clip(tmp_path / "0.wav", 1)
    rows = [Row("0.wav", "photos/a.jpg", "a", "test", "text", extra={"taken": "long ago"})]
    Manifest(rows, tmp_path).write(tmp_path / "m.jsonl")
    update_index(encoder, tmp_path / "m.jsonl", tmp_path / "other")
    (hits,) = Index.open(tmp_path / "other").search(vectors=np.ones((1, 24)))
    assert hits[0].metadata["taken"] == "long ago"
    assert hits[0].metadata["camera"] == "Pixel 7"


def test_an_index_of_an_earlier_release_gets_exif_and_loses_videos_without_encoding(encoder, place, tmp_path, counted):
    photo(tmp_path / "photos/a.jpg")
    clip(tmp_path / "photos/b.wav", 1)
    for path in (tmp_path / "photos").iterdir():
        os.utime(path, (10**9, 10**9))
    update_index(encoder, tmp_path / "photos", place)
    party = video(tmp_path / "photos/party.mp4")
    os.utime(party, (10**9, 10**9))
    with open_store(place).writing() as writer:
        (item,) = (row for row in writer.items() if row.kind == "image")
        item.metadata = {}
        writer.refresh([item])
        writer.note("examined", None)
        status = party.stat()
        with writer.transaction():
            writer.put([Item("clip", "party.mp4", status.st_size, status.st_mtime_ns, "x")], np.eye(1, 24, dtype="f4"))
    counted()
    report = update_index(encoder, tmp_path / "photos", place)
    assert (counted(), report.removed, dict(report.ignored)) == (0, 1, {".mp4": 1})
    (hits,) = Index.open(place).search(vectors=np.ones((1, 24)))
    assert hits[0].metadata["taken"] == "2024-06-03T14:05:09"
    settled = rows(place)
    assert update_index(encoder, tmp_path / "photos", place).kept == 2
    assert rows(place) == settled


def test_metadata_that_no_database_can_hold_is_stored_without_it(place):
    store = open_store(place)
    odd = {"a\0b": "c\0d\ud800", "list": ["\0", {"deep": float("nan")}], "far": float("inf"), "path": Path("x")}
    with store.writing() as writer:
        writer.set_about(About("model", None, {"image": "1", "clip": "2"}, 24, "float32", "/root", None, "."))
        with writer.transaction():
            writer.put([Item("image", "a.png", metadata=odd)], np.eye(1, 24, dtype=np.float32))
        (row,) = writer.items()
    assert row.metadata == {"ab": "cd?", "list": ["", {"deep": None}], "far": None, "path": "x"}


def test_one_file_that_breaks_the_decoder_or_the_model_stops_nothing(encoder, photos, place, monkeypatch):
    prepare, encode = encoder.prepare, encoder.encode_prepared

    def breaking(kind, path, **limits):
        if path.name == "0.png":
            raise RuntimeError("decoder\nbroke")
        return prepare(kind, path, **limits)

    def not_finite(kind, prepared):
        vectors = encode(kind, prepared)
        if kind == "clip":
            vectors[0] = np.nan
        return vectors

    monkeypatch.setattr(encoder, "prepare", breaking)
    monkeypatch.setattr(encoder, "encode_prepared", not_finite)
    report = update_index(encoder, photos, place)
    assert (report.images, report.clips, report.encoded) == (5, 2, 7)
    assert ["decoder" in reason or "finite" in reason for _, reason in report.refused] == [True, True]
    assert Index.open(place).check() == []


def test_names_and_files_of_all_sorts(encoder, model_folder, tmp_path, capsys, monkeypatch):
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/ph\xffotos"))
    picture(folder / "two\nlines 🐈" / "a.png", 1)
    picture(folder / "A.PNG", 2)
    picture(folder / "a.png", 3)
    os.link(folder / "a.png", folder / "hard.png")
    deep = folder / "/".join(["d" * 100] * 20)
    deep.mkdir(parents=True)
    picture(deep / "deep.png", 4)
    (folder / "b.png").touch()
    os.mkfifo(folder / "pipe.png")
    with socket.socket(socket.AF_UNIX) as server:
        monkeypatch.chdir(folder)  # the path of a socket is short
        server.bind("socket.wav")
    (folder / os.fsdecode(b"\xfe.\xfd")).touch()
    assert main(["index", str(model_folder), str(folder), "--to", str(tmp_path / "index"), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["images"], len(report["refused"])) == (5, 3)
    assert main(["index", str(model_folder), str(folder), "--to", str(tmp_path / "index")]) == 0
    (hits,) = Index.open(tmp_path / "index", model=encoder.model).search(images=[folder / "hard.png"], k=9)
    assert sorted(hit.copies for hit in hits) == [1, 1, 1, 2]
    assert main(["search", str(tmp_path / "index"), str(folder / "a.png")]) == 0


def test_a_watched_folder_is_indexed_again_after_each_burst_of_changes(encoder, photos, place):
    updates, steps = [], []

    def update():
        assert updates or not steps  # the first waits for nothing
        updates.append(update_index(encoder, photos, place))
        return updates[-1]

    changes = {
        4: lambda: picture(photos / "a.png", 20),
        5: lambda: picture(photos / "b.png", 21),  # of the same burst
        10: lambda: photos.rename(photos.parent / "away"),
        14: lambda: (photos.parent / "away").rename(photos),
        17: lambda: (photos / "a.png").unlink(),
    }

    def wait(seconds: float) -> None:
        steps.append(seconds)
        if len(steps) in changes:
            changes[len(steps)]()
        if len(steps) == 22:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        for _ in watch_index(update, photos, wait=wait):
            pass
    assert [(report.images, report.encoded, report.removed) for report in updates] == [(6, 9, 0), (8, 2, 0), (7, 0, 1)]


def test_watching_ends_by_an_error_of_the_first_update_and_logs_a_later_one_once(photos, caplog):
    updates, steps = [], []

    def update():
        updates.append(len(steps))
        if len(updates) > 1:
            raise SaySeeError("the drive is gone")

    def wait(seconds: float) -> None:
        steps.append(seconds)
        if len(steps) == 1:
            picture(photos / "a.png", 20)
        if len(steps) == 9:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(watch_index(update, photos, wait=wait))
    assert updates[0] == 0
    assert len(updates) > 2
    assert caplog.text.count("the drive is gone") == 1
    with pytest.raises(SaySeeError, match="the drive is gone"):
        list(watch_index(update, photos, wait=wait))


def test_watching_from_the_command_line_until_it_is_interrupted(model_folder, photos, tmp_path):
    words = ["index", str(model_folder), str(photos), "--to", str(tmp_path / "index"), "--watch", "--json"]
    watching = start_saysee(*words)
    try:
        assert json.loads(watching.stdout.readline())["images"] == 6
        picture(photos / "a.png", 20)
        assert json.loads(watching.stdout.readline())["images"] == 7
        watching.send_signal(signal.SIGINT)
        _, errors = watching.communicate(timeout=60)
    finally:
        watching.kill()
    assert (watching.returncode, errors.count("Traceback")) == (130, 0)
