"""Training and encoding at the published sizes on a GPU, with random weights, in under ten minutes.

    python -m benchmarks.gpu
    python -m benchmarks.gpu --sizes tiny --batch-size 4 --device cpu    # a try of the program

For each size: steps of the corpus's recipe, encoders trained, on files in the layout of Flickr8k; the same steps on a
batch that is there already, which shows whether the loader keeps up; the forward passes of both encoders in bf16, as
they are and by ``torch.compile``, as a share of what a large matrix product reaches; and ``Encoder`` on the files.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from benchmarks.full_size import SIZES, write_corpus
from saysee.cli import main as saysee
from saysee.data.manifest import Manifest
from saysee.encoding.encoder import Encoder
from saysee.settings.reading import load_recipe
from saysee.studies.overhead import count_flops
from saysee.training.dry_run import dry_run, timed_batches
from saysee.training.trainer import Trainer

CLIPS, SECONDS, IMAGES = 32, 6, 256
"""Of a forward pass of an encoder alone."""
ROUNDS = 10


def main(arguments: list[str] | None = None) -> None:
    """Measures and prints one line of JSON for each size."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--sizes", nargs="*", default=["base", "large"], choices=SIZES, help="of the encoders")
    parser.add_argument("--batch-size", type=int, default=256, metavar="N", help="pairs in a batch (%(default)s)")
    parser.add_argument("--images", type=int, default=400, metavar="N", help="of the corpus (%(default)s)")
    parser.add_argument("--device", default="cuda", help="(%(default)s)")
    options = parser.parse_args(arguments)
    if options.device == "cuda" and not torch.cuda.is_available():
        sys.exit("gpu: this machine has no GPU that torch can use; give --device cpu to try the program")
    with tempfile.TemporaryDirectory() as scratch:
        manifest = corpus(options, Path(scratch))
        peak = matrix_flops(options.device)
        for size in options.sizes:
            found = measure(size, manifest, options)
            about = {"size": size, "device": name_of(options.device), "matrix_tflops": round(peak / 1e12, 2)}
            for encoder in found["encoders"].values():
                encoder["share_of_peak"] = round(encoder.pop("flops_per_second") / peak, 3)
            print(json.dumps(about | found), flush=True)


def corpus(options: Namespace, folder: Path) -> Path:
    """A manifest of noise and colors in the layout of Flickr8k."""
    write_corpus(Namespace(images=options.images, seconds=(2.0, 8.0)), folder)
    made, manifest = folder / "corpus", folder / "flickr8k.parquet"
    places = [
        "--audio",
        made / "flickr_audio",
        "--images",
        made / "Flicker8k_Dataset",
        "--text",
        made / "Flickr8k_text",
    ]
    if saysee([str(word) for word in ("data", "flickr8k", *places, "--to", manifest)]):
        sys.exit("gpu: the corpus could not be prepared")
    return manifest


def measure(size: str, manifest: Path, options: Namespace) -> dict[str, Any]:
    """Steps, forward passes and encoding of one size."""
    speech, clip = SIZES[size]
    image = clip.get("vision_config", {}) | {"projection_dim": clip.get("projection_dim", 512)}
    recipe = {
        "from": "flickr8k-large" if size == "large" else "flickr8k-base",
        "output": str(manifest.with_name(f"run-{size}")),
        "data": {"manifest": str(manifest), "batch_size": options.batch_size},
        "model": {"speech": speech or {"hidden_size": 768}, "image": image, "text": False},
        "training": {"device": options.device},
        "features": {"keep": "off"},
    }
    if size == "tiny":
        recipe["head"] = {"heads": 4}
    path = manifest.with_name(f"{size}.yaml")
    path.write_text(yaml.safe_dump(recipe), encoding="utf-8")
    steps, trainer = {}, None
    for name, trained in (("encoders frozen", 0), ("encoders trained", "all")):
        chosen = [f"--model.{side}_trainable={trained}" for side in ("speech", "image")]
        trainer = Trainer(load_recipe(str(path), chosen))
        steps[name] = step_times(trainer, options.device)
    assert trainer is not None
    passes, files = forward_passes(trainer.model, options.device), encoding(trainer, manifest)
    return {"steps": steps, "encoders": passes, "encoding": files}


def step_times(trainer: Trainer, device: str) -> dict[str, float]:
    """Steps with decoding, and on a batch that is there already."""
    result, batches = dry_run(trainer), timed_batches(trainer)
    there = timed(lambda: trainer.step(iter(batches), trainer.recipe.training.steps - 1), device)
    return {
        "seconds": round(result.seconds_per_step, 4),
        "clips_per_second": round(result.clips_per_second, 1),
        "seconds_without_loader": round(there, 4),
        "peak_gib": round((result.peak_gpu_memory_bytes or result.peak_memory_bytes or 0) / 2**30, 2),
    }


def forward_passes(model: Any, device: str) -> dict[str, dict[str, float]]:
    """Seconds and FLOPs a second of both encoders in bf16, as they are and compiled."""
    model.eval()
    side = model.config.vision_config.image_size
    waveforms = torch.randn(CLIPS, SECONDS * 16_000, device=device)
    pixels = torch.randn(IMAGES, 3, side, side, device=device)
    hubert, vision = model.speech_encoder.hubert, model.image_encoder.clip.vision_model
    found = {}
    for name, encoder, inputs in (("speech", hubert, waveforms), ("images", vision, pixels)):
        flops = count_flops(partial(in_bf16, encoder, inputs[:1])) * len(inputs)
        for form, network in ((name, encoder), (f"{name}, compiled", torch.compile(encoder))):
            seconds = timed(partial(in_bf16, network, inputs), device)
            found[form] = {"seconds": round(seconds, 4), "flops_per_second": flops / seconds}
    return found


@torch.no_grad()
def in_bf16(network: Callable[..., Any], inputs: Tensor) -> Any:
    """What a network gives under autocast, without a graph."""
    with torch.autocast(inputs.device.type, torch.bfloat16):
        return network(inputs)


def encoding(trainer: Trainer, manifest: Path) -> dict[str, float]:
    """Files a second through the Encoder, from the disk to the vectors."""
    rows, encoder = Manifest.read(manifest).select("train"), Encoder(trainer.model.eval())
    clips, images = [rows.clip_path(row) for row in rows], [rows.image_path(row) for row in rows.images()]
    found = {}
    for name, encode, files in (("clips", encoder.encode_speech, clips), ("images", encoder.encode_images, images)):
        encode(files[:CLIPS], progress=False)
        start = time.perf_counter()
        encode(files, progress=False)
        found[f"{name}_per_second"] = round(len(files) / (time.perf_counter() - start), 1)
    return found


def timed(run: Callable[[], Any], device: str) -> float:
    """Median seconds of a call, after two that warm up."""
    seconds = []
    for _ in range(2 + ROUNDS):
        if device == "cuda":
            torch.cuda.synchronize()
        start = time.perf_counter()
        run()
        if device == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return sorted(seconds[2:])[ROUNDS // 2]


def matrix_flops(device: str) -> float:
    """FLOPs a second of a product of large matrices in bf16."""
    width = 8192 if device == "cuda" else 1024
    a, b = (torch.randn(width, width, device=device, dtype=torch.bfloat16) for _ in range(2))
    return 2 * width**3 / timed(lambda: a @ b, device)


def name_of(device: str) -> str:
    """Of the machine's processor."""
    return torch.cuda.get_device_name() if device == "cuda" else "CPU"


if __name__ == "__main__":
    main()
