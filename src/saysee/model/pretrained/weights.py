"""Files of checkpoints in the Hugging Face layout, in a folder or on the hub, with errors of one line."""

import json
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from saysee.errors import CheckpointError, SaySeeError
from saysee.model.pretrained.clip import CLIP
from saysee.model.pretrained.configuration import CLIPConfig, HubertConfig
from saysee.model.pretrained.hubert import Hubert

ENCODERS = Path(__file__).parents[2] / "encoders"
"""The encoders of the package: one folder each, in the Hugging Face layout."""
OWNER = "saysee/"
FIX = "give a folder in the Hugging Face layout or a name on the hub"
HUB = ("revision", "token", "cache_dir", "local_files_only")
"""What may be said of a download."""

Module = TypeVar("Module", bound=nn.Module)
Config = TypeVar("Config")

_WEIGHTS = ("model.safetensors", "pytorch_model.bin")
_OLD_NAMES = {
    "pos_conv_embed.conv.weight_g": "pos_conv_embed.conv.parametrizations.weight.original0",
    "pos_conv_embed.conv.weight_v": "pos_conv_embed.conv.parametrizations.weight.original1",
}
_POINTER = b"version https://git-lfs"
_MAY_BE_MISSING = "masked_spec_embed"
"""Only pre-training needs it; it is 0 then."""


def place_of(name: str | os.PathLike[str]) -> str:
    """The folder of an encoder of the package, such as ``saysee/hubert-nano``; any other name or path unchanged."""
    place = os.fspath(name)
    if not place.startswith(OWNER) or Path(place).exists():
        return place
    folder = ENCODERS / place.removeprefix(OWNER)
    if not (folder / "config.json").is_file():
        known = ", ".join(sorted(OWNER + path.parent.name for path in ENCODERS.glob("*/config.json")))
        raise CheckpointError(f"the package has no encoder {place}; it has {known or 'none'}")
    return str(folder)


def find(place: str | os.PathLike[str], name: str, **hub: Any) -> Path | None:
    """A file of a checkpoint, downloaded if need be, or None; OSError if there is no checkpoint, or no connection."""
    folder = Path(place_of(place))
    if folder.is_dir() or folder.is_absolute() or os.fspath(place).startswith("."):
        if not folder.is_dir():
            raise FileNotFoundError("no such folder")
        return folder / name if (folder / name).is_file() else None
    import huggingface_hub
    from huggingface_hub import errors

    try:
        return Path(huggingface_hub.hf_hub_download(os.fspath(place), name, **hub))
    except errors.LocalEntryNotFoundError:
        known = {name: hub[name] for name in ("cache_dir", "revision") if name in hub}
        if huggingface_hub.try_to_load_from_cache(os.fspath(place), "config.json", **known):
            return None
        raise FileNotFoundError("it is not on this machine, and the hub cannot be reached") from None
    except errors.EntryNotFoundError:
        return None
    except errors.HFValidationError:
        raise FileNotFoundError("no such folder, and no name that the hub could have") from None
    except errors.GatedRepoError:
        raise PermissionError("access must be requested on its page; then run 'hf auth login'") from None
    except errors.RepositoryNotFoundError:
        raise FileNotFoundError("the hub has no such model, or it is private and 'hf auth login' is missing") from None


def read_json(place: str | os.PathLike[str], name: str, **hub: Any) -> dict[str, Any]:
    """The values of a file of a checkpoint, empty if there is none; errors of :func:`find`, ValueError if damaged."""
    file = find(place, name, **hub)
    try:
        values = {} if file is None else json.loads(file.read_text(encoding="utf-8"))
        return dict(values)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} is damaged ({error})") from error


def read_config(
    place: str | os.PathLike[str], kinds: tuple[str, ...], what: str, fix: str = FIX, **hub: Any
) -> dict[str, Any]:
    """The ``config.json`` of a model of one of some kinds; CheckpointError if there is none, or one of another kind."""
    try:
        values = read_json(place, "config.json", **hub)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"no {what} at {place}: {first_line(error)}; {fix}") from error
    kind = values.get("model_type")
    if kind not in kinds:
        found = f"it holds a model of the kind {kind!r}" if kind else "it has no config.json that names a kind of model"
        raise CheckpointError(f"no {what} at {place}: {found}; {fix}")
    return values


