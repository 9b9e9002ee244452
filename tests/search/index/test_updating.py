"""New and changed files are encoded, once; rows of removed files leave; files that cannot be used are reported."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from media_files import clip, picture, rows
from saysee import Index, SaySeeError
from saysee.data.manifest import Manifest, Row
from saysee.search.index.updating import update_index


def settle(folder: Path) -> None:
    """Sets files' times back, as if they had lain there for an hour."""
    for path in folder.rglob("*.*"):
        status = path.stat()
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns - 3600 * 10**9))


def test_vectors_are_those_of_the_model(encoder, photos, place):
    report = update_index(encoder, photos, place, batch_size=4)
    assert (report.images, report.clips, report.encoded, report.refused) == (6, 3, 9, [])
    found = rows(place)
    images = encoder.model.encode_images([photos / "holiday/0.png", photos / "work/5.png"])
    speech = encoder.model.encode_speech([photos / "clips/2.wav"])
    for (kind, path), wanted in zip(
        [("image", "holiday/0.png"), ("image", "work/5.png"), ("clip", "clips/2.wav")],
        [*images, *speech],
        strict=True,
    ):
        np.testing.assert_allclose(np.frombuffer(found[kind, path][1], "<f4"), wanted, atol=2e-6)


def test_unchanged_files_are_not_even_opened(encoder, photos, place, counted, monkeypatch):
    settle(photos)
    update_index(encoder, photos, place)
    assert counted() == 9
    monkeypatch.setattr("saysee.search.index.batches.fingerprint", lambda file: pytest.fail(f"{file.name} was read"))
    before = rows(place)
    report = update_index(encoder, photos, place)
    assert (report.kept, report.encoded, counted()) == (9, 0, 0)
    assert rows(place) == before


def test_touched_files_are_known_by_their_content(encoder, photos, place, counted):
    update_index(encoder, photos, place)
    counted()
    os.utime(photos / "work/4.png")
    assert update_index(encoder, photos, place).kept == 9
    assert counted() == 0


def test_changed_file_of_equal_size_and_time_a_moment_ago_is_encoded(encoder, photos, tmp_path, counted):
    import soundfile

    path = photos / "clips/0.wav"
    update_index(encoder, photos, tmp_path / "index")
    counted()
    before, status = rows(tmp_path / "index"), path.stat()
    samples, rate = soundfile.read(path, dtype="int16")
    soundfile.write(path, samples[::-1], rate, subtype="PCM_16")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert path.stat().st_size == status.st_size
    update_index(encoder, photos, tmp_path / "index")
    after = rows(tmp_path / "index")
    assert counted() == 1
    assert after["clip", "clips/0.wav"][1] != before["clip", "clips/0.wav"][1]
    assert after["clip", "clips/0.wav"][0] == before["clip", "clips/0.wav"][0]


def test_removed_files_leave_and_moved_ones_keep_row_and_vector(encoder, photos, place, counted):
    update_index(encoder, photos, place)
    counted()
    before = rows(place)
    (photos / "work/5.png").unlink()
    (photos / "new").mkdir()
    (photos / "holiday/1.png").rename(photos / "new/one.png")
    shutil.copy(photos / "holiday/2.png", photos / "new/copy.png")
    report = update_index(encoder, photos, place)
    after = rows(place)
    assert (report.moved, report.removed, report.encoded, counted()) == (1, 1, 0, 0)
    assert after["image", "new/one.png"] == before["image", "holiday/1.png"]
    assert after["image", "new/copy.png"][1] == before["image", "holiday/2.png"][1]
    assert ("image", "holiday/1.png") not in after
    assert ("image", "work/5.png") not in after
    found = Index.open(place, model=encoder.model).search(images=[photos / "new/one.png"], kind="image")
    assert found[0][0].path == str(photos / "new/one.png")


