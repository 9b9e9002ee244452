"""What a file is, by its first bytes or by its suffix."""

from __future__ import annotations

import io

import numpy as np
import pytest
import soundfile
from PIL import Image

from saysee.media.formats import file_kind, kind_by_suffix


def image(form: str) -> bytes:
    file = io.BytesIO()
    several = {"save_all": True, "append_images": [Image.new("RGB", (8, 8), "blue")]} if form == "MPO" else {}
    Image.new("RGB", (8, 8), "red").save(file, format=form, **several)
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
    ],
)
def test_audio(form, media_type, suffix):
    assert file_kind(io.BytesIO(audio(form))) == ("clip", media_type, suffix)


def test_an_id3_tag_is_skipped():
    tag = b"ID3\x04\x00\x00\x00\x00\x00\x0a" + bytes(10)
    assert file_kind(io.BytesIO(tag + audio("FLAC"))) == ("clip", "audio/flac", ".flac")


@pytest.mark.parametrize(
    "other",
    [b"", b"<!doctype html><p>hello", b"<svg xmlns='http://www.w3.org/2000/svg'/>", b"%PDF-1.7", b"BM", b"\x89PNG"],
)
def test_anything_else_has_no_kind(other):
    assert file_kind(io.BytesIO(other)) is None


@pytest.mark.parametrize(
    ("name", "kind"),
    [("a/b.WAV", "clip"), ("b.opus", "clip"), ("c.JPEG", "image"), ("d.tiff", "image"), ("e.svg", None), ("wav", None)],
)
def test_the_suffix_of_a_name_tells_its_kind(name, kind):
    assert kind_by_suffix(name) == kind
