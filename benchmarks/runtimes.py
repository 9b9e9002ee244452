"""Whether another runtime encodes faster than torch on this CPU: ONNX Runtime and OpenVINO, in fp32 and in 8 bits.

    python -m pip install -c constraints.txt onnx onnxscript onnxruntime openvino nncf
    python -m benchmarks.runtimes

Each runs the encoders alone: one clip of 4 s through HuBERT, 8 images through CLIP's vision transformer. All take turns
in one process. The cosine is the least between its vectors and torch's; for the published sizes, whose weights here are
random, it says that the export is right and nothing about the loss by 8 bits.
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from benchmarks.search.models import Size, model_of
from saysee.data.scenes.drawing import draw_scene
from saysee.data.scenes.planning import plan
from saysee.media.audio import SAMPLE_RATE, load_audio
from saysee.studies.other_queries import VOICES

SIZES = get_args(Size)

SECONDS, IMAGES, CALIBRATION = 4, 8, 16
Run = Callable[[NDArray[np.float32]], NDArray[np.float32]]


class _Hubert(nn.Module):
    def __init__(self, model: Any) -> None:
        super().__init__()
        self.hubert = model.speech_encoder.hubert

    def forward(self, waveforms: Tensor) -> Tensor:
        """Waveforms [B, T] to the mean [B, S] of the last hidden state."""
        return self.hubert(waveforms)[-1].mean(dim=1)  # type: ignore[no-any-return]


class _Clip(nn.Module):
    def __init__(self, model: Any) -> None:
        super().__init__()
        self.encoder = model.image_encoder

    def forward(self, pixels: Tensor) -> Tensor:
        """Pixels [B, 3, H, W] to vectors [B, D]."""
        return self.encoder(pixels).vector  # type: ignore[no-any-return]


def main() -> int:
    """Measures, prints JSON, and returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9, metavar="N", help="timed turns of each (%(default)s)")
    parser.add_argument("--sizes", nargs="*", default=SIZES, choices=SIZES, help="of the encoders (all)")
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    found = {}
    for size in options.sizes:
        model = model_of(size)
        clips, images = spoken(), drawn(model.processor)
        for name, module, inputs in (("speech", _Hubert(model), clips), ("images", _Clip(model), images)):
            with tempfile.TemporaryDirectory() as folder:
                found[f"{size} {name}"] = compare(runtimes(module.eval(), inputs, Path(folder)), inputs, options.rounds)
            print(json.dumps({f"{size} {name}": found[f"{size} {name}"]}), flush=True)
    return 0


def spoken() -> NDArray[np.float32]:
    """Speech of the package's voices, [N, 1, T]."""
    length = SECONDS * SAMPLE_RATE
    clips = [load_audio(path) for path in sorted(VOICES.glob("*.ogg"))[:CALIBRATION]]
    return np.stack([np.resize(clip, length)[None] for clip in clips])  # short ones are repeated


def drawn(processor: Any) -> NDArray[np.float32]:
    """Scenes as a processor prepares them, [N, B, 3, H, W]."""
    scenes = plan(0, {"train": CALIBRATION * IMAGES, "val": 0, "test": 0})
    pixels = np.stack([processor.prepare_image(draw_scene(each.scene)).numpy() for each in scenes])
    return np.asarray(pixels, np.float32).reshape(CALIBRATION, IMAGES, *pixels.shape[1:])


def runtimes(module: nn.Module, inputs: NDArray[np.float32], folder: Path) -> dict[str, Run]:
    """Torch and the others, each from an array [B, ...] to vectors [B, D].

    Args:
        inputs: [N, B, ...], examples for the calibration of 8 bits.
        folder: of the exported files.
    """
    import nncf  # installed for this alone
    import onnxruntime
    import openvino
    from onnxruntime.quantization import quantize_dynamic

    def in_torch(values: NDArray[np.float32]) -> NDArray[np.float32]:
        with torch.inference_mode():
            return np.asarray(module(torch.from_numpy(values)))

    def in_onnx(file: Path) -> Run:
        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads = torch.get_num_threads()
        session = onnxruntime.InferenceSession(file, settings, providers=["CPUExecutionProvider"])
        name = session.get_inputs()[0].name
        return lambda values: session.run(None, {name: values})[0]

    def in_openvino(model: Any) -> Run:
        settings = {"INFERENCE_NUM_THREADS": torch.get_num_threads(), "PERFORMANCE_HINT": "LATENCY"}
        compiled = openvino.compile_model(model, "CPU", settings)
        return lambda values: compiled(values)[0].copy()

    file, small = folder / "model.onnx", folder / "int8.onnx"
    with torch.inference_mode():
        torch.onnx.export(module, (torch.from_numpy(inputs[0]),), file, dynamo=True, verbose=False)
    quantize_dynamic(file, small, op_types_to_quantize=["MatMul", "Gemm"])
    graph = openvino.convert_model(file)
    in_8_bits = nncf.quantize(graph, nncf.Dataset(list(inputs)), model_type=nncf.ModelType.TRANSFORMER)
    return {
        "torch": in_torch,
        "ONNX Runtime fp32": in_onnx(file),
        "ONNX Runtime int8": in_onnx(small),
        "OpenVINO fp32": in_openvino(graph),
        "OpenVINO int8": in_openvino(in_8_bits),
    }


def compare(runs: dict[str, Run], inputs: NDArray[np.float32], rounds: int) -> dict[str, dict[str, float]]:
    """For each runtime the median milliseconds of a call, torch's divided by it in the same round, and the cosine."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    cosine = dict.fromkeys(runs, 1.0)
    for turn in range(-1, rounds):  # the first is not timed
        values = inputs[turn % len(inputs)]
        vectors = {}
        for name, run in runs.items():
            start = time.perf_counter()
            vectors[name] = run(values)
            if turn >= 0:
                seconds[name].append(time.perf_counter() - start)
        for name, found in vectors.items():
            lengths = np.linalg.norm(found, axis=1) * np.linalg.norm(vectors["torch"], axis=1)
            cosine[name] = min(cosine[name], float(((found * vectors["torch"]).sum(axis=1) / lengths).min()))
    return {
        name: {
            "ms": round(1000 * statistics.median(times), 1),
            "times torch": round(statistics.median(a / b for a, b in zip(seconds["torch"], times, strict=True)), 2),
            "cosine": round(cosine[name], 5),
        }
        for name, times in seconds.items()
    }


if __name__ == "__main__":
    raise SystemExit(main())