def test_files_that_changed_places_have_each_its_own_vector(encoder, photos, place):
    update_index(encoder, photos, place)
    before = rows(place)
    one, other = photos / "holiday/0.png", photos / "holiday/1.png"
    one.rename(photos / "third")
    other.rename(one)
    (photos / "third").rename(other)
    update_index(encoder, photos, place, batch_size=1)
    after = rows(place)
    for here, there in (("0", "1"), ("1", "0")):
        np.testing.assert_allclose(
            np.frombuffer(after["image", f"holiday/{here}.png"][1], "<f4"),
            np.frombuffer(before["image", f"holiday/{there}.png"][1], "<f4"),
            atol=2e-6,
        )


def test_bad_files_are_reported_and_stop_nothing(encoder, photos, place):
    update_index(encoder, photos, place)
    (photos / "text.jpg").write_text("no picture")
    (photos / "empty.wav").touch()
    (photos / "gone.png").symlink_to("nowhere")
    (photos / "holiday/0.png").write_bytes((photos / "holiday/0.png").read_bytes()[:60])
    Path(os.fsdecode(os.fsencode(photos) + b"/\xff\xfe.png")).write_bytes((photos / "holiday/1.png").read_bytes())
    report = update_index(encoder, photos, place, batch_size=2)
    reasons = " ".join(reason for _, reason in report.refused)
    assert len(report.refused) == 5
    for words in ("is not an image", "is an empty file", "does not exist", "cut short", "not valid Unicode"):
        assert words in reasons
    assert (report.images, report.clips, report.removed) == (5, 3, 1)
    assert ("image", "holiday/0.png") not in rows(place)


def test_names_in_arabic_and_emoji(encoder, place, tmp_path):
    folder = tmp_path / "صور 📷"
    picture(folder / "عطلة" / "قطة 🐈‍⬛.png", 1)
    picture(folder / 'it\'s "[bold]"' / "100%.png", 2)
    update_index(encoder, folder, place)
    index = Index.open(place, model=encoder.model)
    (hits,) = index.search(
        images=[folder / "عطلة" / "قطة 🐈‍⬛.png"], where="folder LIKE 'عط%' AND name = 'قطة 🐈‍⬛.png'"
    )
    assert [hit.path for hit in hits] == [str(folder / "عطلة" / "قطة 🐈‍⬛.png")]
    (hits,) = index.search(images=[folder / "عطلة" / "قطة 🐈‍⬛.png"], where="folder = 'it''s \"[bold]\"'")
    assert [Path(hit.path).name for hit in hits] == ["100%.png"]


def test_manifest_gives_metadata(encoder, place, tmp_path):
    picture(tmp_path / "corpus/a.png", 1)
    for number in range(2):
        clip(tmp_path / f"corpus/{number}.wav", number)
    shared = {"image": "a.png", "image_id": "a", "split": "test"}
    Manifest(
        [Row(clip=f"{number}.wav", speaker=f"s{number}", extra={"place": "s\0ea"}, **shared) for number in range(2)],
        tmp_path / "corpus",
    ).write(tmp_path / "corpus/manifest.jsonl")
    update_index(encoder, tmp_path / "corpus/manifest.jsonl", place)
    index = Index.open(place, model=encoder.model)
    (hits,) = index.search(images=[tmp_path / "corpus/a.png"], kind="clip", where="metadata ->> 'speaker' = 's1'")
    assert [(Path(hit.path).name, hit.metadata["place"]) for hit in hits] == [("1.wav", "sea")]
    (hits,) = index.search(speech=[tmp_path / "corpus/0.wav"])
    assert [hit.metadata for hit in hits] == [{"image_id": "a", "split": "test", "place": "sea"}]


