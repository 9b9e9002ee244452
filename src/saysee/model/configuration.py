"""The configuration of a SpeechImageModel: both encoders' own configurations, the head's and the fusion encoder's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any

from saysee.errors import ConfigError
from saysee.model.pretrained.configuration import CLIPConfig, CLIPVisionConfig, HubertConfig
from saysee.settings.recipe import FusionConfig as FusionConfig
from saysee.settings.recipe import HeadConfig as HeadConfig


class SpeechImageConfig:
    """Configuration of :class:`saysee.model.retriever.SpeechImageModel`.

    Args:
        speech_config: of HuBERT; also as a dictionary, or as an object with ``to_dict`` such as one of transformers.
        image_config: of CLIP, or of its vision part alone (then the model has no text encoder); likewise.
        head: values of :class:`HeadConfig`.
        fusion: values of :class:`FusionConfig`; None if the model has no fusion encoder.

    Raises:
        ConfigError: a value is of a wrong type, or does not fit the others; the head or the fusion encoder has no such
            setting.
    """

    model_type = "saysee"

    def __init__(
        self,
        speech_config: Any = None,
        image_config: Any = None,
        head: dict[str, Any] | None = None,
        fusion: dict[str, Any] | None = None,
    ) -> None:
        self.speech_config: HubertConfig = _known(HubertConfig, speech_config)
        self.image_config: CLIPConfig = _known(CLIPConfig, image_config)
        self.head = _settings(HeadConfig, "head", head or {})
        self.fusion = None if fusion is None else _settings(FusionConfig, "fusion", fusion)

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> SpeechImageConfig:
        """That of a ``config.json``, which an older release wrote if it has no ``as_published``; errors as above."""
        head = {"as_published": False} | (values.get("head") or {})
        return cls(values.get("speech_config"), values.get("image_config"), head, values.get("fusion"))

    def to_dict(self) -> dict[str, Any]:
        """As ``config.json`` has it."""
        encoders = {"speech_config": self.speech_config.to_dict(), "image_config": self.image_config.to_dict()}
        return {"model_type": self.model_type, **encoders, "head": self.head, "fusion": self.fusion}

    @property
    def has_text(self) -> bool:
        """Whether CLIP's text encoder is part of the model."""
        return self.image_config.text_config is not None

    @property
    def takes_raw_speech(self) -> bool:
        """Whether HuBERT takes waveforms as they are, whatever the feature extractor of its checkpoint says.

        The base kind was pre-trained so: fairseq normalizes either the waveform or, by group norm, the first layer.
        """
        return self.speech_config.feat_extract_norm == "group"

    @property
    def vision_config(self) -> CLIPVisionConfig:
        """The vision transformer's configuration."""
        return self.image_config.vision_config

    @property
    def projection_dim(self) -> int:
        """D, the width of the joint space."""
        return self.image_config.projection_dim

    @property
    def patch_grid(self) -> int:
        """Patches along one side of the image; P is its square."""
        return self.vision_config.image_size // self.vision_config.patch_size


def _settings(kind: Any, name: str, values: Mapping[str, Any]) -> dict[str, Any]:
    if unknown := sorted(values.keys() - {each.name for each in fields(kind)}):
        raise ConfigError(f"{name} has no setting {', '.join(unknown)}; correct it, or install a newer SaySee")
    return asdict(kind(**values))


def _known(kind: Any, value: Any) -> Any:
    if isinstance(value, kind):
        return value
    return kind.of({} if value is None else value if isinstance(value, Mapping) else value.to_dict())
