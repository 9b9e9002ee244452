"""Published checkpoints of SpeechCLIP parallel (arXiv 2210.00705) as SaySee models.

Its checkpoints are pickles of PyTorch Lightning. They are read without running anything that they name: tensors and
plain containers are rebuilt by torch's ``weights_only`` unpickler, a few classes are replaced by inert ones, and a file
that names anything else is refused.
"""

import os
import pickletools
import re
import zipfile
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from saysee.errors import CheckpointError
from saysee.files import write_folder
from saysee.model.configuration import HeadConfig
from saysee.model.pretrained.weights import clip_config, first_line, hubert_config
from saysee.model.retriever import SpeechImageModel
from saysee.model.speech_encoder import SpeechHead

REPOSITORY = "speechclip/models"
ENCODERS = {
    13: ("base", "facebook/hubert-base-ls960", "openai/clip-vit-base-patch32"),
    25: ("large", "facebook/hubert-large-ll60k", "openai/clip-vit-large-patch14"),
}
"""Kind and frozen encoders by the number of hidden states that are mixed."""
HEADS = 8
"""Attention heads of the published checkpoints; the weights do not show the number."""

_MIX, _CLS, _PROJECTION = (
    "audio_encoder.weightedsum_layer.weights",
    "parallel_branch.cls",
    "parallel_branch.linear_proj.",
)
_LAYERS, _TEMPERATURE = "parallel_branch.self_att.model.", "criterion.temperature"
_NAMES = {_MIX: "layer_mix.weights", _CLS: "head.cls", _LAYERS: "head.layers.", _PROJECTION: "head.projection."}
_OWN = ("parallel_branch.", "audio_encoder.weightedsum_layer.")
_DROPPED = ("audio_encoder.encoder.", "clip.model.", "criterion.eye_mat", "criterion.neg_eye_mat", _TEMPERATURE)
"""Frozen encoders, which are taken from where they were published, and what belongs to the loss."""

_PLAIN = re.compile(
    r"collections\.OrderedDict|_codecs\.encode|builtins\.(set|bytearray|complex)"
    r"|torch\._utils\._rebuild_(tensor_v2|parameter)|torch\.(storage\.)?\w*Storage"
    r"|torch\.(device|Size|float\d+|bfloat16|u?int\d+|bool|double|half|long)"
)


@dataclass(frozen=True)
class Converted:
    """What :func:`convert_speechclip` did."""

    model: str  # folder of the SaySee model
    checkpoint: str  # the file
    kind: str  # "base", "large" or "other"
    # speech, image: the frozen encoders
    speech: str
    image: str
    converted: dict[str, str]  # the name of each weight of the checkpoint that was taken, and its name in the model
    dropped: dict[str, int]  # how many weights were knowingly left out, by the start of their names
    unknown: list[str]  # names that no parallel SpeechCLIP has
    # the learned temperature of the loss, which the model does not keep; None if it was fixed
    temperature: float | None

    def facts(self) -> dict[str, Any]:
        """What the model card tells, without paths of this machine."""
        places = {"speech": self.speech, "image": self.image}
        sides = {side: Path(place).name if Path(place).exists() else place for side, place in places.items()}
        facts = {"kind": self.kind, "temperature": self.temperature}
        return {"file": Path(self.checkpoint).name, "repository": REPOSITORY, **facts, **sides}

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)

    def to_line(self) -> str:
        """One line for the terminal."""
        dropped = ", ".join(f"{count:,} of {name}" for name, count in self.dropped.items())
        return (
            f"{self.model}: SpeechCLIP parallel {self.kind}, {len(self.converted)} weights converted; dropped: "
            f"{dropped or 'none'}; frozen encoders: {self.speech}, {self.image}"
        )


