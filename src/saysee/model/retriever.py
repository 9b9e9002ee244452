"""SpeechImageModel: what a user keeps. Speech and pictures to vectors of one space, and their similarity."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, BinaryIO, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional
from transformers import CLIPConfig, CLIPVisionConfig, HubertConfig, HubertModel, PreTrainedModel
from transformers.utils import cached_file

from saysee.errors import CheckpointError, SaySeeError
from saysee.log import progress_bar
from saysee.media.audio import check_waveform, load_audio
from saysee.media.images import load_image
from saysee.model.card import TRAINING_FILE, read_training, save_card
from saysee.model.configuration import FusionConfig, HeadConfig, SpeechImageConfig
from saysee.model.features import ImageFeatures, SpeechFeatures
from saysee.model.fusion import FusionEncoder
from saysee.model.image_encoder import ImageEncoder
from saysee.model.loading import first_line, load_clip, load_hubert, load_weights, read_config, vision_alone
from saysee.model.packaged import place_of
from saysee.model.processor import SpeechImageProcessor
from saysee.model.speech_encoder import LayerMix, SpeechEncoder, SpeechHead

SpeechInput = str | os.PathLike[str] | bytes | NDArray[np.generic]
ImageInput = str | os.PathLike[str] | bytes | BinaryIO | Image.Image
Layers = int | Literal["all"]

CHUNK = 256
"""Inputs decoded at a time: within a chunk they are sorted by length, and no more than a chunk is held in memory."""


class SpeechImageModel(PreTrainedModel):  # type: ignore[misc]
    """A HuBERT speech encoder and a CLIP image encoder in one space, and in training a fusion encoder between them.

    Make one with :meth:`from_encoders` or :meth:`from_pretrained`. The vectors are unit vectors of CLIP's joint space.

    Attributes:
        processor: the :class:`SpeechImageProcessor` saved beside the weights.
        speech_encoder, image_encoder: the two sides.
        fusion: the :class:`FusionEncoder`, or None.
        trained: what the run that trained it tells of itself, saved beside the weights for the model card; or None.
    """

    config_class = SpeechImageConfig
    base_model_prefix = "saysee"
    main_input_name = "waveforms"
    _supports_sdpa = True
    processor: SpeechImageProcessor
    trained: dict[str, Any] | None = None

    def __init__(self, config: SpeechImageConfig) -> None:
        super().__init__(config)
        self.speech_encoder = SpeechEncoder(config.speech_config, HeadConfig(**config.head), config.projection_dim)
        self.image_encoder = ImageEncoder(config.image_config)
        self.fusion: FusionEncoder | None = None
        if config.fusion is not None:
            self.add_fusion(FusionConfig(**config.fusion))
        self.processor = SpeechImageProcessor.from_sources(None, None, config.vision_config.image_size, text=False)
        self.post_init()

    # ------------------------------------------------------------------ making, loading, saving

    @classmethod
    def from_encoders(
        cls,
        speech: str | os.PathLike[str] | HubertConfig,
        image: str | os.PathLike[str] | CLIPConfig | CLIPVisionConfig,
        *,
        text: bool = True,
        head: HeadConfig | None = None,
        fusion: FusionConfig | None = None,
    ) -> SpeechImageModel:
        """Joins two encoders under a new speech head.

        Args:
            speech: hub name or folder of a HuBERT, ``saysee/hubert-nano`` of this package, or a configuration for one
                with random weights.
            image: hub name or folder of a CLIP, ``saysee/clip-nano`` of this package, or a configuration for one with
                random weights.
            text: keep CLIP's text encoder where there is one.
            head: the speech head; None is SpeechCLIP parallel's.
            fusion: add a fusion encoder; None adds none.

        Raises:
            CheckpointError: a folder or hub name gives no model of the kind.
        """
        speech = speech if isinstance(speech, HubertConfig) else place_of(speech)
        image = image if isinstance(image, CLIPConfig | CLIPVisionConfig) else place_of(image)
        hubert = speech if isinstance(speech, HubertConfig) else load_hubert(speech)
        clip = image if isinstance(image, CLIPConfig | CLIPVisionConfig) else load_clip(image, text)
        image_config = clip if isinstance(clip, CLIPConfig | CLIPVisionConfig) else clip.config
        if isinstance(image_config, CLIPConfig) and not text:
            image_config = vision_alone(image_config)
        config = SpeechImageConfig(
            speech_config=hubert if isinstance(hubert, HubertConfig) else hubert.config,
            image_config=image_config,
            head=None if head is None else vars(head),
        )
        model = cls(config)
        if isinstance(hubert, HubertModel):
            model.speech_encoder.hubert.load_state_dict(hubert.state_dict())
        if isinstance(clip, nn.Module):
            model.image_encoder.clip.load_state_dict(clip.state_dict())
        places = (
            None if isinstance(speech, HubertConfig) else speech,
            None if isinstance(image, CLIPConfig | CLIPVisionConfig) else image,
        )
        try:
            model.processor = SpeechImageProcessor.from_sources(
                *places, config.vision_config.image_size, text=config.has_text and places[1] is not None
            )
        except (OSError, ValueError) as error:
            raise CheckpointError(
                f"no processor at {' or '.join(place for place in places if place)}: {first_line(error)}; put the "
                "checkpoint's preprocessor_config.json and tokenizer files beside its weights (text=False needs no "
                "tokenizer)"
            ) from error
        # Last, so that the same seed gives the same encoders and head with and without it.
        if fusion is not None:
            model.add_fusion(fusion)
        return model.eval()  # type: ignore[no-any-return]

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | os.PathLike[str], *args: Any, **kwargs: Any
    ) -> SpeechImageModel:
        """Loads what :meth:`save_pretrained` wrote, from a folder or the hub, with its processor; in evaluation mode.

        Raises:
            CheckpointError: there is no SaySee model at that place.
        """
        place = os.fspath(pretrained_model_name_or_path)
        hub = {key: kwargs[key] for key in ("revision", "token", "cache_dir", "local_files_only") if key in kwargs}
        mend = "give a folder that save_pretrained or 'saysee train' wrote, or a name on the hub"
        read_config(place, (cls.config_class.model_type,), "SaySee model", mend, **hub)
        model = load_weights(super(), place, "SaySee model", mend, *args, **kwargs)
        try:
            model.processor = SpeechImageProcessor.from_pretrained(place, **hub)
        except (OSError, ValueError) as error:
            raise CheckpointError(f"no processor of a SaySee model at {place}: {first_line(error)}; {mend}") from error
        model.trained = read_training(_training_file(place, hub))
        return model  # type: ignore[no-any-return]

    def save_pretrained(self, save_directory: str | os.PathLike[str], *, fusion: bool = False, **kwargs: Any) -> None:
        """Writes weights, configuration, processor and model card into a folder.

        Args:
            save_directory: the folder; made if it is not there.
            fusion: keep the fusion encoder, for pictures of attention. Retrieval does not need it.
            kwargs: as for ``PreTrainedModel.save_pretrained``.

        Raises:
            SaySeeError: ``push_to_hub=True``, which would upload the weights without the processor.
        """
        if kwargs.pop("push_to_hub", False):
            raise SaySeeError("save_pretrained writes a folder only; upload with model.push_to_hub(NAME)")
        state = kwargs.pop("state_dict", None) or self.state_dict()
        kept = self.config.fusion
        if not fusion:
            state = {name: value for name, value in state.items() if not name.startswith("fusion.")}
            self.config.fusion = None
        try:
            super().save_pretrained(save_directory, state_dict=state, **kwargs)
        finally:
            self.config.fusion = kept
        self.processor.save_pretrained(save_directory)
        save_card(save_directory, self.config, self.trained)

    def add_fusion(self, config: FusionConfig) -> None:
        """Gives the model a new fusion encoder."""
        self.config.fusion = vars(config).copy()
        self.fusion = FusionEncoder(config, self.config.projection_dim, self.config.vision_config.hidden_size)

    def _init_weights(self, module: nn.Module) -> None:
        # The encoders initialise themselves as HuBERT and CLIP do, and the head and the fusion encoder as torch's
        # layers do, each when it is made. Loading onto meta tensors skips that, so the parts that are ours are told
        # here.
        if isinstance(module, LayerMix):
            torch.nn.init.zeros_(module.weights)
        elif isinstance(module, SpeechHead):
            module.reset_parameters()

    # ------------------------------------------------------------------ features, for training

    def forward(self, waveforms: Tensor, speech_mask: Tensor, pixels: Tensor) -> tuple[SpeechFeatures, ImageFeatures]:
        """Waveforms [B, T], their mask [B, T] and pixels [B, 3, H, W] to the features of both sides."""
        return self.speech_encoder(waveforms, speech_mask), self.image_encoder(pixels)

    def set_trainable(self, speech: Layers, image: Layers) -> None:
        """Freezes the encoders, in part or not at all. The head and the fusion encoder always train; text never does.

        Args:
            speech: how many of HuBERT's last layers train; "all" trains everything, the convolutions too.
            image: how many of the vision transformer's last layers train, with its last norm and projection.

        Raises:
            SaySeeError: a number that the encoder does not have.
        """
        hubert, clip = self.speech_encoder.hubert, self.image_encoder.clip
        clip.requires_grad_(False)
        _train_last(hubert, hubert.encoder.layers, speech, "speech_trainable")
        _train_last(clip.vision_model, clip.vision_model.encoder.layers, image, "image_trainable")
        clip.visual_projection.requires_grad_(image != 0)
        if image not in (0, "all"):
            clip.vision_model.post_layernorm.requires_grad_(True)
        # In training transformers asks for gradients of the waveform itself, which would keep the frozen
        # convolutions' activations in memory and run backward through them.
        hubert.feature_extractor._requires_grad = speech == "all"
        self.train(self.training)

    def train(self, mode: bool = True) -> SpeechImageModel:
        """As for any module, but an encoder that is frozen stays in evaluation mode: its dropout would be noise."""
        super().train(mode)
        for encoder in (self.speech_encoder.hubert, self.image_encoder.clip):
            if not any(parameter.requires_grad for parameter in encoder.parameters()):
                encoder.eval()
        return self

    # ------------------------------------------------------------------ vectors, for retrieval

    def encode_speech(
        self, clips: Sequence[SpeechInput], *, batch_size: int = 32, sampling_rate: int = 16_000, progress: bool = True
    ) -> NDArray[np.float32]:
        """Clips to unit vectors [N, D], in the order given.

        Args:
            clips: paths, contents of sound files, or arrays [T] of samples, mixed as you like.
            batch_size: clips encoded together; the vectors do not depend on it.
            sampling_rate: of the arrays, in Hz; files know their own.
            progress: show a bar on stderr when it takes over two seconds.

        Raises:
            MediaError: a clip cannot be used; the message names it.
        """

        def prepare(clip: SpeechInput) -> NDArray[np.float32]:
            loaded = (
                check_waveform(clip, sampling_rate=sampling_rate) if isinstance(clip, np.ndarray) else load_audio(clip)
            )
            return self.processor.prepare_speech(loaded)

        def encode(waveforms: list[NDArray[np.float32]]) -> Tensor:
            padded, mask = self.processor.pad(waveforms)
            features: SpeechFeatures = self.speech_encoder(padded.to(self.device, self.dtype), mask.to(self.device))
            return features.vector

        return self._encode(_as_list(clips, "encode_speech"), prepare, encode, batch_size, "clips", progress)

    def encode_images(
        self, pictures: Sequence[ImageInput], *, batch_size: int = 32, progress: bool = True
    ) -> NDArray[np.float32]:
        """Pictures to unit vectors [N, D], in the order given.

        Args:
            pictures: paths, contents of picture files, open files or Pillow images, mixed as you like.
            batch_size: pictures encoded together; the vectors do not depend on it.
            progress: show a bar on stderr when it takes over two seconds.

        Raises:
            MediaError: a picture cannot be used; the message names it.
        """

        def prepare(picture: ImageInput) -> Tensor:
            return self.processor.prepare_image(load_image(picture))

        def encode(pixels: list[Tensor]) -> Tensor:
            features: ImageFeatures = self.image_encoder(torch.stack(pixels).to(self.device, self.dtype))
            return features.vector

        return self._encode(_as_list(pictures, "encode_images"), prepare, encode, batch_size, "pictures", progress)

    def encode_text(self, texts: Sequence[str], *, batch_size: int = 64, progress: bool = True) -> NDArray[np.float32]:
        """Texts to unit vectors [N, D] by CLIP's text encoder, in the order given.

        Raises:
            SaySeeError: the model has no text encoder or no tokenizer.
        """
        if self.processor.tokenizer is None or not self.image_encoder.has_text:
            raise SaySeeError(
                "this model has no text encoder; make it with from_encoders(..., text=True) from a CLIP that has one"
            )

        def encode(batch: list[str]) -> Tensor:
            tokens = self.processor.prepare_text(batch)
            return self.image_encoder.encode_text(
                tokens["input_ids"].to(self.device), tokens["attention_mask"].to(self.device)
            )

        return self._encode(_as_list(texts, "encode_text"), str, encode, batch_size, "texts", progress)

    @staticmethod
    def similarity(a: NDArray[np.floating[Any]], b: NDArray[np.floating[Any]]) -> NDArray[np.float32]:
        """Cosine similarities [N, M] of the vectors of ``a`` [N, D] with those of ``b`` [M, D]."""
        return np.asarray(_unit(a) @ _unit(b).T, dtype=np.float32)

    @torch.inference_mode()
    def _encode(
        self,
        inputs: list[Any],
        prepare: Callable[[Any], Any],
        encode: Callable[[list[Any]], Tensor],
        batch_size: int,
        what: str,
        progress: bool,
    ) -> NDArray[np.float32]:
        if batch_size < 1:
            raise SaySeeError(f"batch_size is {batch_size}; it must be at least 1")
        was_training = self.training
        self.eval()
        vectors = np.empty((len(inputs), self.config.projection_dim), dtype=np.float32)
        try:
            with progress_bar(f"encoding {what}", len(inputs), enabled=progress) as bar:
                for start in range(0, len(inputs), CHUNK):
                    ready = [prepare(item) for item in inputs[start : start + CHUNK]]
                    order = sorted(range(len(ready)), key=lambda index: len(ready[index]), reverse=True)
                    for first in range(0, len(order), batch_size):
                        rows = order[first : first + batch_size]
                        encoded = functional.normalize(encode([ready[row] for row in rows]).float(), dim=-1)
                        vectors[[start + row for row in rows]] = encoded.cpu().numpy()
                        bar.advance(len(rows))
        finally:
            self.train(was_training)
        return vectors


def _as_list(inputs: Iterable[Any], name: str) -> list[Any]:
    single = isinstance(inputs, str | bytes | os.PathLike | Image.Image) or hasattr(inputs, "read")
    if single or (isinstance(inputs, np.ndarray) and inputs.ndim == 1):
        raise SaySeeError(f"{name} takes a list; wrap a single input: {name}([...])")
    return list(inputs)


def _training_file(place: str, hub: Mapping[Any, Any]) -> str | None:
    """Where the file lies that tells how a model was trained, fetched from the hub if need be; None if it has none."""
    quiet = ("missing_entries", "connection_errors", "gated_repo")
    file: str | None = cached_file(
        place, TRAINING_FILE, **{f"_raise_exceptions_for_{name}": False for name in quiet}, **hub
    )
    return file


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
