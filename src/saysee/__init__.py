"""SaySee: say what you want to see, and find the image; show an image, and find the speech.

The public names. They are imported when first used, so ``import saysee`` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from saysee.version import __version__

if TYPE_CHECKING:
    from saysee.data.manifest import Manifest
    from saysee.encoding.encoder import Encoder
    from saysee.errors import SaySeeError
    from saysee.evaluation.protocols import evaluate
    from saysee.model.configuration import SpeechImageConfig
    from saysee.model.processor import SpeechImageProcessor
    from saysee.model.retriever import SpeechImageModel
    from saysee.search.index.index import Index
    from saysee.settings.recipe import FusionConfig, HeadConfig

_HOMES = {
    "Encoder": "saysee.encoding.encoder",
    "FusionConfig": "saysee.settings.recipe",
    "HeadConfig": "saysee.settings.recipe",
    "Index": "saysee.search.index.index",
    "Manifest": "saysee.data.manifest",
    "SaySeeError": "saysee.errors",
    "SpeechImageConfig": "saysee.model.configuration",
    "SpeechImageModel": "saysee.model.retriever",
    "SpeechImageProcessor": "saysee.model.processor",
    "evaluate": "saysee.evaluation.protocols",
}

__all__ = [
    "Encoder",
    "FusionConfig",
    "HeadConfig",
    "Index",
    "Manifest",
    "SaySeeError",
    "SpeechImageConfig",
    "SpeechImageModel",
    "SpeechImageProcessor",
    "__version__",
    "evaluate",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'saysee' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