def convert_speechclip(
    path: str | os.PathLike[str],
    to: str | os.PathLike[str],
    speech: str | os.PathLike[str] | None = None,
    image: str | os.PathLike[str] | None = None,
) -> Converted:
    """Makes a SaySee model of a checkpoint of SpeechCLIP parallel, a zip file of ``torch.save``, in a new folder.

    ``speech`` and ``image`` are folder or hub name of the frozen HuBERT and CLIP; None is the one of the checkpoint's
    kind. Raises CheckpointError if the file cannot be read, names something that is not allowed, or is of another
    model; or an encoder is not found or does not fit.
    """
    folder = Path(to)
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise CheckpointError(f"{folder}: exists; give another folder for the model")
    content = read_checkpoint(path)
    weights = content.get("state_dict")
    if not isinstance(weights, dict) or not all(isinstance(value, Tensor) for value in weights.values()):
        raise CheckpointError(f"{path}: has no weights under 'state_dict'; give a checkpoint of SpeechCLIP parallel")
    config = _head_config(path, weights, content.get("hyper_parameters"))
    head = _head_weights(path, weights, config)
    states, (width, dimension) = len(weights[_MIX]), _widths(weights)
    kind, *places = ENCODERS.get(states, ("other", "", ""))
    speech, image = (os.fspath(given or place) for given, place in zip((speech, image), places, strict=True))
    if not speech or not image:
        raise CheckpointError(f"{path}: {states} hidden states are neither base nor large; give --speech and --image")
    _check_encoders(path, speech, image, states, width, dimension)
    unknown = sorted(name for name in weights if name not in head and not name.startswith(_DROPPED))
    dropped = {start: sum(name.startswith(start) for name in weights) for start in _DROPPED}
    temperature = weights.get(_TEMPERATURE)
    result = Converted(
        model=os.fspath(folder),
        checkpoint=os.fspath(path),
        kind=kind,
        speech=speech,
        image=image,
        converted=dict(zip(head, map(_name, head), strict=True)),
        dropped={name: count for name, count in dropped.items() if count},
        unknown=unknown,
        temperature=None if temperature is None else float(torch.exp(-temperature.float()).mean()),
    )
    model = SpeechImageModel.from_encoders(speech, image, head=config)
    model.speech_encoder.load_state_dict({_name(name): value for name, value in head.items()}, strict=False)
    model.trained = {"converted": result.facts()}
    write_folder(folder, model.save_pretrained)
    return result


def _name(published: str) -> str:
    """The name in the speech encoder of a published weight."""
    start = next(start for start in _NAMES if published.startswith(start))
    return _NAMES[start] + published.removeprefix(start)


def _widths(weights: dict[str, Tensor]) -> tuple[int, int]:
    """HuBERT's width, and that of the joint space."""
    return weights[_CLS].shape[-1], weights[f"{_PROJECTION}weight"].shape[0]


def _head_config(path: Any, weights: dict[str, Tensor], settings: Any) -> HeadConfig:
    """The head's configuration: sizes by the weights, what these do not show by the settings beside them."""
    sizes = {_MIX: 1, _CLS: 3, f"{_PROJECTION}weight": 2}
    if needed := [name for name in sizes if name not in weights]:
        kind = "a cascaded or hybrid one" if any(name.startswith("cascaded_branch.") for name in weights) else "another"
        raise CheckpointError(
            f"{path}: is no SpeechCLIP parallel, but {kind}: {_listed(needed)} missing; give a parallel checkpoint"
        )
    if odd := [f"{name} is {list(weights[name].shape)}" for name, size in sizes.items() if weights[name].dim() != size]:
        raise CheckpointError(f"{path}: is no SpeechCLIP parallel: the shape of {odd[0]}")
    numbers = [int(found[1]) for name in weights if (found := re.match(re.escape(_LAYERS) + r"layers\.(\d+)\.", name))]
    feedforward = weights.get(f"{_LAYERS}layers.0.linear1.weight")
    heads = _find(_find(settings, "parallel_branch"), "nhead")
    normalize = _find(settings, "normalize_hiddenstates")
    return HeadConfig(
        layers=max(numbers, default=0) + 1,
        heads=heads if type(heads) is int and heads > 0 else HEADS,
        feedforward=None if feedforward is None else feedforward.shape[0],
        normalize_hidden_states=normalize if type(normalize) is bool else None,
    )


def _head_weights(path: Any, weights: dict[str, Tensor], config: HeadConfig) -> dict[str, Tensor]:
    """The weights of mix and head by their published names, in fp32 and the shapes of a SaySee model."""
    width, dimension = _widths(weights)
    if width % config.heads:
        raise CheckpointError(f"{path}: its width, {width}, is no multiple of its {config.heads} attention heads")
    with torch.device("meta"):
        head = SpeechHead(width, config, dimension)
    shapes = {f"head.{name}": value.shape for name, value in head.state_dict().items()}
    shapes["layer_mix.weights"] = torch.Size([weights[_MIX].numel()])
    found = {name: weights[name].float() for name in weights if name.startswith(tuple(_NAMES))}
    found[_CLS] = found[_CLS].flatten()
    ours = {_name(name): (name, value.shape) for name, value in found.items()}
    problems = [f"{_published(name)} is missing" for name in shapes if name not in ours]
    for name, (published, shape) in ours.items():
        if name not in shapes:
            problems.append(f"{published} is unknown")
        elif shape != shapes[name]:
            problems.append(f"{published} is {list(shape)}, not {list(shapes[name])}")
    problems += [f"{name} is unknown" for name in weights if name.startswith(_OWN) and name not in found]
    if problems:
        raise CheckpointError(f"{path}: is no SpeechCLIP parallel: {_listed(problems)}")
    return found


def _published(name: str) -> str:
    """The published name of a weight of the speech encoder."""
    start = next(start for start, ours in _NAMES.items() if name.startswith(ours))
    return start + name.removeprefix(_NAMES[start])


