"""Images of every format and mode decode to upright RGB; every bad one is rejected with its reason."""

from __future__ import annotations

import contextlib
import io
import os
import struct
import sys
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pillow_heif
import pytest
from PIL import Image

from saysee.errors import MediaError
from saysee.media.images import MAX_PIXELS, load_image

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")


def scene() -> Image.Image:
    """Red left half, blue right half, 60 × 40."""
    image = Image.new("RGB", (60, 40), "red")
    image.paste("blue", (30, 0, 60, 40))
    return image


def saved(image: Image.Image, form: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def near(image: Image.Image, at: tuple[int, int], color: tuple[int, int, int], within: int = 12) -> bool:
    return bool(np.abs(np.subtract(image.getpixel(at), color)).max() <= within)


def rejection(source: Any, **options: Any) -> MediaError:
    with pytest.raises(MediaError) as caught:
        load_image(source, **options)
    assert "\n" not in str(caught.value)
    assert ";" in str(caught.value), "the message holds a fix"
    return caught.value


@pytest.mark.parametrize("form", FORMATS)
def test_every_format_comes_out_as_rgb_from_any_source(tmp_path: Path, form: str) -> None:
    path = tmp_path / f"a.{form.lower()}"
    path.write_bytes(saved(scene(), form))
    with path.open("rb") as file:
        for source in (path, str(path), path.read_bytes(), file, Image.open(path)):
            image = load_image(source)
            assert image.mode == "RGB"
            assert image.size == (60, 40)
            assert near(image, (5, 20), (255, 0, 0))
            assert near(image, (55, 20), (0, 0, 255))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
def test_the_exif_orientation_is_applied(form: str, orientation: int) -> None:
    undo = {1: None, 2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}[orientation]
    upright = scene()
    stored = upright if undo is None else upright.transpose(Image.Transpose(undo))
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = load_image(saved(stored, form, exif=exif))
    assert image.size == (60, 40)
    assert near(image, (5, 20), (255, 0, 0))


def test_an_image_whose_exif_cannot_be_parsed_is_still_read() -> None:
    assert load_image(saved(scene(), "JPEG", exif=b"Exif\0\0garbage, not a TIFF")).size == (60, 40)


def test_transparency_is_composited_on_white() -> None:
    clear = Image.new("RGBA", (40, 40), (255, 0, 0, 0))
    half = Image.new("RGBA", (40, 40), (0, 0, 0, 128))
    palette = Image.new("P", (40, 40), 0)
    palette.putpalette([9, 9, 9, 200, 0, 0])
    keyed = saved(Image.new("RGB", (40, 40), (1, 2, 3)), "PNG", transparency=(1, 2, 3))
    for source in (saved(clear, "PNG"), saved(clear, "WEBP", lossless=True), saved(palette, "PNG", transparency=0)):
        assert near(load_image(source), (9, 9), (255, 255, 255))
    assert near(load_image(saved(palette, "GIF", transparency=0)), (9, 9), (255, 255, 255))
    assert near(load_image(keyed), (9, 9), (255, 255, 255))
    assert near(load_image(half), (9, 9), (127, 127, 127), 1)
    assert near(load_image(half.convert("LA")), (9, 9), (127, 127, 127), 1)


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK", "YCbCr", "LAB", "HSV", "RGBX"])
def test_any_mode_becomes_rgb(mode: str) -> None:
    if mode == "LAB":
        assert load_image(Image.new("LAB", (8, 8))).mode == "RGB"
        return
    image = load_image(Image.new("RGB", (8, 8), "white").convert(mode))
    assert image.mode == "RGB"
    assert near(image, (4, 4), (255, 255, 255), 2)


def test_cmyk_jpeg_keeps_its_colors() -> None:
    assert near(load_image(saved(scene().convert("CMYK"), "JPEG", quality=95)), (5, 20), (255, 0, 0))


@pytest.mark.parametrize("form", ["PNG", "TIFF"])
def test_16_bit_gray_is_scaled_and_not_clipped(form: str) -> None:
    values = np.array([[0, 257, 128 * 257, 65535]] * 4, np.uint16)
    image = load_image(saved(Image.fromarray(values), form))
    assert [image.getpixel((x, 0))[0] for x in range(4)] == [0, 1, 128, 255]


def test_32_bit_pixels_are_rejected() -> None:
    for values in (np.zeros((4, 4), np.int32), np.zeros((4, 4), np.float32)):
        assert rejection(saved(Image.fromarray(values), "TIFF")).code == "undecodable"


@pytest.mark.parametrize("form", ["GIF", "WEBP", "PNG", "TIFF"])
def test_an_animation_gives_its_first_frame(form: str) -> None:
    frames = [Image.new("RGB", (16, 16), color) for color in ("red", "lime")]
    data = saved(frames[0], form, save_all=True, append_images=frames[1:])
    assert near(load_image(data), (8, 8), (255, 0, 0))


def test_the_image_passed_in_is_neither_modified_nor_shared() -> None:
    given = scene()
    load_image(given).paste("white", (0, 0, 60, 40))
    assert near(given, (5, 20), (255, 0, 0))


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("keep", [0.5, 0.9])
def test_an_image_cut_short_is_rejected(form: str, keep: float) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8))
    data = saved(noise, form)
    assert rejection(data[: int(len(data) * keep)]).code == "truncated"


