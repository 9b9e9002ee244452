"""What a file is by its head, whatever it is called."""

from __future__ import annotations

import io

import numpy as np
import pytest
import soundfile
from PIL import Image

from saysee.media.formats import file_kind


def picture(form: str) -> bytes:
    file = io.BytesIO()
    several = {"save_all": True, "append_images": [Image.new("RGB", (8, 8), "blue")]} if form == "MPO" else {}
    Image.new("RGB", (8, 8), "red").save(file, format=form, **several)
    return file.getvalue()


def sound(form: str) -> bytes:
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
def test_pictures(form, media_type, suffix):
    assert file_kind(io.BytesIO(picture(form))) == ("image", media_type, suffix)


@pytest.mark.parametrize(
    ("form", "media_type", "suffix"),
    [
        ("WAV", "audio/wav", ".wav"),
        ("FLAC", "audio/flac", ".flac"),
        ("OGG", "audio/ogg", ".ogg"),
        ("MP3", "audio/mpeg", ".mp3"),
    ],
)
def test_sounds(form, media_type, suffix):
    assert file_kind(io.BytesIO(sound(form))) == ("clip", media_type, suffix)


def test_a_tag_does_not_hide_what_comes_behind_it():
    tag = b"ID3\x04\x00\x00\x00\x00\x00\x0a" + bytes(10)
    assert file_kind(io.BytesIO(tag + sound("FLAC"))) == ("clip", "audio/flac", ".flac")


@pytest.mark.parametrize(
    "other",
    [b"", b"<!doctype html><p>hello", b"<svg xmlns='http://www.w3.org/2000/svg'/>", b"%PDF-1.7", b"BM", b"\x89PNG"],
)
def test_all_else_is_nothing(other):
    assert file_kind(io.BytesIO(other)) is None
