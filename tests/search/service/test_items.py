"""Only files of the index are served, by their content; adding and removing items keeps the user's own files."""

from __future__ import annotations

import io
import json
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from fake_images import FakeImages, serving
from PIL import Image

from media_files import clip, picture
from saysee import Index, Manifest
from saysee.data.manifest import Row
from saysee.files import fingerprint
from saysee.media import web
from saysee.media.web import ImageServer
from saysee.search.index.sources import find_source
from saysee.search.index.updating import update_index
from saysee.search.service.items import Items


def row(index, path: Path) -> int:
    with index.store.writing() as writer:
        return next(item.id for item in writer.items() if Path(item.path).name == path.name)


def test_files_are_served_whole_and_by_their_content(ask, index, photos):
    client = ask()
    for path, address, kind in (
        (photos / "work/4.png", "images", "image/png"),
        (photos / "clips/1.wav", "clips", "audio/wav"),
    ):
        answer = client.get(f"/{address}/{row(index, path)}")
        assert (answer.status_code, answer.content, answer.headers["content-type"]) == (200, path.read_bytes(), kind)
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert "sandbox" in answer.headers["content-security-policy"]
    part = client.get(f"/clips/{row(index, photos / 'clips/1.wav')}", headers={"Range": "bytes=0-3"})
    assert (part.status_code, part.content) == (206, b"RIFF")


def test_files_outside_the_index_are_never_served(ask, index, photos, tmp_path):
    (tmp_path / "secret.png").write_bytes((photos / "work/4.png").read_bytes())
    client = ask()
    for path in (
        "/images/99", "/images/0", "/images/-1", "/images/9223372036854775808", "/images/1.png", "/images/",
        "/images/../secret.png", "/images/..%2f..%2fsecret.png", "/images/%2e%2e/secret.png", "/clips/1",
        f"/images/{row(index, photos / 'clips/1.wav')}", "/page/../service/app.py", "/page/..%2fservice%2fapp.py",
        "/page/%2e%2e/attending.py", "/page/", "/page/.", "/index.html", "/uploads/a.png",
    ):  # fmt: skip
        answer = client.get(path)
        assert answer.status_code in (404, 422), path
        assert list(answer.json()) == ["code", "detail", "request_id"]


def test_a_file_that_changed_its_kind_is_gone(ask, index, photos):
    client = ask()
    path = photos / "work/4.png"
    address = f"/images/{row(index, path)}"
    for content in (
        b"<!DOCTYPE html><script>alert(1)</script>",
        b"<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>",
        (photos / "clips/0.wav").read_bytes(),
        b"",
    ):
        path.write_bytes(content)
        for place in (address, f"{address}/thumbnail"):
            answer = client.get(place)
            assert (answer.status_code, answer.json()["code"]) == (410, "file-gone"), content
            assert str(photos) not in answer.text
    path.write_bytes(b"\x89PNG\r\n\x1a\n")  # damaged, which its first bytes do not show
    assert client.get(f"{address}/thumbnail").json()["code"] == "file-gone"
    path.unlink()
    assert client.get(address).json()["code"] == "file-gone"
    assert client.get("/images/1").status_code == 200


def test_a_web_address_is_not_a_file(ask, index):
    with sqlite3.connect(index.folder / "items.sqlite") as connection:
        connection.execute("UPDATE items SET path = 'https://example.org/a.png' WHERE id = 1")
    connection.close()
    client = ask()
    answer = client.get("/images/1")
    assert (answer.status_code, answer.json()["code"]) == (404, "no-such-file")


def test_thumbnails_are_small_and_follow_the_file(ask, index, photos):
    client = ask()
    path = photos / "work/4.png"
    address = f"/images/{row(index, path)}/thumbnail"
    Image.new("RGB", (1_000, 500), "red").save(path)
    first = client.get(address)
    assert (first.headers["content-type"], client.get(address).content) == ("image/webp", first.content)
    with Image.open(io.BytesIO(first.content)) as small:
        assert (small.format, small.size) == ("WEBP", (320, 160))
    Image.new("RGB", (10, 10), "blue").save(path)
    with Image.open(io.BytesIO(client.get(address).content)) as small:
        assert small.size == (10, 10)


def test_a_read_only_service_changes_nothing(ask, index):
    client = ask()
    for answer in (client.post("/items", files={"file": ("a.png", b"x")}), client.delete("/items/1")):
        assert (answer.status_code, answer.json()["code"]) == (403, "read-only")
    assert len(index) == 9


