"""SaySee: say what you want to see, and find the image; show an image, and find the speech.

The public names. They are imported when first used, so ``import saysee`` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from saysee.version import __version__

if TYPE_CHECKING:
    from saysee.data.manifest import Manifest as Manifest
    from saysee.data.manifest import Row as Row
    from saysee.encoding.encoder import Encoder as Encoder
    from saysee.errors import CheckpointError as CheckpointError
    from saysee.errors import ConfigError as ConfigError
    from saysee.errors import LostProcessError as LostProcessError
    from saysee.errors import ManifestError as ManifestError
    from saysee.errors import MediaError as MediaError
    from saysee.errors import MissingExtraError as MissingExtraError
    from saysee.errors import SaySeeError as SaySeeError
    from saysee.evaluation.protocols import EvaluationResult as EvaluationResult
    from saysee.evaluation.protocols import evaluate as evaluate
    from saysee.log import set_progress as set_progress
    from saysee.model.configuration import SpeechImageConfig as SpeechImageConfig
    from saysee.model.processor import SpeechImageProcessor as SpeechImageProcessor
    from saysee.model.retriever import SpeechImageModel as SpeechImageModel
    from saysee.search.index.index import Hit as Hit
    from saysee.search.index.index import Index as Index
    from saysee.settings.recipe import FusionConfig as FusionConfig
    from saysee.settings.recipe import HeadConfig as HeadConfig

_NAMES = {
    "saysee.data.manifest": "Manifest Row",
    "saysee.encoding.encoder": "Encoder",
    "saysee.errors": "CheckpointError ConfigError LostProcessError ManifestError MediaError MissingExtraError "
    "SaySeeError",
    "saysee.evaluation.protocols": "EvaluationResult evaluate",
    "saysee.log": "set_progress",
    "saysee.model.configuration": "SpeechImageConfig",
    "saysee.model.processor": "SpeechImageProcessor",
    "saysee.model.retriever": "SpeechImageModel",
    "saysee.search.index.index": "Hit Index",
    "saysee.settings.recipe": "FusionConfig HeadConfig",
}
_HOMES = {name: home for home, names in _NAMES.items() for name in names.split()}

__all__ = [*_HOMES, "__version__"]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'saysee' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