def test_index_and_images_may_move_together_or_apart(encoder, photos, tmp_path, counted):
    (tmp_path / "old").mkdir()
    shutil.move(photos, tmp_path / "old/photos")
    update_index(encoder, tmp_path / "old/photos", tmp_path / "old/index")
    counted()
    shutil.move(tmp_path / "old/index", tmp_path / "index")  # alone

    def first() -> str:
        index = Index.open(tmp_path / "index", model=encoder.model)
        return index.search(vectors=np.ones((1, index.about.dimension)), k=1)[0][0].path

    assert Path(first()).is_relative_to(tmp_path / "old/photos")
    assert update_index(encoder, tmp_path / "old/photos", tmp_path / "index").kept == 9
    shutil.move(tmp_path / "old/photos", tmp_path / "pictures")  # the images alone
    assert update_index(encoder, tmp_path / "pictures", tmp_path / "index").kept == 9
    assert Path(first()).is_relative_to(tmp_path / "pictures")
    (tmp_path / "far").mkdir()
    shutil.move(tmp_path / "pictures", tmp_path / "far/pictures")  # both
    shutil.move(tmp_path / "index", tmp_path / "far/index")
    found = Index.open(tmp_path / "far/index", model=encoder.model).search(vectors=np.ones((1, 24)), k=1)[0][0].path
    assert Path(found).is_relative_to(tmp_path / "far/pictures")
    assert Path(found).is_file()
    Path(found).unlink()  # a hit whose file has gone does not hide where the others are
    found = Index.open(tmp_path / "far/index", model=encoder.model).search(vectors=np.ones((1, 24)), k=2)[0][1].path
    assert Path(found).is_file()
    assert counted() == 0


def test_files_of_another_folder_are_refused(encoder, photos, place, tmp_path):
    update_index(encoder, photos, place)
    picture(tmp_path / "others/a.png", 1)
    before = rows(place)
    with pytest.raises(SaySeeError, match=str(photos)):
        update_index(encoder, tmp_path / "others", place)
    assert rows(place) == before


def test_new_speech_head_encodes_clips_again_and_no_image(encoder, photos, place, retrained, counted):
    settle(photos)
    update_index(encoder, photos, place)
    before = rows(place)
    asking = Index.open(place, model=retrained.model)
    assert len(asking.search(speech=[photos / "clips/0.wav"])[0]) == 6  # pictures' vectors are the same
    with pytest.raises(SaySeeError, match="clips"):
        asking.search(images=[photos / "work/4.png"], kind="clip")
    counted(retrained)
    report = update_index(retrained, photos, place)
    assert (report.encoded, report.kept, report.removed, counted()) == (3, 6, 0, 3)
    assert report.notes == ["3 clips of the index are of another model, and are encoded again"]
    after = rows(place)
    for key, (number, vector) in before.items():
        assert after[key][0] == number
        assert (after[key][1] == vector) == (key[0] == "image"), key
    assert asking.search(images=[photos / "work/4.png"], kind="clip")[0]
    with pytest.raises(SaySeeError, match="clips"):
        Index.open(place, model=encoder.model).search(images=[photos / "work/4.png"], kind="clip")
    assert update_index(retrained, photos, place).kept == 9


def test_new_speech_head_resumes_where_it_was_stopped(encoder, photos, place, retrained, counted, monkeypatch):
    settle(photos)
    update_index(encoder, photos, place)
    counted(retrained)
    prepare = retrained.prepare

    def stopping(kind, path):
        if path.name == "2.wav":
            raise KeyboardInterrupt
        return prepare(kind, path)

    monkeypatch.setattr(retrained, "prepare", stopping)
    with pytest.raises(KeyboardInterrupt):
        update_index(retrained, photos, place, batch_size=1, workers=1)
    monkeypatch.setattr(retrained, "prepare", prepare)
    done = counted()
    assert 0 < done < 3
    index = Index.open(place, model=encoder.model)
    assert len(index.search(images=[photos / "work/4.png"], kind="clip")[0]) == 3  # none is missing meanwhile
    assert f"{done} clips were encoded by another model than the rest" in index.check()[0]
    assert update_index(retrained, photos, place).encoded == 3 - done
    assert index.check() == []


def test_nothing_to_index_leaves_the_index_alone(encoder, photos, place):
    update_index(encoder, photos, place)
    shutil.rmtree(photos)
    photos.mkdir()  # as a drive that is not mounted looks
    with pytest.raises(SaySeeError, match=str(photos)):
        update_index(encoder, photos, place)
    assert len(rows(place)) == 9