def test_an_added_image_is_found_and_stays(ask, index, encoder, photos, tmp_path):
    client = ask(write=True)
    new = picture(tmp_path / "new.png", 77).read_bytes()
    answer = client.post("/items", files={"file": ("../../evil.html", new)}, data={"metadata": '{"album": "عطلة 🌊"}'})
    assert answer.status_code == 201, answer.text
    added = answer.json()
    metadata = {"album": "عطلة 🌊", "file_name": "evil.html"}
    assert (added["name"], added["folder"], added["metadata"]) == ("evil.html", "uploads", metadata)
    assert [path.name for path in (index.folder / "uploads").iterdir()] == [f"{fingerprint(new)}.png"]
    assert not list(tmp_path.rglob("*evil*"))
    found = client.post("/search", files={"image": ("x", new)}, data={"kind": "image", "k": "1"}).json()["hits"][0]
    assert (found["id"], found["metadata"], round(found["score"], 3)) == (added["id"], metadata, 1.0)
    assert client.get(found["url"]).content == new
    # Bringing the index up to date with its folder leaves it there, encodes nothing, and keeps its metadata.
    report = update_index(encoder, photos, index.folder)
    assert (report.images, report.encoded, report.removed) == (7, 0, 0)
    assert index.rows([added["id"]])[added["id"]].metadata == metadata
    assert index.check() == []


def test_an_added_image_stays_in_the_index_of_a_manifest(encoder, photos, tmp_path):
    rows = [Row(f"clips/{number}.wav", f"work/{4 + number}.png", str(number), "train") for number in range(2)]
    manifest = photos / "manifest.jsonl"
    Manifest(rows, photos).write(manifest)
    update_index(encoder, manifest, tmp_path / "index")
    index = Index.open(tmp_path / "index", model=encoder.model)
    new = picture(tmp_path / "new.png", 81).read_bytes()
    added = Items(index, tmp_path / "index/uploads").add(
        "image", new, f"{fingerprint(new)}.png", encoder.encode_images([new])[0], {"a": 1}
    )
    report = update_index(encoder, manifest, tmp_path / "index")
    assert (report.images, report.clips, report.encoded, report.removed) == (3, 2, 0, 0)
    assert index.rows([added.id])[added.id].metadata == {"a": 1}
    (tmp_path / "index/uploads" / f"{fingerprint(new)}.png").unlink()
    assert update_index(encoder, manifest, tmp_path / "index").removed == 1


def test_an_upload_that_a_kill_left_without_its_row_can_be_repeated(ask, index, tmp_path):
    new = picture(tmp_path / "new.png", 82).read_bytes()
    name = f"{fingerprint(new)}.png"
    uploads = index.folder / "uploads"
    uploads.mkdir()
    (uploads / name).write_bytes(new)  # killed after the file was written
    (uploads / f".writing-{name}").write_bytes(new[:10])  # killed while it was written
    client = ask(write=True)
    assert client.post("/search", files={"image": ("x", new)}, data={"kind": "image"}).status_code == 200
    added = client.post("/items", files={"file": ("a.png", new)})
    assert (added.status_code, client.get(added.json()["url"]).content) == (201, new)
    assert [path.name for path in uploads.iterdir()] == [name]
    assert index.check() == []


def test_content_whose_file_is_gone_is_added_again(ask, index, tmp_path):
    client, new = ask(write=True), picture(tmp_path / "new.png", 83).read_bytes()
    assert client.post("/items", files={"file": ("a.png", new)}).status_code == 201
    (index.folder / "uploads" / f"{fingerprint(new)}.png").unlink()
    again = client.post("/items", files={"file": ("a.png", new)})
    assert (again.status_code, client.get(again.json()["url"]).content) == (201, new)


