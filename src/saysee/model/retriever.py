"""SpeechImageModel: speech and images to vectors of one space, and their similarity."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

from saysee.errors import CheckpointError, SaySeeError
from saysee.files import set_default_mode, unfinished, write_text
from saysee.model.card import TRAINING_FILE, read_training, save_card
from saysee.model.configuration import FusionConfig, HeadConfig, SpeechImageConfig
from saysee.model.features import ImageFeatures, SpeechFeatures
from saysee.model.fusion import FusionEncoder
from saysee.model.image_encoder import ImageEncoder
from saysee.model.pretrained.clip import CLIP
from saysee.model.pretrained.configuration import HubertConfig
from saysee.model.pretrained.weights import (
    HUB,
    find,
    first_line,
    load_clip,
    load_hubert,
    load_weights,
    place_of,
    read_config,
)
from saysee.model.processor import SpeechImageProcessor
from saysee.model.speech_encoder import SpeechEncoder

if TYPE_CHECKING:
    from saysee.encoding.encoder import Encoder

SpeechInput = str | os.PathLike[str] | bytes | NDArray[np.generic]
ImageInput = str | os.PathLike[str] | bytes | BinaryIO | Image.Image
Layers = int | Literal["all"]


class SpeechImageModel(nn.Module):
    """A HuBERT speech encoder and a CLIP image encoder in one space, and in training a fusion encoder between them.

    Attributes:
        config: the :class:`SpeechImageConfig`.
        name_or_path: where it was loaded from; empty if nowhere.
        processor: the :class:`SpeechImageProcessor` saved beside the weights.
        speech_encoder, image_encoder: the two sides.
        fusion: the :class:`FusionEncoder`, or None.
        frozen_dropout: HuBERT's dropout is on in training while all of it is frozen.
        trained: facts about the run that trained it, saved beside the weights for the model card; or None.
    """

    model_type = SpeechImageConfig.model_type
    name_or_path = ""
    processor: SpeechImageProcessor
    frozen_dropout = False
    trained: dict[str, Any] | None = None

    def __init__(self, config: SpeechImageConfig) -> None:
        super().__init__()
        self.config = config
        self.speech_encoder = SpeechEncoder(config.speech_config, HeadConfig(**config.head), config.projection_dim)
        self.image_encoder = ImageEncoder(CLIP(config.image_config))
        self.fusion: FusionEncoder | None = None
        if config.fusion is not None:
            self.add_fusion(FusionConfig(**config.fusion))
        self.processor = SpeechImageProcessor.from_sources(
            None, None, config.vision_config.image_size, text=False, raw_speech=config.takes_raw_speech
        )

    @classmethod
    def from_encoders(
        cls,
        speech: str | os.PathLike[str] | Any,
        image: str | os.PathLike[str] | Any,
        *,
        text: bool = True,
        head: HeadConfig | None = None,
        fusion: FusionConfig | None = None,
    ) -> SpeechImageModel:
        """Joins two encoders by a new speech head; in evaluation mode.

        Args:
            speech: hub name or folder of a HuBERT, ``saysee/hubert-nano`` of this package, or a configuration for
                random weights, see :class:`SpeechImageConfig`.
            image: the same of a CLIP, such as ``saysee/clip-nano``.
            text: keep CLIP's text encoder where there is one.
            head: the speech head; None is SpeechCLIP parallel's.
            fusion: the fusion encoder; None adds none.

        Raises:
            CheckpointError: there is no model of the kind at a folder or hub name.
            ConfigError: a configuration has a value of a wrong type, or values that do not fit each other.
        """
        speech_place, image_place = (
            place_of(side) if isinstance(side, str | os.PathLike) else None for side in (speech, image)
        )
        hubert = None if speech_place is None else load_hubert(speech_place)
        if hubert is not None:
            _draw_as_before(hubert.config)
        clip = None if image_place is None else load_clip(image_place, text)
        config = SpeechImageConfig(
            speech_config=speech if hubert is None else hubert.config,
            image_config=image if clip is None else clip.config,
            head=None if head is None else vars(head),
        )
        if not text:
            config.image_config = config.image_config.without_text
        model = cls(config)
        if hubert is not None:
            model.speech_encoder.hubert.load_state_dict(hubert.state_dict())
        if clip is not None:
            model.image_encoder.clip.load_state_dict(clip.state_dict())
        try:
            model.processor = SpeechImageProcessor.from_sources(
                speech_place,
                image_place,
                config.vision_config.image_size,
                text=config.has_text and image_place is not None,
                raw_speech=config.takes_raw_speech,
            )
        except (OSError, ValueError) as error:
            raise CheckpointError(
                f"no processor at {' or '.join(filter(None, (speech_place, image_place)))}: {first_line(error)}; put "
                "the checkpoint's preprocessor_config.json and tokenizer files beside its weights (text=False needs no "
                "tokenizer)"
            ) from error
        # Last, so that the same seed gives the same encoders and head with and without a fusion encoder.
        if fusion is not None:
            model.add_fusion(fusion)
        return model.eval()

    @classmethod
    def from_pretrained(
        cls, place: str | os.PathLike[str], *, dtype: torch.dtype = torch.float32, **hub: Any
    ) -> SpeechImageModel:
        """Loads what :meth:`save_pretrained` wrote, from a folder or the hub, with its processor; in evaluation mode.

        Args:
            place: the folder or hub name.
            dtype: of the weights.
            hub: ``revision``, ``token``, ``cache_dir`` or ``local_files_only`` of a download.

        Raises:
            CheckpointError: there is no SaySee model at that place.
            SaySeeError: an argument is unknown.
        """
        if unknown := hub.keys() - set(HUB):
            raise SaySeeError(f"from_pretrained takes dtype, {', '.join(HUB)}, and not {', '.join(sorted(unknown))}")
        place = place_of(place)
        what, fix = "SaySee model", "give a folder that save_pretrained or 'saysee train' wrote, or a name on the hub"
        values = read_config(place, (cls.model_type,), what, fix, **hub)
        model = load_weights(lambda: cls(SpeechImageConfig.of(values)), place, what, fix, dtype=dtype, **hub)
        model.name_or_path = place
        try:
            model.processor = SpeechImageProcessor.from_pretrained(place, **hub)
            model.trained = read_training(find(place, TRAINING_FILE, **hub))
        except (OSError, ValueError) as error:
            raise CheckpointError(f"no processor of a SaySee model at {place}: {first_line(error)}; {fix}") from error
        return model

    def save_pretrained(
        self,
        folder: str | os.PathLike[str],
        *,
        fusion: bool = False,
    ) -> None:
        """Writes weights, configuration, processor and model card into a folder.

        Args:
            folder: created if it does not exist.
            fusion: save the fusion encoder too, for attention maps and re-ranking. Retrieval does not need it.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        config, state = copy.copy(self.config), self.state_dict()  # of what is saved
        if not fusion:
            config.fusion = None
            state = {name: value for name, value in state.items() if not name.startswith("fusion.")}
        values = config.to_dict() | {"architectures": [type(self).__name__]}
        write_text(folder / "config.json", json.dumps(values, indent=2, sort_keys=True) + "\n")
        save_card(folder, config, self.trained)
        # Under another name at first: the file may hold the very weights that are being written.
        weights = folder / "model.safetensors"
        save_file({name: value.contiguous() for name, value in state.items()}, unfinished(weights), {"format": "pt"})
        set_default_mode(unfinished(weights))
        unfinished(weights).replace(weights)
        self.processor.save_pretrained(folder)

    def add_fusion(self, config: FusionConfig) -> None:
        """Gives the model a new fusion encoder."""
        self.config.fusion = vars(config).copy()
        fusion = FusionEncoder(config, self.config.projection_dim, self.config.vision_config.hidden_size)
        self.fusion = fusion.train(self.training)

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the weights."""
        return next(self.parameters()).dtype

    def forward(self, waveforms: Tensor, speech_mask: Tensor, pixels: Tensor) -> tuple[SpeechFeatures, ImageFeatures]:
        """Waveforms [B, T], their mask [B, T] and pixels [B, 3, H, W] to the features of both sides."""
        return self.speech_encoder(waveforms, speech_mask), self.image_encoder(pixels)

    @property
    def untrained(self) -> bool:
        """Whether the speech head is as it was made: any training moves at least one of these off 0 and 1."""
        named = self.speech_encoder.head.layers.named_parameters()
        started = [part for name, part in named if "norm" in name or name.endswith(("in_proj_bias", "out_proj.bias"))]
        return all(
            bool(((part == 0) | (part == 1)).all()) for part in (self.speech_encoder.layer_mix.weights, *started)
        )

    def set_trainable(self, speech: Layers, image: Layers) -> None:
        """Chooses the layers of the encoders that train; head and fusion encoder always do, the text encoder never.

        Args:
            speech: how many of HuBERT's last layers train; "all" trains everything, the convolutions too.
            image: how many of the vision transformer's last layers train, with its last norm and projection.

        Raises:
            SaySeeError: the encoder does not have so many layers.
        """
        hubert, clip = self.speech_encoder.hubert, self.image_encoder.clip
        clip.requires_grad_(False)
        _train_last(hubert, hubert.encoder.layers, speech, "speech_trainable")
        _train_last(clip.vision_model, clip.vision_model.encoder.layers, image, "image_trainable")
        clip.visual_projection.requires_grad_(image != 0)
        if image not in (0, "all"):
            clip.vision_model.post_layernorm.requires_grad_(True)
        self.train(self.training)

    def train(self, mode: bool = True) -> SpeechImageModel:
        """As for any module, but a frozen encoder stays in evaluation mode (HuBERT: unless :attr:`frozen_dropout`)."""
        super().train(mode)
        for encoder in (self.image_encoder.clip, *(() if self.frozen_dropout else (self.speech_encoder.hubert,))):
            if not any(parameter.requires_grad for parameter in encoder.parameters()):
                encoder.eval()
        return self

    def encode_speech(self, clips: Sequence[SpeechInput], **options: Any) -> NDArray[np.float32]:
        """Clips to unit vectors [N, D], as :meth:`saysee.encoding.encoder.Encoder.encode_speech`.

        To encode often, make an ``Encoder`` once.
        """
        return self._encoder().encode_speech(clips, **options)

    def encode_images(self, images: Sequence[ImageInput], **options: Any) -> NDArray[np.float32]:
        """Images to unit vectors [N, D], as :meth:`encode_speech`."""
        return self._encoder().encode_images(images, **options)

    @property
    def has_text(self) -> bool:
        """Whether texts can be encoded."""
        return self._encoder().has_text

    def encode_text(self, texts: Sequence[str], **options: Any) -> NDArray[np.float32]:
        """Texts to unit vectors [N, D], as :meth:`encode_speech`."""
        return self._encoder().encode_text(texts, **options)

    def _encoder(self) -> Encoder:
        # Made at each call: the weights may have been trained since. The only import from a higher layer.
        from saysee.encoding.encoder import Encoder

        return Encoder(self)

    @staticmethod
    def similarity(a: NDArray[np.floating[Any]], b: NDArray[np.floating[Any]]) -> NDArray[np.float32]:
        """Cosine similarities [N, M] of the vectors of ``a`` [N, D] with those of ``b`` [M, D]."""
        return np.asarray(_unit(a) @ _unit(b).T, dtype=np.float32)


def _draw_as_before(config: HubertConfig) -> None:
    """Draws as many numbers as transformers did, so that a seed gives the same head as in earlier releases."""
    if config.mask_time_prob > 0:
        torch.empty(config.hidden_size).uniform_()
    for _ in range(2):
        width, groups = config.hidden_size, config.num_conv_pos_embedding_groups
        torch.empty(width, width // groups, config.num_conv_pos_embeddings).normal_()


def _unit(vectors: NDArray[np.floating[Any]]) -> NDArray[np.float32]:
    array = np.atleast_2d(np.asarray(vectors, dtype=np.float32))
    return array / np.maximum(np.linalg.norm(array, axis=-1, keepdims=True), 1e-12)  # type: ignore[no-any-return]


def _train_last(module: nn.Module, layers: nn.ModuleList, count: Layers, setting: str) -> None:
    module.requires_grad_(count == "all")
    if count == "all":
        return
    if not 0 <= count <= len(layers):
        raise SaySeeError(
            f"{setting} is {count}; this encoder has {len(layers)} layers, so give 0 to {len(layers)} or all"
        )
    for layer in layers[len(layers) - count :]:
        layer.requires_grad_(True)
