"""What a file is, by its first bytes or by its suffix."""

from __future__ import annotations

import io

import numpy as np
import pillow_heif
import pytest
import soundfile
from PIL import Image

from saysee.media.formats import file_kind, kind_by_suffix, mpeg_start


def image(form: str) -> bytes:
    file = io.BytesIO()
    several = {"save_all": True, "append_images": [Image.new("RGB", (8, 8), "blue")]} if form == "MPO" else {}
    red = Image.new("RGB", (8, 8), "red")
    if form == "HEIF":
        pillow_heif.from_pillow(red).save(file)
    else:
        red.save(file, format=form, **several)
    return file.getvalue()


def audio(form: str) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, np.zeros(1600), 16_000, format=form)
    return file.getvalue()


@pytest.mark.parametrize(
    ("form", "media_type", "suffix"),
    [
        ("PNG", "image/png", ".png"),
        ("JPEG", "image/jpeg", ".jpg"),
        ("MPO", "image/jpeg", ".jpg"),
        ("WEBP", "image/webp", ".webp"),
        ("GIF", "image/gif", ".gif"),
        ("BMP", "image/bmp", ".bmp"),
        ("TIFF", "image/tiff", ".tif"),
        ("AVIF", "image/avif", ".avif"),
        ("HEIF", "image/heic", ".heic"),
    ],
)
def test_images(form, media_type, suffix):
    assert file_kind(io.BytesIO(image(form))) == ("image", media_type, suffix)


@pytest.mark.parametrize(
    ("form", "media_type", "suffix"),
    [
        ("WAV", "audio/wav", ".wav"),
        ("FLAC", "audio/flac", ".flac"),
        ("OGG", "audio/ogg", ".ogg"),
        ("MP3", "audio/mpeg", ".mp3"),
        ("AIFF", "audio/aiff", ".aiff"),
        ("CAF", "audio/x-caf", ".caf"),
        ("AU", "audio/basic", ".au"),
        ("W64", "audio/x-w64", ".w64"),
        ("NIST", "audio/x-nist", ".sph"),
        ("RF64", "audio/wav", ".wav"),
    ],
)
def test_audio(form, media_type, suffix):
    assert file_kind(io.BytesIO(audio(form))) == ("clip", media_type, suffix)


@pytest.mark.parametrize(
    "before",
    [
        bytes(5_000),
        b"TAG" + bytes(125),
        b"APETAGEX" + (2000).to_bytes(4, "little") + (64).to_bytes(4, "little") + bytes(16) + b"x" * 64,
        2 * (b"ID3\x04\x00\x00\x00\x00\x00\x0a" + bytes(10)) + bytes(100),
        b"\xff\xfb\x90 the rest of a frame",
    ],
    ids=["zeros", "ID3v1", "APE", "two ID3v2", "rest of a frame"],
)
def test_an_mp3_is_known_behind_tags_padding_and_junk(before: bytes):
    assert file_kind(io.BytesIO(before + audio("MP3"))) == ("clip", "audio/mpeg", ".mp3")
    assert mpeg_start(io.BytesIO(before + audio("MP3"))) == ("mp3", len(before))


def test_an_id3_tag_is_skipped():
    tag = b"ID3\x04\x00\x00\x00\x00\x00\x0a" + bytes(10)
    assert file_kind(io.BytesIO(tag + audio("FLAC"))) == ("clip", "audio/flac", ".flac")


@pytest.mark.parametrize(
    "other",
    [
        *(
            b"",
            b"<!doctype html><p>hello",
            b"<svg xmlns='http://www.w3.org/2000/svg'/>",
            b"%PDF-1.7",
            b"BM",
            b"\x89PNG",
        ),
        "a text in UTF-16 starts with the bits of an MPEG frame".encode("utf-16"),
        *(
            b"RIFF\x24\0\0\0AVI LIST",
            b"BM, they said, is a text",
            b"II*\0\x10\0\0\0CR\2\0",
            b"\0\0\0\x18ftypcrx \0\0\0\1",
        ),
    ],
)
def test_anything_else_has_no_kind(other):
    assert file_kind(io.BytesIO(other)) is None


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        *(("a/b.WAV", "clip"), ("b.opus", "clip"), ("h.oga", "clip"), ("i.mov", "clip"), ("j.aiff", "clip")),
        *(("c.JPEG", "image"), ("d.tiff", "image"), ("f.jfif", "image"), ("g.HEIC", "image")),
        *(("e.svg", None), ("wav", None)),
    ],
)
def test_the_suffix_of_a_name_tells_its_kind(name, kind):
    assert kind_by_suffix(name) == kind