def test_the_same_content_is_not_added_twice(ask, index, photos):
    client = ask(write=True)
    known = (photos / "work/5.png").read_bytes()
    answer = client.post("/items", files={"file": ("a.png", known)})
    assert (answer.status_code, answer.json()["id"]) == (200, row(index, photos / "work/5.png"))
    assert not (index.folder / "uploads").exists()
    with index.store.writing() as writer:
        item = writer.rows([answer.json()["id"]]).popitem()[1]
        item.metadata = {"taken": "2024-06-03T14:05:09", "b": 2}  # the first is of the file
        writer.refresh([item])
    answer = client.post("/items", files={"file": ("a.png", known)}, data={"metadata": '{"a": 1}'})
    assert answer.json()["metadata"] == {"taken": "2024-06-03T14:05:09", "a": 1}
    new = clip(photos.parent / "new.wav", 50).read_bytes()
    first = client.post("/items", files={"file": ("a.wav", new)})
    again = client.post("/items", files={"file": ("b.wav", new)}, data={"metadata": '{"a": 1}'})
    assert (first.status_code, first.json()["kind"], again.status_code) == (201, "clip", 200)
    assert (first.json()["id"], again.json()["metadata"]) == (again.json()["id"], {"file_name": "a.wav", "a": 1})
    assert len(index) == 10
    for given, name in (("5", "5"), ('["a"]', f"{fingerprint(new)}.wav")):  # the name of an answer is a text
        data = {"metadata": f'{{"file_name": {given}}}'}
        assert client.post("/items", files={"file": ("b.wav", new)}, data=data).json()["name"] == name


def test_removing_an_item_keeps_the_users_own_file(ask, index, photos, tmp_path):
    client = ask(write=True, uploads=tmp_path / "elsewhere")
    new = picture(tmp_path / "new.png", 78).read_bytes()
    added = client.post("/items", files={"file": ("a.png", new)}).json()
    file = tmp_path / "elsewhere" / f"{fingerprint(new)}.png"
    assert file.read_bytes() == new
    own = photos / "work/5.png"
    assert client.get(added["thumbnail"]).status_code == 200
    for number in (added["id"], row(index, own)):
        assert client.delete(f"/items/{number}").status_code == 204
        assert client.delete(f"/items/{number}").status_code == 404
        assert client.get(f"/images/{number}").status_code == 404
    assert own.exists()
    assert not file.exists()
    with closing(sqlite3.connect(index.folder / "thumbnails.sqlite")) as kept:
        assert kept.execute("SELECT count(*) FROM copies").fetchone() == (0,)
    assert len(index) == 8


def test_an_upload_is_found_when_the_index_alone_is_moved(ask, index, encoder, tmp_path, photos):
    client = ask(write=True)
    new = picture(tmp_path / "new.png", 79).read_bytes()
    added = client.post("/items", files={"file": ("a.png", new)}).json()
    place = tmp_path / "deep/er/moved"
    place.parent.mkdir(parents=True)
    index.folder.rename(place)
    client = ask(Index.open(place, model=encoder.model))
    assert client.get(added["url"]).content == new
    assert update_index(encoder, photos, place).images == 7
    assert Index.open(place).path_of(Index.open(place).rows([added["id"]])[added["id"]]) == str(
        place / "uploads" / f"{fingerprint(new)}.png"
    )


def test_an_item_that_cannot_be_used_is_rejected(ask, index):
    client = ask(write=True)
    for files, status, code in (
        ({}, 415, "not-a-form"),
        ({"metadata": (None, "{}")}, 422, "invalid-field"),
        ({"file": ("a.png", b"<html>")}, 422, "undecodable"),
        ({"file": ("a.png", b"\x89PNG\r\n\x1a\nrubbish")}, 422, "truncated"),
        ({"file": ("a.wav", b"RIFF....WAVErubbish")}, 422, "truncated"),
        ({"file": ("a.png", b""), "metadata": (None, "[1]")}, 422, "invalid-field"),
        ({"file": ("a.png", b""), "metadata": (None, '{"a": NaN}')}, 422, "invalid-field"),
        ({"file": ("a.png", b""), "metadata": (None, '{"a": "\\ud800"}')}, 422, "invalid-field"),
        ({"file": ("a.png", b""), "metadata": (None, "[" * 9_999)}, 422, "invalid-field"),
        ({"file": ("a.png", b""), "metadata": (None, json.dumps({"a": "b" * 70_000}))}, 400, "malformed-form"),
    ):
        answer = client.post("/items", files=files)
        assert (answer.status_code, answer.json()["code"]) == (status, code), (files, answer.text)
    assert len(index) == 9
    assert not (index.folder / "uploads").exists()


