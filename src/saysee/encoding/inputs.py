"""What may be encoded: the types of clips, images and texts, checked before the first is read."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping, Set
from numbers import Real
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from saysee.encoding.sides import Kind
from saysee.errors import InputTypeError

NAMES: dict[Kind, str] = {"clip": "clips", "image": "images", "text": "texts"}
_TAKEN: dict[Kind, str] = {
    "clip": "a path, the bytes of a file, an array or tensor of samples, (array, rate), or a row's audio of datasets",
    "image": "a path, the bytes of a file, a Pillow image, an array or tensor of uint8, or a row's image of datasets",
    "text": "a str",
}
_MAX_CHANNELS = 4  # of an image


class Waveform(NamedTuple):
    """Samples with their rate in Hz."""

    samples: NDArray[Any]
    rate: int


def checked(items: Iterable[Any], kind: Kind) -> list[Any]:
    """The items as a list of what a side prepares.

    Clips are paths, bytes of files, open files, arrays or tensors of samples, (array, rate), and the mappings
    ``{"array", "sampling_rate"}`` and ``{"bytes", "path"}`` of the ``datasets`` library. Images are paths, bytes, open
    files, Pillow images, arrays or tensors of uint8 ([H, W], [H, W, C] or [C, H, W]), such mappings. Texts are strings.

    Raises InputTypeError if an item has another type, or one item was given without a list.
    """
    name = NAMES[kind]
    if _is_single(items, kind):
        raise InputTypeError(f"{name}: one item without a list; wrap it: [...]")
    if not isinstance(items, Iterable) or isinstance(items, Set):
        raise InputTypeError(f"{name}: a {type(items).__name__} has no order of items; give a list of {_TAKEN[kind]}")
    return [_checked_item(item, kind, f"{name}[{number}]") for number, item in enumerate(items)]


def _is_single(items: Any, kind: Kind) -> bool:
    if isinstance(items, str | bytes | bytearray | os.PathLike | Image.Image | Mapping) or hasattr(items, "read"):
        return True
    if kind == "clip" and isinstance(items, tuple) and len(items) == 2 and _is_rate(items[1]):
        return True
    if not isinstance(items, np.ndarray | torch.Tensor) or (
        isinstance(items, np.ndarray) and items.dtype.kind not in "biuf"
    ):
        return False
    channels = kind == "clip" and items.ndim == 2 and items.shape[1] <= 2
    return channels or items.ndim < (2 if kind == "clip" else 4)


def _checked_item(item: Any, kind: Kind, place: str) -> Any:
    found = item
    if kind != "text":
        if isinstance(item, Mapping) and "bytes" in item and "path" in item:
            found = item["path"] if item["bytes"] is None else item["bytes"]
        if isinstance(found, bytearray | memoryview):
            found = bytes(found)
        if isinstance(found, str | os.PathLike | bytes) or hasattr(found, "read"):
            return found
        if kind == "clip" and hasattr(found, "get_all_samples"):  # of datasets; decoded when it is read
            return found
        found = _samples(item) if kind == "clip" else _picture(item)
    if (kind == "text" and not isinstance(item, str)) or found is None:
        raise InputTypeError(f"{place}: {_described(item)} is not a {kind}; give {_TAKEN[kind]}")
    return found


def _samples(item: Any) -> NDArray[Any] | Waveform | None:
    rate = None
    if isinstance(item, Mapping) and "array" in item and "sampling_rate" in item:
        item, rate = item["array"], item["sampling_rate"]
        item = np.asarray(item) if isinstance(item, list) else item
    elif isinstance(item, tuple | list) and len(item) == 2 and _is_rate(item[1]):
        item, rate = item
    array = _numbers(item)
    if array is None or (rate is not None and not _is_rate(rate)):
        return None
    return array if rate is None else Waveform(array, int(rate))


def _picture(item: Any) -> Image.Image | None:
    if isinstance(item, Image.Image):
        return item
    array = _numbers(item)
    if array is None or array.dtype != np.uint8 or array.ndim not in (2, 3):
        return None
    if array.ndim == 3 and array.shape[2] > _MAX_CHANNELS:
        array = array.transpose(1, 2, 0)
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if array.ndim == 3 and not 2 <= array.shape[2] <= _MAX_CHANNELS:
        return None
    return Image.fromarray(np.ascontiguousarray(array))


def _numbers(item: Any) -> NDArray[Any] | None:
    if isinstance(item, torch.Tensor):
        item = item.detach().cpu()
        item = (item.float() if item.dtype == torch.bfloat16 else item).numpy()
    return item if isinstance(item, np.ndarray) and item.ndim and item.dtype.kind in "biufc" else None


def _is_rate(value: Any) -> bool:
    numbers = int | float | np.integer | np.floating
    return isinstance(value, numbers) and bool(0 < value < math.inf) and value is not True


def _described(item: Any) -> str:
    if isinstance(item, np.ndarray | torch.Tensor):
        return f"{type(item).__name__} {list(item.shape)} of {item.dtype}"
    return repr(item) if item is None or isinstance(item, Real) else f"a {type(item).__name__}"
