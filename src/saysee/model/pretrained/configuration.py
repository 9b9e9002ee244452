"""Configurations of HuBERT and CLIP, with the names and the defaults of Hugging Face's ``config.json``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, TypeVar

from saysee.errors import ConfigError

Config = TypeVar("Config")


@dataclass(frozen=True)
class HubertConfig:
    """Of a HuBERT of the base kind (``feat_extract_norm`` is "group") or the large kind ("layer")."""

    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    hidden_dropout: float = 0.1
    activation_dropout: float = 0.1
    attention_dropout: float = 0.1
    feat_proj_layer_norm: bool = True
    feat_proj_dropout: float = 0.0
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-5
    feat_extract_norm: str = "group"
    feat_extract_activation: str = "gelu"
    conv_dim: tuple[int, ...] = (512,) * 7
    conv_stride: tuple[int, ...] = (5, 2, 2, 2, 2, 2, 2)
    conv_kernel: tuple[int, ...] = (10, 3, 3, 3, 3, 2, 2)
    conv_bias: bool = False
    num_conv_pos_embeddings: int = 128
    num_conv_pos_embedding_groups: int = 16
    conv_pos_batch_norm: bool = False
    do_stable_layer_norm: bool = False
    mask_time_prob: float = 0.05  # 0: the weights have no vector for masked frames, which pre-training alone needs

    def __post_init__(self) -> None:
        _check_heads(self)
        if not len(self.conv_dim) == len(self.conv_stride) == len(self.conv_kernel):
            raise ConfigError("conv_dim, conv_stride and conv_kernel differ in length; give one value a layer in each")
        if self.feat_extract_norm not in ("group", "layer"):
            raise ConfigError(f"feat_extract_norm is {self.feat_extract_norm!r}; give group or layer")
        if self.hidden_size % self.num_conv_pos_embedding_groups:
            raise ConfigError(
                f"num_conv_pos_embedding_groups is {self.num_conv_pos_embedding_groups}; give a number that divides "
                f"hidden_size, {self.hidden_size}"
            )
        for name in ("hidden_dropout", "activation_dropout", "attention_dropout", "feat_proj_dropout"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; give 0 to 1")

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> HubertConfig:
        """That of a ``config.json``, whose other keys are ignored; ConfigError if a value does not fit."""
        _check_kind(values, "hubert")
        return _of(cls, values)

    def to_dict(self) -> dict[str, Any]:
        """As ``config.json`` has it."""
        return {"model_type": "hubert", **asdict(self)}


@dataclass(frozen=True)
class _TowerConfig:
    hidden_size: int = 768
    intermediate_size: int = 3072
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-5
    attention_dropout: float = 0.0
    initializer_range: float = 0.02
    initializer_factor: float = 1.0

    def __post_init__(self) -> None:
        _check_heads(self)


@dataclass(frozen=True)
class CLIPVisionConfig(_TowerConfig):
    """Of CLIP's vision transformer."""

    num_channels: int = 3
    image_size: int = 224
    patch_size: int = 32

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.patch_size <= self.image_size:
            raise ConfigError(f"patch_size is {self.patch_size}; give 1 to image_size, {self.image_size}")


@dataclass(frozen=True)
class CLIPTextConfig(_TowerConfig):
    """Of CLIP's text transformer."""

    hidden_size: int = 512
    intermediate_size: int = 2048
    num_attention_heads: int = 8
    vocab_size: int = 49408
    max_position_embeddings: int = 77
    pad_token_id: int = 1
    bos_token_id: int = 49406
    eos_token_id: int = 49407


@dataclass(frozen=True)
class CLIPConfig:
    """Of a CLIP, or of its vision tower with its projection alone (``text_config`` is None)."""

    vision_config: CLIPVisionConfig = field(default_factory=CLIPVisionConfig)
    text_config: CLIPTextConfig | None = field(default_factory=CLIPTextConfig)
    projection_dim: int = 512
    logit_scale_init_value: float = 2.6592
    initializer_factor: float = 1.0
    trained_on: str | None = None  # where that is not what people expect of a CLIP

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> CLIPConfig:
        """That of a ``config.json``, of a whole CLIP or its vision tower alone; ConfigError if a value does not fit.

        Without a ``model_type`` it is of the tower if it has values of the tower and no section for it.
        """
        of_tower = {each.name for each in fields(CLIPVisionConfig)} - {each.name for each in fields(cls)}
        sections = {"vision_config", "vision_config_dict", "text_config", "text_config_dict"}
        if not values.get("model_type") and of_tower & values.keys() and not sections & values.keys():
            values = {**values, "model_type": "clip_vision_model"}
        if _check_kind(values, "clip", "clip_vision_model") == "clip_vision_model":
            parts: dict[str, Any] = {"vision_config": _of(CLIPVisionConfig, values), "text_config": None}
        else:
            kinds: dict[str, type] = {"vision_config": CLIPVisionConfig, "text_config": CLIPTextConfig}
            # In older files a second dictionary overrides all values of the first, with defaults where it has none.
            parts = {
                part: _of(kind, values.get(part) if (given := values.get(f"{part}_dict")) is None else given, part)
                for part, kind in kinds.items()
            }
        own = {name: value for name, value in values.items() if name not in ("vision_config", "text_config")}
        return replace(_of(cls, own), **parts)

    @property
    def without_text(self) -> CLIPConfig:
        """That of the vision tower with its projection alone."""
        return replace(self, text_config=None)

    def to_dict(self) -> dict[str, Any]:
        """As ``config.json`` has it."""
        values = {name: value for name, value in asdict(self).items() if value is not None}
        vision = {"model_type": "clip_vision_model", **values.pop("vision_config")}
        if self.text_config is None:
            return {**values, **vision}
        text = {"model_type": "clip_text_model", **values.pop("text_config")}
        return {"model_type": "clip", **values, "vision_config": vision, "text_config": text}


def _check_kind(values: Mapping[str, Any], *kinds: str) -> str:
    if (kind := values.get("model_type") or kinds[0]) not in kinds:
        raise ConfigError(f"model_type is {kind!r}; give a configuration of {' or '.join(kinds)}")
    return str(kind)


def _of(kind: type[Config], values: Any, name: str = "the configuration") -> Config:
    if not isinstance(values, Mapping | None):
        raise ConfigError(f"{name} is {values!r}; give its values by name")
    known: dict[str, Any] = {}
    for each in fields(kind):  # type: ignore[arg-type]
        if (value := (values or {}).get(each.name)) is None:
            continue
        if isinstance(value, list):
            value = tuple(value)
        default = each.default
        allowed = (int, float) if type(default) is float else type(default)
        plain = isinstance(default, bool | int | float | str | tuple)
        known_type = isinstance(value, allowed) and isinstance(value, bool) == isinstance(default, bool)
        sizes = value if isinstance(default, tuple) else (value,) if type(default) is int else ()
        least = 0 if each.name.endswith("_token_id") else 1
        if plain and (not known_type or not all(isinstance(size, int) and size >= least for size in sizes)):
            raise ConfigError(f"{each.name} is {value!r}; give a value such as {default!r}")
        known[each.name] = value
    return kind(**known)


def _check_heads(config: Any) -> None:
    if config.hidden_size % config.num_attention_heads:
        raise ConfigError(
            f"num_attention_heads is {config.num_attention_heads}; give a number that divides hidden_size, "
            f"{config.hidden_size}"
        )
