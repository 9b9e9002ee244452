"""What is read of a file that is not decoded: EXIF of cameras, also of those that write it wrongly; videos."""

from __future__ import annotations

import io
from fractions import Fraction
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image, TiffImagePlugin

from saysee.media.metadata import is_video, read_exif

MAKE, MODEL, CHANGED, EXIF, GPS, TAKEN, DIGITIZED = 0x010F, 0x0110, 0x0132, 0x8769, 0x8825, 0x9003, 0x9004
BERLIN = {1: "N", 2: (52.0, 31.0, 12.0), 3: "E", 4: (13.0, 24.0, 18.0)}


def photo(tags: dict[int, Any], times: dict[int, Any] | None = None, gps: dict[int, Any] | None = None, kind="JPEG"):
    exif = Image.Exif()
    exif.update(tags)
    if times:
        exif.get_ifd(EXIF).update(times)
    if gps:
        exif.get_ifd(GPS).update(gps)
    file = io.BytesIO()
    if kind == "TIFF":  # Pillow writes the directories of an Exif object to other formats only
        tiff = TiffImagePlugin.ImageFileDirectory_v2()
        for tag, value in {**tags, EXIF: times, GPS: gps}.items():
            tiff[tag] = value
        Image.new("RGB", (8, 8)).save(file, kind, tiffinfo=tiff)
    else:
        Image.new("RGB", (8, 8)).save(file, kind, exif=exif)
    return file


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_date_camera_and_place_of_a_photo(kind: str) -> None:
    file = photo({MAKE: "Apple", MODEL: "iPhone 12"}, {TAKEN: "2024:06:03 14:05:09"}, BERLIN, kind)
    expected = {"taken": "2024-06-03T14:05:09", "camera": "Apple iPhone 12", "lat": 52.52, "lon": 13.405}
    assert read_exif(file) == expected


@pytest.mark.parametrize(
    ("tags", "times", "taken"),
    [
        ({CHANGED: "2020:01:02 03:04:05"}, {}, "2020-01-02T03:04:05"),
        ({CHANGED: "2020:01:02 03:04:05"}, {DIGITIZED: "1999:12:31 23:59:59"}, "1999-12-31T23:59:59"),
        ({CHANGED: "2020:01:02 03:04:05"}, {TAKEN: "0000:00:00 00:00:00"}, "2020-01-02T03:04:05"),
        ({}, {TAKEN: "2024-06-03T14:05:09"}, "2024-06-03T14:05:09"),
        ({}, {TAKEN: "2024:06:03 14:05"}, "2024-06-03T14:05:00"),
        ({}, {TAKEN: "2024:02:30 14:05:09"}, None),
        ({}, {TAKEN: "    :  :     :  :  "}, None),
        ({}, {TAKEN: "yesterday"}, None),
    ],
)
def test_dates_as_cameras_write_them(tags: dict[int, Any], times: dict[int, Any], taken: str | None) -> None:
    assert read_exif(photo(tags, times)).get("taken") == taken


@pytest.mark.parametrize(
    ("make", "model", "camera"),
    [
        ("Canon", "Canon EOS 5D", "Canon EOS 5D"),
        ("NIKON CORPORATION", "NIKON D90", "NIKON D90"),
        ("Leica", "", "Leica"),
        ("  Sony\0rubbish", "A\n7", "Sony A 7"),
        ("", "", None),
    ],
)
def test_name_of_the_camera(make: str, model: str, camera: str | None) -> None:
    assert read_exif(photo({MAKE: make, MODEL: model})).get("camera") == camera


@pytest.mark.parametrize(
    ("gps", "place"),
    [
        ({1: "S", 2: (33.0, 52.0, 10.0), 3: "W", 4: (151.0, 12.0, 30.0)}, (-33.869444, -151.208333)),
        ({1: "N", 2: (0.0, 0.0, 0.0), 3: "E", 4: (0.0, 0.0, 0.0)}, None),
        ({1: "N", 2: (95.0, 0.0, 0.0), 3: "E", 4: (13.0, 0.0, 0.0)}, None),
        ({1: "N", 2: (52.0, 31.0, 12.0)}, None),
        ({1: "N", 2: (TiffImagePlugin.IFDRational(0, 0),) * 3, 3: "E", 4: (13.0, 24.0, 18.0)}, None),
    ],
)
def test_places_that_are_right_or_missing(gps: dict[int, Any], place: tuple[float, float] | None) -> None:
    found = read_exif(photo({}, gps=gps))
    assert (found.get("lat"), found.get("lon")) == (place or (None, None))


def test_damaged_exif_stops_nothing() -> None:
    content = photo({MAKE: "Canon", MODEL: "Canon EOS"}, {TAKEN: "2024:06:03 14:05:09"}, BERLIN).getvalue()
    start = content.index(b"Exif")
    rng = np.random.default_rng(0)
    for _ in range(300):
        broken = bytearray(content)
        for place in rng.integers(start + 6, start + 250, 12):
            broken[place] = rng.integers(256)
        found = read_exif(io.BytesIO(bytes(broken)))
        assert all(isinstance(value, str | float) and value == value for value in found.values())
    for nothing in (b"", b"Exif", content[:30], b"II*\0\xff\xff\xff\xff", b"<html>"):
        assert read_exif(io.BytesIO(nothing)) == {}


def clip(kind: str, picture: str | None) -> io.BytesIO:
    file = io.BytesIO()
    with av.open(file, "w", format=kind) as output:
        sound = output.add_stream("libopus" if kind == "matroska" else "aac", rate=48_000)
        if picture:
            track = output.add_stream("mpeg4", rate=Fraction(10))
            track.width, track.height, track.pix_fmt = 64, 64, "yuv420p"
            frame = av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8), "rgb24")
            for packet in (*track.encode(frame), *track.encode(None)):
                output.mux(packet)
        samples = av.AudioFrame.from_ndarray(np.zeros((1, 960), np.float32), "fltp", "mono")
        samples.sample_rate = 48_000
        for packet in (*sound.encode(samples), *sound.encode(None)):
            output.mux(packet)
    return file


@pytest.mark.parametrize(("kind", "container"), [("mp4", "mov"), ("mov", "mov"), ("matroska", "matroska")])
def test_a_video_is_a_clip_with_a_picture_track(kind: str, container: str) -> None:
    assert is_video(clip(kind, "track"), container)
    assert not is_video(clip(kind, None), container)
    assert not is_video(io.BytesIO(b"no clip at all"), container)
    assert not is_video(clip(kind, "track"), "wav")
