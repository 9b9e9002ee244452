"""Encoding speed: ``saysee index`` against the loop that the documentation of transformers shows."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.nn import functional
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
    HubertConfig,
    HubertModel,
    Wav2Vec2FeatureExtractor,
)

from benchmarks.search.models import Size, model_of
from benchmarks.search.turns import cpu_ratio, ratio, take_turns
from saysee.encoding.encoder import Encoder
from saysee.media.audio import SAMPLE_RATE
from saysee.media.formats import kind_by_suffix
from saysee.model.retriever import SpeechImageModel
from saysee.search.index.index import Index
from saysee.search.index.updating import update_index

IMAGE_SIZE = (640, 480)
"""That of COCO, and close to that of Flickr8k."""
CLIP_SECONDS = (2.0, 8.0)
"""Shortest and longest, as of spoken captions."""
_QUALITY = 90


def compare_encoding(
    size: Size, images: int, clips: int, rounds: int, scratch: Path, image_size: tuple[int, int] = IMAGE_SIZE
) -> dict[str, Any]:
    """Times both on the same files, from the files to the vectors.

    Args:
        size: of the model.
        images: number of JPEG files.
        clips: number of WAV files.
        rounds: timed rounds, after one that is not timed.
        scratch: folder for the files and indexes.
        image_size: width and height in pixels.

    Returns:
        For images and speech: rates, ratios, and the least cosine between the vectors of both.
    """
    encoder = Encoder(model_of(size))
    folders = {"images": scratch / "images", "speech": scratch / "clips"}
    write_images(folders["images"], images, image_size)
    seconds = write_clips(folders["speech"], clips)
    arithmetic = encoder.side("image").precision, encoder.side("clip").precision
    return {
        "size": size,
        "threads": torch.get_num_threads(),
        "images": {"count": images, "pixels": list(image_size), "arithmetic": arithmetic[0]}
        | _compare(encoder, folders["images"], plain_images, float(images), rounds),
        "speech": {"count": clips, "seconds": round(seconds, 1), "arithmetic": arithmetic[1]}
        | _compare(encoder, folders["speech"], plain_speech, seconds, rounds),
    }


def _compare(
    encoder: Encoder,
    folder: Path,
    plain: Callable[[SpeechImageModel, list[Path]], NDArray[np.float32]],
    amount: float,
    rounds: int,
) -> dict[str, Any]:
    paths = sorted(folder.iterdir())
    index = folder.with_name(f"{folder.name}.index")
    found: dict[str, NDArray[np.float32]] = {}

    def by_loop() -> None:
        found["loop"] = plain(encoder.model, paths)

    def by_index() -> None:
        shutil.rmtree(index, ignore_errors=True)
        update_index(encoder, folder, index)

    methods = {"loop": by_loop, "index": by_index}
    take_turns(methods, 1)
    spent = take_turns(methods, rounds)
    cosines = _cosines(index, paths, found["loop"])
    return {
        "loop_per_second": round(amount / spent["loop"].median(), 2),
        "index_per_second": round(amount / spent["index"].median(), 2),
        "ratio": round(ratio(spent["loop"], spent["index"]), 2),
        "cpu_ratio": round(cpu_ratio(spent["loop"], spent["index"]), 2),
        "least_cosine": round(min(cosines), 5),
        "rounds": {name: [round(seconds, 2) for seconds in times.seconds] for name, times in spent.items()},
    }


def _cosines(index: Path, paths: list[Path], vectors: NDArray[np.float32]) -> list[float]:
    """Cosine of each file's vector with that in the index."""
    kind = kind_by_suffix(paths[0])
    results = Index.open(index).search(vectors=vectors, k=len(paths), kind=kind)
    return [next(hit.score for hit in hits if hit.path == str(path)) for path, hits in zip(paths, results, strict=True)]


@torch.no_grad()
def plain_images(model: SpeechImageModel, paths: list[Path]) -> NDArray[np.float32]:
    """Unit vectors [N, D], one image at a time in fp32, as the page of CLIP shows it."""
    own = model.image_encoder.clip
    clip = CLIPVisionModelWithProjection(CLIPVisionConfig(**own.config.without_text.to_dict())).eval()
    clip.load_state_dict(own.state_dict(), strict=False)  # the text encoder's are left
    processor = CLIPImageProcessorPil(**asdict(model.processor.image_processor))

    def vectors() -> Iterator[torch.Tensor]:
        for path in paths:
            yield clip(**processor(images=Image.open(path), return_tensors="pt")).image_embeds

    return _unit(vectors())


@torch.no_grad()
def plain_speech(model: SpeechImageModel, paths: list[Path]) -> NDArray[np.float32]:
    """Unit vectors [N, D], one clip at a time in fp32, as the page of HuBERT shows it, then the speech head."""
    encoder, extractor = model.speech_encoder, Wav2Vec2FeatureExtractor(**asdict(model.processor.feature_extractor))
    hubert = HubertModel(HubertConfig(**encoder.hubert.config.to_dict())).eval()
    hubert.load_state_dict(encoder.hubert.state_dict())

    def vectors() -> Iterator[torch.Tensor]:
        for path in paths:
            samples, rate = soundfile.read(path, dtype="float32")
            values = extractor(samples, sampling_rate=rate, return_tensors="pt").input_values
            output = hubert(values, output_hidden_states=True)
            states = (*output.hidden_states[:-1], output.last_hidden_state)
            mask = torch.ones(states[0].shape[:2], dtype=torch.bool)
            yield encoder.from_layer_states([states[layer] for layer in encoder.layers], mask).vector

    return _unit(vectors())


def _unit(vectors: Iterator[torch.Tensor]) -> NDArray[np.float32]:
    return functional.normalize(torch.cat(list(vectors)), dim=-1).numpy()


def write_images(folder: Path, count: int, size: tuple[int, int]) -> None:
    """JPEG files of colored shapes with the grain of a photo."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for number in range(count):
        coarse = Image.fromarray(rng.integers(0, 255, (6, 8, 3), np.uint8)).resize(size, Image.Resampling.BICUBIC)
        grain = rng.normal(0, 8, (size[1], size[0], 1))
        pixels = np.clip(np.asarray(coarse) + grain, 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:05}.jpg", quality=_QUALITY)


def write_clips(folder: Path, count: int) -> float:
    """WAV files of noise, each with a rhythm of its own; returns their seconds."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    total = 0.0
    for number in range(count):
        seconds = float(rng.uniform(*CLIP_SECONDS))
        soundfile.write(folder / f"{number:05}.wav", noise(rng, seconds), SAMPLE_RATE)
        total += seconds
    return total


def noise(rng: np.random.Generator, seconds: float) -> NDArray[np.float32]:
    """[T] samples at 16 kHz of noise whose loudness rises and falls."""
    samples = round(seconds * SAMPLE_RATE)
    rise = 1 + np.sin(np.arange(samples) / rng.uniform(200, 2_000))
    return np.asarray(0.1 * rise * rng.standard_normal(samples), np.float32)