def _check_encoders(path: Any, speech: str, image: str, states: int, width: int, dimension: int) -> None:
    """Raises CheckpointError unless the encoders have the checkpoint's sizes. It reads their configurations only."""
    hubert, clip = hubert_config(speech), clip_config(image)
    has = (hubert.num_hidden_layers + 1, hubert.hidden_size)
    if has != (states, width):
        raise CheckpointError(
            f"{speech}: {has[0]} hidden states of width {has[1]}, and {path} needs {states} of {width}; give its "
            "HuBERT by --speech"
        )
    if clip.projection_dim != dimension:
        raise CheckpointError(
            f"{image}: vectors of {clip.projection_dim} dimensions, and {path} needs {dimension}; give its CLIP by "
            "--image"
        )


def read_checkpoint(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Reads a checkpoint of PyTorch Lightning without running anything that it names.

    Raises CheckpointError if there is no such file, it is not in the zip format of ``torch.save``, or it names a class
    or function that is not allowed; the message lists these.
    """
    if not Path(path).is_file():
        raise CheckpointError(f"{path}: no such file; give a downloaded checkpoint")
    if not zipfile.is_zipfile(path):
        raise CheckpointError(f"{path}: is not in the zip format of torch.save (torch 1.6 or later); download it again")
    try:
        with zipfile.ZipFile(path) as archive:
            pickles = [archive.read(name) for name in archive.namelist() if name.endswith(".pkl")]
        names = {name for pickle in pickles for name in _globals(pickle)}
        inert = {name: stub for name in names for part, stub in _INERT.items() if re.fullmatch(part, name)}
        if refused := [name for name in names if name not in inert and not _PLAIN.fullmatch(name)]:
            raise _Refused(", ".join(sorted(refused)))
        with torch.serialization.safe_globals([(stub, name) for name, stub in inert.items()]):
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except _Refused as error:
        raise CheckpointError(
            f"{path}: refers to {error}, which a checkpoint of SpeechCLIP does not need; it is not loaded, and no code "
            "of it was run"
        ) from None
    except Exception as error:  # zipfile, pickletools and torch raise many kinds for a broken file
        reason = re.search(r"WeightsUnpickler error: (.*)", str(error))
        raise CheckpointError(
            f"{path}: damaged ({reason[1] if reason else first_line(error)}); download it again"
        ) from None
    return content if isinstance(content, dict) else {}


class _Refused(Exception):
    """Names something that is not allowed."""


class _Ignored:
    """Stands for a class or function whose objects are of no interest."""

    def __init__(self, *_: Any) -> None:
        pass

    def __setstate__(self, _: Any) -> None:
        pass


class _TorchFunctions(_Ignored):
    """Stands for the class that torch's functions are members of."""


def _torch_function(owner: Any, _: Any) -> _Ignored:
    """Stands for ``getattr``, by which Lightning's checkpoints name functions such as ``torch.mean``."""
    if owner is not _TorchFunctions:
        raise _Refused("builtins.getattr")
    return _Ignored()


_INERT: dict[str, Any] = {
    r"avssl\.base\.ordered_namespace\.OrderedNamespace|argparse\.Namespace": OrderedDict,  # takes items and attributes
    r"(pytorch_lightning|lightning\.pytorch)\.callbacks\.[\w.]+|torchmetrics\.utilities\.data\.dim_zero_\w+": _Ignored,
    r"pathlib\.(_local\.)?(Pure)?(Posix|Windows)?Path": _Ignored,
    r"numpy\.(dtype|ndarray|_?core\.multiarray\.(scalar|_reconstruct))": _Ignored,
    r"torch\._C\._VariableFunctions(Class)?": _TorchFunctions,
    r"builtins\.getattr": _torch_function,
}
"""What replaces classes and functions while a checkpoint is read."""


def _globals(pickle: bytes) -> Iterable[str]:
    """The names of the classes and functions of a pickle, of any protocol."""
    strings: list[str] = []
    for operation, value, _ in pickletools.genops(pickle):
        if operation.name in ("GLOBAL", "INST"):
            module, _, name = str(value).partition(" ")
        elif operation.name == "STACK_GLOBAL":
            module, name = (["?", "?", *strings])[-2:]
        else:
            strings += [value] if isinstance(value, str) else []
            continue
        yield f"{'builtins' if module == '__builtin__' else module}.{name}"


def _find(settings: Any, name: str, depth: int = 8) -> Any:
    """The first value of a name in nested settings; None if there is none."""
    if not isinstance(settings, dict) or depth == 0:
        return None
    values = {**settings, **getattr(settings, "__dict__", {})}
    if name in values:
        return values[name]
    found = (_find(value, name, depth - 1) for value in values.values())
    return next((value for value in found if value is not None), None)


def _listed(items: list[str]) -> str:
    """At most ten items, and how many more there are."""
    more = len(items) - 10
    return ", ".join(items[:10]) + (f" and {more} more" if more > 0 else "")