def test_while_another_process_writes_the_client_is_asked_to_retry(ask, index, tmp_path):
    client = ask(write=True)
    with index.store.writing():
        answers = [
            client.post("/items", files={"file": ("a.png", picture(tmp_path / "a.png", 80).read_bytes())}),
            client.delete("/items/1"),
        ]
    for answer in answers:
        assert (answer.status_code, answer.headers["retry-after"]) == (409, "5")
        assert answer.json()["code"] == "index-busy"
        assert str(tmp_path) not in answer.text
    assert client.delete("/items/1").status_code == 204


@pytest.fixture
def library(index, photos) -> Iterator[FakeImages]:
    """The index's images as those of another server, with their addresses in the index."""
    images = {f"id-{number}": path for number, path in enumerate(sorted(photos.rglob("*.png")), 1)}
    with serving(images) as fake, sqlite3.connect(index.folder / "items.sqlite") as connection:
        for number, path in enumerate(images.values(), 1):
            address = f"{fake.base}/api/assets/id-{number}/thumbnail?size=preview"
            place = (address, path.relative_to(photos).as_posix())
            connection.execute("""UPDATE items SET path = ?, metadata = '{"title": "a b.png"}' WHERE path = ?""", place)
        connection.commit()
        yield fake


def row_at(index, address: str) -> int:
    return next(item.id for item in index.rows(range(1, 99)).values() if address in item.path)


def test_images_of_another_server_are_fetched_with_its_key_which_no_client_sees(ask, index, library, monkeypatch):
    monkeypatch.setenv("SAYSEE_IMAGES_KEY", library.key)
    client = ask(images_from=ImageServer(library.base))
    number = row_at(index, "/id-2/")
    whole, small = client.get(f"/images/{number}"), client.get(f"/images/{number}/thumbnail")
    assert (whole.content, whole.headers["content-type"]) == (library.images["id-2"].read_bytes(), "image/png")
    assert Image.open(io.BytesIO(small.content)).format == "WEBP"
    asked = len(library.asked)
    assert client.get(f"/images/{number}/thumbnail").content == small.content
    assert len(library.asked) == asked, "a copy is kept"
    hits = client.post("/search", files={"text": (None, "two green stars")}).json()["hits"]
    assert {hit["name"] for hit in hits if hit["kind"] == "image"} == {"a b.png"}
    answers = [client.get(f"/images/{hit['id']}/preview") for hit in hits]
    assert {answer.status_code for answer in answers} == {200}
    pages = [client.get(address) for address in ("/about", "/items", "/openapi.json", "/")]
    for answer in (whole, small, *answers, *pages):
        assert library.key not in answer.text + str(answer.headers)


MODES = {"html": 503, "cut": 503, "huge": 503, "slow": 503, "redirect": 503, "gone": 410, "key": 503, "elsewhere": 404}


@pytest.mark.parametrize("size", ["", "/thumbnail"])
@pytest.mark.parametrize("mode", MODES)
def test_a_server_of_images_that_misbehaves(ask, index, library, monkeypatch, mode, size):
    monkeypatch.setattr(web, "_SECONDS", 1.0)
    library.mode = mode
    number = row_at(index, "/id-2/")
    if mode == "gone":
        del library.images["id-2"]
    base = library.base[:-1] if mode == "elsewhere" else library.base  # of which the addresses start so too
    client = ask(images_from=ImageServer(base, "wrong" if mode == "key" else library.key))
    start = time.monotonic()
    answer = client.get(f"/images/{number}{size}")
    assert answer.status_code == MODES[mode], answer.text
    assert "wrong" not in answer.text
    assert library.key not in answer.text
    assert "<script" not in answer.text
    assert time.monotonic() - start < 30
    assert client.get("/health").status_code == 200
    if mode == "elsewhere":
        assert library.asked == []


def test_examples_are_part_of_what_is_served(encoder, photos, tmp_path, ask):
    rows = [Row("clips/0.wav", "work/4.png", "4", "test", text="a star", extra={"example": "clip"})]
    Manifest(rows, photos).write(photos / "rows.jsonl")
    update_index(encoder, find_source(photos / "rows.jsonl"), tmp_path / "demo" / "index")
    client = ask(Index.open(tmp_path / "demo", model=encoder.model))
    about = client.get("/about").json()
    assert about["name"] == "demo"
    [example] = about["examples"]
    assert (example["kind"], example["metadata"]["text"]) == ("clip", "a star")
    assert client.get(example["url"]).content == (photos / "clips/0.wav").read_bytes()