def load_weights(
    make: Callable[[], Module],
    place: str | os.PathLike[str],
    what: str,
    fix: str = FIX,
    *,
    prefix: str = "",
    dtype: torch.dtype = torch.float32,
    **hub: Any,
) -> Module:
    """The module that ``make`` makes with the weights of a checkpoint, in evaluation mode; others are left out.

    ``what`` and ``fix`` are the kind of model, and how to repair an error, for messages; ``prefix`` is that of all
    names in some checkpoints of the kind; ``hub`` some of :data:`HUB`. Raises CheckpointError if the weights cannot be
    read, or some are missing or of another shape.
    """
    try:
        with _Undrawn(), torch.random.fork_rng(devices=[]):
            module = make()
        wanted = module.state_dict()
        weights = {  # copies: what still lies in the file would change with it
            name: value.to(dtype if value.is_floating_point() else value.dtype, copy=True)
            for published, value in _read(place, hub).items()
            if (name := _name(published, prefix)) in wanted
        }
        for name in wanted.keys() - weights.keys():
            if name.endswith(_MAY_BE_MISSING):
                weights[name] = torch.zeros(wanted[name].shape, dtype=dtype)
        for name, value in weights.items():
            if value.shape != wanted[name].shape:
                raise ValueError(f"{name} is {list(value.shape)}, and its config.json says {list(wanted[name].shape)}")
    except Exception as error:  # safetensors, torch and configurations raise many kinds for a broken folder
        raise CheckpointError(f"no {what} at {place}: {first_line(error)}; {fix}") from error
    if missing := sorted(wanted.keys() - weights.keys()):
        raise CheckpointError(f"{what} at {place}: some of its weights are missing, {missing[0]} among them; {fix}")
    module.load_state_dict(weights, assign=True)
    return module.eval()


def load_hubert(place: str | os.PathLike[str]) -> Hubert:
    """The HuBERT at a place, in fp32; CheckpointError if there is none."""
    config = hubert_config(place)
    return load_weights(lambda: Hubert(config), place, "HuBERT", prefix="hubert.")


def load_clip(place: str | os.PathLike[str], text: bool) -> CLIP:
    """The CLIP at a place, in fp32, or without ``text`` its vision tower alone; CheckpointError if there is none."""
    config = clip_config(place)
    return load_weights(lambda: CLIP(config if text else config.without_text), place, "CLIP", prefix="clip.")


def clip_config(place: str | os.PathLike[str]) -> CLIPConfig:
    """The configuration of the CLIP at a place; CheckpointError if there is none."""
    return _config(CLIPConfig.of, place, ("clip", "clip_vision_model"), "CLIP")


def hubert_config(place: str | os.PathLike[str]) -> HubertConfig:
    """The configuration of the HuBERT at a place; CheckpointError if there is none."""
    return _config(HubertConfig.of, place, ("hubert",), "HuBERT")


def first_line(error: BaseException) -> str:
    """The first line of a library's error message."""
    return str(error).strip().split("\n")[0].rstrip(".") or type(error).__name__


class _Undrawn(TorchFunctionMode):
    """While it is active, first weights are whatever the memory holds: drawing them would take seconds.

    On torch's device "meta" they would not be drawn either, but there a draw imports torch's compiler, which takes a
    second and a half.
    """

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(function, "__name__", "") in ("normal_", "uniform_", "kaiming_uniform_", "kaiming_normal_"):
            return args[0] if args else (kwargs or {})["tensor"]
        return function(*args, **(kwargs or {}))


def _config(of: Callable[[dict[str, Any]], Config], place: Any, kinds: tuple[str, ...], what: str) -> Config:
    values = read_config(place, kinds, what)
    try:
        return of(values)
    except SaySeeError as error:
        raise CheckpointError(f"no {what} at {place}: config.json: {error}") from None


def _name(name: str, prefix: str) -> str:
    name = name.removeprefix(prefix)
    for old, new in _OLD_NAMES.items():
        if name.endswith(old):
            return name.removesuffix(old) + new
    return name


def _read(place: str | os.PathLike[str], hub: dict[str, Any]) -> dict[str, Tensor]:
    """All weights; safetensors, and files of torch in its zip format, stay on the disk until they are used."""
    offline = "" if Path(place_of(place)).is_dir() else ", or the hub cannot be reached"
    for name in _WEIGHTS:
        if file := find(place, name, **hub):
            return _read_file(file)
        if parts := read_json(place, f"{name}.index.json", **hub).get("weight_map"):
            files = {part: find(place, part, **hub) for part in sorted(set(parts.values()))}
            if lacking := [part for part, file in files.items() if file is None]:
                raise FileNotFoundError(f"it has no {lacking[0]}{offline}")
            return {key: value for file in files.values() if file for key, value in _read_file(file).items()}
    raise FileNotFoundError(f"it has no {' or '.join(_WEIGHTS)}{offline}")


def _read_file(file: Path) -> dict[str, Tensor]:
    with file.open("rb") as opened:
        if opened.read(len(_POINTER)) == _POINTER:
            raise ValueError(f"{file.name} is a pointer of Git LFS; get the weights by 'git lfs pull' in its folder")
    try:
        if file.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(file)
        values: dict[str, Tensor] = torch.load(file, "cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
        return {name: value for name, value in values.items() if isinstance(value, Tensor)}
    except Exception as error:  # torch's messages say how to run code from the file, or nothing
        raise ValueError(f"{file.name} is damaged or holds more than weights ({type(error).__name__})") from error