def png_header(width: int, height: int) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


@pytest.mark.parametrize("side", [9_500, 14_000, 60_000])
def test_a_decompression_bomb_is_rejected_by_its_header_without_a_warning(side: int) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert rejection(png_header(side, side)).code == "too-large"
        assert rejection(png_header(8_000, 8_000)).code == "truncated"  # under the limit: decoding finds no data


def test_the_limit_can_be_set() -> None:
    assert rejection(scene(), max_pixels=2_399).code == "too-large"
    assert load_image(scene(), max_pixels=2_400).size == (60, 40)
    assert MAX_PIXELS == Image.MAX_IMAGE_PIXELS


def test_an_image_as_thin_as_a_line_is_rejected() -> None:
    assert rejection(Image.new("RGB", (1, 101))).code == "too-large"
    assert rejection(Image.new("RGB", (0, 5))).code == "empty"


def test_files_that_are_not_images() -> None:
    for data in (
        b"hello",
        os.urandom(3) + bytes(100),
        b"RIFF\x24\0\0\0WAVEfmt ",
        b"<svg></svg>",
        b"%PDF-1.7",
        b"P6 1 1",
    ):
        assert rejection(data).code == "undecodable"


def test_garbage_after_valid_first_bytes_never_leaks_a_library_error() -> None:
    rng = np.random.default_rng(0)
    for form in FORMATS:
        good = saved(scene(), form)
        for _ in range(40):
            bad = bytearray(good)
            for at in rng.integers(0, min(len(bad), 200), 4):
                bad[at] = rng.integers(256)
            with contextlib.suppress(MediaError):  # no other error may be raised
                load_image(bytes(bad))


def test_paths_that_hold_no_file(tmp_path: Path) -> None:
    (tmp_path / "empty.png").touch()
    (tmp_path / "broken.png").symlink_to("nowhere.png")
    (tmp_path / "folder.png").mkdir()
    kinds = {"empty": "empty", "broken": "broken-link", "folder": "directory", "nothing": "missing"}
    for stem, kind in kinds.items():
        error = rejection(tmp_path / f"{stem}.png")
        assert error.code == kind
        assert f"{stem}.png" in str(error)


def test_a_text_file_object_is_a_type_error() -> None:
    with pytest.raises(TypeError, match="binary file"):
        load_image(io.StringIO("text"))  # type: ignore[arg-type]


def png_chunk(kind: bytes, content: bytes, checksum: int = 0) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content) ^ checksum)


@pytest.mark.parametrize("metadata", ["color profile", "compressed text", "many texts", "text of another checksum"])
def test_metadata_that_pillow_refuses_does_not_make_a_png_unreadable(metadata: str) -> None:
    plain = saved(scene(), "PNG")
    chunk = {
        "compressed text": png_chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(3_000_000))),
        "many texts": png_chunk(b"tEXt", b"a\0" + b"x" * 1_000_000) * 70,
        "text of another checksum": png_chunk(b"tEXt", b"a\0hello", checksum=1),
    }
    if metadata == "color profile":
        data = saved(scene(), "PNG", icc_profile=bytes(2_500_000))
    else:
        data = plain[:33] + chunk[metadata] + plain[33:]  # behind the header
    assert load_image(data).tobytes() == load_image(plain).tobytes()


def test_a_png_whose_pixels_are_cut_is_still_damaged() -> None:
    data = saved(scene(), "PNG", icc_profile=bytes(2_500_000))
    assert rejection(data[:-30]).code == "truncated"


@pytest.mark.parametrize("form", ["HEIC", "AVIF"])
def test_images_of_phones_are_read_upright(form: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    if form == "AVIF":
        data = saved(scene(), "AVIF", exif=exif, quality=95)
    else:
        encoded = pillow_heif.from_pillow(scene())
        encoded.info["exif"] = exif.tobytes()
        buffer = io.BytesIO()
        encoded.save(buffer, quality=95)
        data = buffer.getvalue()
    image = load_image(data)
    expected = scene().convert("RGB").transpose(Image.Transpose.ROTATE_270)
    assert image.size == expected.size
    assert np.abs(np.asarray(image).astype(int) - np.asarray(expected)).mean() < 12


def test_without_the_extra_a_heic_image_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    buffer = io.BytesIO()
    pillow_heif.from_pillow(scene()).save(buffer)
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    with pytest.raises(MediaError, match=r"saysee\[heif\]"):
        load_image(buffer.getvalue())


def test_a_panorama_is_decoded_at_a_fraction_of_its_size() -> None:
    panorama = saved(Image.new("RGB", (1600, 100), "red"), "JPEG")
    assert load_image(panorama, max_pixels=40_000).size == (800, 50)
    assert rejection(panorama, max_pixels=9_000).code == "too-large"  # over 16 times the limit
    progressive = saved(Image.new("RGB", (1600, 100), "red"), "JPEG", progressive=True)
    assert rejection(progressive, max_pixels=40_000).code == "too-large"
