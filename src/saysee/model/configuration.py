"""The configuration of a SpeechImageModel: both encoders' own configurations, the head's and the fusion encoder's."""

from __future__ import annotations

import copy
from dataclasses import asdict
from typing import Any

from transformers import CLIPConfig, CLIPVisionConfig, HubertConfig, PreTrainedConfig

from saysee.settings.recipe import FusionConfig, HeadConfig

__all__ = ["FusionConfig", "HeadConfig", "SpeechImageConfig"]


class SpeechImageConfig(PreTrainedConfig):  # type: ignore[misc]
    """Configuration of :class:`saysee.model.retriever.SpeechImageModel`.

    Args:
        speech_config: of HuBERT, also as a dictionary.
        image_config: of CLIP, or of its vision part alone (then the model has no text encoder).
        head: values of :class:`HeadConfig`.
        fusion: values of :class:`FusionConfig`; None if the model has no fusion encoder.
    """

    model_type = "saysee"
    has_no_defaults_at_init = True

    def __init__(
        self,
        speech_config: HubertConfig | dict[str, Any] | None = None,
        image_config: CLIPConfig | CLIPVisionConfig | dict[str, Any] | None = None,
        head: dict[str, Any] | None = None,
        fusion: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        self.speech_config = _speech_config(speech_config)
        self.image_config = _image_config(image_config)
        self.head = asdict(HeadConfig(**(head or {})))
        self.fusion = None if fusion is None else asdict(FusionConfig(**fusion))
        super().__init__(**kwargs)

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """A saved configuration; without ``as_published`` it is of a model of an older release."""
        head = {"as_published": False} | (config_dict.get("head") or {})
        return super().from_dict({**config_dict, "head": head}, **kwargs)

    @property
    def has_text(self) -> bool:
        """Whether CLIP's text encoder is part of the model."""
        return isinstance(self.image_config, CLIPConfig)

    @property
    def takes_raw_speech(self) -> bool:
        """Whether HuBERT takes waveforms as they are, whatever the feature extractor of its checkpoint says.

        The base kind was pre-trained so: fairseq normalizes either the waveform or, by group norm, the first layer.
        """
        return bool(self.speech_config.feat_extract_norm == "group")

    @property
    def vision_config(self) -> CLIPVisionConfig:
        """The vision transformer's configuration."""
        return self.image_config.vision_config if self.has_text else self.image_config

    @property
    def projection_dim(self) -> int:
        """D, the width of the joint space."""
        return int(self.image_config.projection_dim)

    @property
    def patch_grid(self) -> int:
        """Patches along one side of the image; P is its square."""
        return int(self.vision_config.image_size // self.vision_config.patch_size)


def _speech_config(value: HubertConfig | dict[str, Any] | None) -> HubertConfig:
    if isinstance(value, HubertConfig):
        return copy.deepcopy(value)  # the speech encoder sets some of its values
    return HubertConfig(**{key: item for key, item in (value or {}).items() if key != "model_type"})


def _image_config(value: CLIPConfig | CLIPVisionConfig | dict[str, Any] | None) -> CLIPConfig | CLIPVisionConfig:
    if isinstance(value, CLIPConfig | CLIPVisionConfig):
        return copy.deepcopy(value)
    values = dict(value or {})
    kind = CLIPVisionConfig if values.pop("model_type", "clip") == "clip_vision_model" else CLIPConfig
    return kind(**values)
