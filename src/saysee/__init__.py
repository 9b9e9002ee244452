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

_HOMES = {
    "CheckpointError": "saysee.errors",
    "ConfigError": "saysee.errors",
    "Encoder": "saysee.encoding.encoder",
    "EvaluationResult": "saysee.evaluation.protocols",
    "FusionConfig": "saysee.settings.recipe",
    "HeadConfig": "saysee.settings.recipe",
    "Hit": "saysee.search.index.index",
    "Index": "saysee.search.index.index",
    "LostProcessError": "saysee.errors",
    "Manifest": "saysee.data.manifest",
    "ManifestError": "saysee.errors",
    "MediaError": "saysee.errors",
    "MissingExtraError": "saysee.errors",
    "Row": "saysee.data.manifest",
    "SaySeeError": "saysee.errors",
    "SpeechImageConfig": "saysee.model.configuration",
    "SpeechImageModel": "saysee.model.retriever",
    "SpeechImageProcessor": "saysee.model.processor",
    "evaluate": "saysee.evaluation.protocols",
    "set_progress": "saysee.log",
}

__all__ = [*_HOMES, "__version__"]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'saysee' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