def test_an_error_where_no_file_can_be_used(encoder, tmp_path):
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad/a.png").write_text("no picture")
    with pytest.raises(SaySeeError, match=r"a\.png"):
        update_index(encoder, tmp_path / "bad", tmp_path / "index")
    (tmp_path / "bad/a.png").rename(tmp_path / "bad/a")
    (tmp_path / "bad/a").write_bytes(b"\xff\xd8\xff and no more")  # looks like an image, but its name says nothing
    with pytest.raises(SaySeeError, match=str(tmp_path / "bad")):
        update_index(encoder, tmp_path / "bad", tmp_path / "other")


def test_places_that_cannot_hold_an_index(encoder, photos, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(SaySeeError, match="file/index"):
        update_index(encoder, photos, tmp_path / "file/index")
    with pytest.raises(SaySeeError, match=str(photos)):
        update_index(encoder, photos, photos)
    assert not (photos / "writer.lock").exists()


def test_second_writer_is_refused_by_name_and_readers_go_on(encoder, photos, tmp_path):
    update_index(encoder, photos, tmp_path / "index")
    program = (
        "import sys, pathlib\n"
        "from saysee.search.index.sql.sqlite import SqliteStore\n"
        "with SqliteStore(pathlib.Path(sys.argv[1])).writing() as writer, writer.transaction():\n"
        "    writer.connection.execute('DELETE FROM items')\n"
        "    print('holding', flush=True)\n"
        "    sys.stdin.readline()\n"
        "    raise KeyboardInterrupt\n"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", program, tmp_path / "index"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert other.stdout.readline() == "holding\n"
    with pytest.raises(SaySeeError, match=str(other.pid)):
        update_index(encoder, photos, tmp_path / "index")
    assert len(Index.open(tmp_path / "index").search(vectors=np.ones((1, 24)), k=3)[0]) == 3
    other.communicate("go\n")
    assert update_index(encoder, photos, tmp_path / "index").kept == 9


def test_full_disk_is_one_line_and_the_run_resumes(encoder, photos, tmp_path, monkeypatch):
    from saysee.search.index.sql.sqlite import SqliteTables

    begin = SqliteTables.__init__

    def cramped(self, folder, connection):
        begin(self, folder, connection)
        if not connection.in_transaction:
            connection.execute("PRAGMA max_page_count = 14")  # SQLite then meets the same error as on a full disk

    monkeypatch.setattr(SqliteTables, "__init__", cramped)
    for number in range(200):
        picture(photos / f"more/{number}.png", 100 + number)
    with pytest.raises(SaySeeError, match="full"):
        update_index(encoder, photos, tmp_path / "index", batch_size=8)
    monkeypatch.undo()
    done = len(rows(tmp_path / "index"))
    assert 0 < done < 200
    report = update_index(encoder, photos, tmp_path / "index")
    assert (report.encoded, report.images) == (209 - done, 206)


def test_damaged_index_is_one_line(tmp_path):
    (tmp_path / "index").mkdir()
    (tmp_path / "index/items.sqlite").write_bytes(b"rubbish" * 1000)
    with pytest.raises(SaySeeError, match="damaged"):
        Index.open(tmp_path / "index")
    with pytest.raises(SaySeeError, match="nowhere"):
        Index.open(tmp_path / "nowhere")


@pytest.mark.parametrize(("written", "words"), [(3, "format 3.*format 2"), (1, "format 1.*format 2")])
def test_other_format_is_refused(encoder, photos, tmp_path, written, words):
    update_index(encoder, photos, tmp_path / "index")
    with sqlite3.connect(tmp_path / "index/items.sqlite") as connection:
        connection.execute("UPDATE about SET value = ? WHERE name = 'format'", (str(written),))
    connection.close()
    for use in (
        lambda: Index.open(tmp_path / "index"),
        lambda: update_index(encoder, photos, tmp_path / "index"),
    ):
        with pytest.raises(SaySeeError, match=words):
            use()
