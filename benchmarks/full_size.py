"""A whole training at the published sizes, with random weights in the published formats: time and memory of each stage.

    python -m benchmarks.full_size --size base --steps 20 --batch-size 8
    python -m benchmarks.full_size --size large --steps 2 --batch-size 2 --images 20

In a temporary folder (or ``--to``) it writes encoders as the hub has them and a corpus in the layout of Flickr8k,
prepares the manifest, trains the corpus's recipe, kills the training (SIGKILL) once half of its steps are in a
checkpoint, resumes it, scores the best model, saves it without the fusion encoder and loads it. Each stage is a process
of its own, so that its peak memory is its own. Speed does not depend on the weights; the scores are meaningless.

HuBERT is written in the old format that the hub still has: ``pytorch_model.bin`` with ``weight_g`` and ``weight_v``;
CLIP as safetensors, or with ``--old-clip`` as ``pytorch_model.bin`` too.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

SIZES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    # For tests: the published architecture with few channels.
    "tiny": (
        {
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "intermediate_size": 64,
            "conv_dim": [16] * 7,
            "num_conv_pos_embeddings": 16,
            "num_conv_pos_embedding_groups": 2,
        },
        {
            "vision_config": {
                "hidden_size": 32,
                "num_hidden_layers": 2,
                "num_attention_heads": 4,
                "intermediate_size": 64,
                "image_size": 32,
                "patch_size": 8,
            },
            "text_config": {
                "hidden_size": 32,
                "num_hidden_layers": 2,
                "num_attention_heads": 4,
                "intermediate_size": 64,
            },
            "projection_dim": 24,
        },
    ),
    # As published: arXiv 2106.07447, table 1, and arXiv 2103.00020, table 20.
    "base": (
        {},
        {
            "vision_config": {"patch_size": 32},
            "text_config": {},
            "projection_dim": 512,
        },
    ),
    "large": (
        {
            "feat_extract_norm": "layer",
            "do_stable_layer_norm": True,
            "conv_bias": True,
            "hidden_size": 1024,
            "num_hidden_layers": 24,
            "num_attention_heads": 16,
            "intermediate_size": 4096,
        },
        {
            "vision_config": {
                "hidden_size": 1024,
                "num_hidden_layers": 24,
                "num_attention_heads": 16,
                "intermediate_size": 4096,
                "patch_size": 14,
            },
            "text_config": {"hidden_size": 768, "num_attention_heads": 12, "intermediate_size": 3072},
            "projection_dim": 768,
        },
    ),
}
CLIPS_PER_IMAGE = 5
TIMEOUT_SECONDS = 3600
"""Limit on the time of a stage."""


@dataclass(frozen=True)
class Stage:
    """Time and memory of one stage.

    Attributes:
        name: of the stage.
        seconds: wall time.
        peak_mib: peak memory of its largest process in MiB.
    """

    name: str
    seconds: float
    peak_mib: float


def main() -> None:
    """Runs all stages and prints their table, or one line of JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--size", choices=tuple(SIZES), default="base", help="of the encoders (%(default)s)")
    parser.add_argument("--steps", type=int, default=20, metavar="N", help="training steps, 2 or more (%(default)s)")
    parser.add_argument("--batch-size", type=int, default=8, metavar="N", help="pairs in a batch (%(default)s)")
    parser.add_argument("--images", type=int, default=60, metavar="N", help="images, five clips each (%(default)s)")
    parser.add_argument(
        "--seconds", type=float, nargs=2, default=(2.0, 8.0), metavar="S", help="shortest and longest clip (2 8)"
    )
    parser.add_argument("--old-clip", action="store_true", help="CLIP as pytorch_model.bin, not safetensors")
    parser.add_argument("--to", metavar="DIR", help="an empty folder to keep the files in; default: a temporary one")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--stage", choices=sorted(STAGES), help=argparse.SUPPRESS)  # how this program calls itself
    options, overrides = parser.parse_known_args()
    if options.stage:
        STAGES[options.stage](options, Path(options.to))
        return
    if options.steps < 2:
        parser.error("--steps must be at least 2: the run is killed between two steps")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(options.to or scratch).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        found = run(options, overrides, folder)
    print(json.dumps(found) if options.json else table(found))


def run(options: argparse.Namespace, overrides: list[str], folder: Path) -> dict[str, Any]:
    """Runs all stages in order; returns time and memory of each, and the metrics of the training."""
    own = [sys.executable, "-m", "benchmarks.full_size", f"--size={options.size}", f"--to={folder}"]
    own += [f"--images={options.images}"]
    own += ["--seconds", *map(str, options.seconds), *(["--old-clip"] if options.old_clip else [])]
    saysee = [sys.executable, "-m", "saysee"]
    manifest, run_folder = folder / "flickr8k.parquet", folder / "run"
    recipe = "flickr8k-large" if options.size == "large" else "flickr8k-base"
    train = [*saysee, "train", recipe, "--resume=auto", "--json", *settings(options, folder), *overrides]
    corpus = folder / "corpus"
    prepare = ["--audio", corpus / "flickr_audio", "--images", corpus / "Flicker8k_Dataset"]
    prepare += ["--text", corpus / "Flickr8k_text"]

    stages = [
        stage(folder, "encoders written", [*own, "--stage=encoders"]),
        stage(folder, "corpus written", [*own, "--stage=corpus"]),
        stage(folder, "saysee data flickr8k", [*saysee, "data", "flickr8k", *prepare, "--to", manifest]),
    ]
    half = options.steps // 2
    stages.append(
        stage(folder, f"saysee train, killed after step {half}", train, kill_when=lambda: last_step(run_folder) >= half)
    )
    kept, before = last_step(run_folder), steps_of(run_folder)
    if (run_folder / "result.json").exists():
        sys.exit("full_size: the training ended before it was killed; give more --steps")
    stages.append(stage(folder, f"saysee train, resumed at step {kept}", train))
    after = steps_of(run_folder)
    if sorted(after) != list(range(1, options.steps + 1)) or any(
        after[step] != before[step] for step in after if step <= kept
    ):
        sys.exit(f"full_size: the resumed run logged steps {sorted(after)} after {sorted(before)}")
    evaluate = [*saysee, "evaluate", run_folder / "best", manifest, f"--batch-size={options.batch_size}"]
    stages.append(stage(folder, "saysee evaluate", evaluate))
    stages.append(stage(folder, "saved without fusion encoder, loaded, compared", [*own, "--stage=export"]))
    result = json.loads((run_folder / "result.json").read_text(encoding="utf-8"))
    return {
        "size": options.size,
        "steps": result["steps"],
        "batch_size": options.batch_size,
        "killed_at": kept,
        "seconds_per_step": result["seconds_per_step"],
        "clips_per_second": result["clips_per_second"],
        "last_loss": after[options.steps]["loss"],
        "stages": [asdict(done) for done in stages],
    }


def settings(options: argparse.Namespace, folder: Path) -> list[str]:
    """Overrides of the recipe: paths, size, and intervals of checkpoints and logs."""
    chosen = {
        "data.manifest": folder / "flickr8k.parquet",
        "data.batch_size": options.batch_size,
        "data.workers": 1,
        "model.speech": folder / "hubert",
        "model.image": folder / "clip",
        "output": folder / "run",
        "training.steps": options.steps,
        "training.eval_every": options.steps,
        "training.checkpoint_every": max(1, options.steps // 4),
        "training.log_every": 1,
        "training.device": "cpu",
    }
    return [f"--{name}={value}" for name, value in chosen.items()]


def stage(folder: Path, name: str, command: list[Any], *, kill_when: Callable[[], bool] | None = None) -> Stage:
    """Runs a command until it ends or ``kill_when`` is true, and exits if it fails."""
    print(f"full_size: {name} …", file=sys.stderr)
    log = folder / "log.txt"
    start = time.perf_counter()
    with log.open("ab") as output:
        process = subprocess.Popen([os.fspath(word) for word in command], stdout=output, stderr=subprocess.STDOUT)
        pid, killed = 0, False
        while not pid:
            if not killed and kill_when is not None and kill_when():
                process.kill()
                killed = True
            elif time.perf_counter() - start > TIMEOUT_SECONDS:
                process.kill()
            time.sleep(0.01)
            pid, status, usage = os.wait4(process.pid, os.WNOHANG)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0 and not killed:
        sys.exit(f"full_size: {name} failed:\n{log.read_text(encoding='utf-8')[-3000:]}")
    kibibytes = usage.ru_maxrss / (1024 if sys.platform == "darwin" else 1)
    return Stage(name, round(time.perf_counter() - start, 1), round(kibibytes / 1024))


def last_step(run_folder: Path) -> int:
    """Step of the newest checkpoint, 0 if there is none."""
    from saysee.training.checkpoint import find_checkpoints

    checkpoints = find_checkpoints(run_folder / "checkpoints")
    return int(checkpoints[-1].name.removeprefix("step-")) if checkpoints else 0


def steps_of(run_folder: Path) -> dict[int, dict[str, Any]]:
    """Log records of the training steps of a run, by step."""
    from saysee.training.records import read_metrics

    return {line["step"]: line for line in read_metrics(run_folder) if line["kind"] == "train"}


def table(found: dict[str, Any]) -> str:
    """The result as a Markdown table."""
    lines = [
        f"{found['size']}, {found['steps']} steps of {found['batch_size']} pairs: {found['seconds_per_step']:.2f} s a "
        f"step, {found['clips_per_second']:.2f} clips/s",
        "",
        "| stage | seconds | peak memory, MiB |",
        "|---|---:|---:|",
    ]
    lines += [f"| {done['name']} | {done['seconds']:.1f} | {done['peak_mib']:,.0f} |" for done in found["stages"]]
    return "\n".join(lines)


def write_encoders(options: argparse.Namespace, folder: Path) -> None:
    """Writes a HuBERT in the old format and a CLIP with its image processor and tokenizer, as the hub has them."""
    import torch
    from lab.nano.words import word_tokenizer
    from transformers import (
        CLIPConfig,
        CLIPImageProcessorPil,
        CLIPModel,
        HubertConfig,
        HubertModel,
        Wav2Vec2FeatureExtractor,
    )

    speech, image = SIZES[options.size]
    torch.manual_seed(0)
    hubert = HubertModel(HubertConfig(**speech))
    hubert.config.save_pretrained(folder / "hubert")
    torch.save(old_hubert(hubert.state_dict()), folder / "hubert" / "pytorch_model.bin")
    extractor = Wav2Vec2FeatureExtractor(do_normalize=True, return_attention_mask=options.size == "large")
    extractor.save_pretrained(folder / "hubert")
    del hubert
    clip = CLIPModel(CLIPConfig(**image))
    if options.old_clip:
        clip.config.save_pretrained(folder / "clip")
        torch.save(old_clip(clip.state_dict()), folder / "clip" / "pytorch_model.bin")
    else:
        clip.save_pretrained(folder / "clip")
    side = clip.config.vision_config.image_size
    CLIPImageProcessorPil(size={"shortest_edge": side}, crop_size={"height": side, "width": side}).save_pretrained(
        folder / "clip"
    )
    word_tokenizer(["an image"]).save_pretrained(folder / "clip")


def old_hubert(state: dict[str, Any]) -> dict[str, Any]:
    """Weights under the names that checkpoints had before torch introduced parametrizations."""
    names = {"parametrizations.weight.original0": "weight_g", "parametrizations.weight.original1": "weight_v"}
    renamed = {}
    for name, value in state.items():
        for modern, old in names.items():
            name = name.replace(modern, old)
        renamed[name] = value
    return renamed


def old_clip(state: dict[str, Any]) -> dict[str, Any]:
    """Weights with the position numbers that old checkpoints of CLIP hold."""
    import torch

    tables = {name: value for name, value in state.items() if name.endswith("position_embedding.weight")}
    numbers = {
        name.replace("position_embedding.weight", "position_ids"): torch.arange(len(value))[None]
        for name, value in tables.items()
    }
    return state | numbers


def write_corpus(options: argparse.Namespace, folder: Path) -> None:
    """Writes noise and colors under the file names and lists of Flickr8k, with its clip lengths and image size."""
    import numpy as np
    import soundfile
    from PIL import Image

    random = np.random.default_rng(0)
    corpus = folder / "corpus"
    wavs, images = corpus / "flickr_audio" / "wavs", corpus / "Flicker8k_Dataset"
    wavs.mkdir(parents=True)
    images.mkdir()
    tenth = max(2, options.images // 10)
    splits: dict[str, list[str]] = {"test": [], "dev": [], "train": []}
    clips, captions = [], []
    for number in range(options.images):
        stem = f"{1000268201 + number}_{random.integers(16**10):010x}"
        splits["test" if number < tenth else "dev" if number < 2 * tenth else "train"].append(f"{stem}.jpg\n")
        colors = random.integers(0, 256, (6, 8, 3), dtype=np.uint8)
        Image.fromarray(colors).resize((500, 375), Image.Resampling.BICUBIC).save(images / f"{stem}.jpg")
        for clip in range(CLIPS_PER_IMAGE):
            samples = int(16_000 * random.uniform(*options.seconds))
            soundfile.write(wavs / f"{stem}_{clip}.wav", 0.1 * random.standard_normal(samples), 16_000)
            clips.append(f"{stem}_{clip}.wav {stem}.jpg #{clip}\n")
            captions.append(f"{stem}.jpg#{clip}\tAn image .\n")
    (corpus / "flickr_audio" / "wav2capt.txt").write_text("".join(clips))
    (corpus / "flickr_audio" / "wav2spk.txt").write_text("".join(f"{line.split()[0]} 1\n" for line in clips))
    (corpus / "Flickr8k_text").mkdir()
    (corpus / "Flickr8k_text" / "Flickr8k.token.txt").write_text("".join(captions))
    for split, names in splits.items():
        (corpus / "Flickr8k_text" / f"Flickr_8k.{split}Images.txt").write_text("".join(names))


def export(options: argparse.Namespace, folder: Path) -> None:
    """Saves the best model without its fusion encoder, loads the copy and compares the vectors of both."""
    del options
    import numpy as np

    from saysee import Manifest, SpeechImageModel

    test = Manifest.read(folder / "flickr8k.parquet").select("test")
    clips, images = [test.clip_path(row) for row in test][:2], [test.image_path(row) for row in test.images()][:2]

    def vectors(place: Path) -> list[Any]:
        model = SpeechImageModel.from_pretrained(place)
        if place.name == "best":
            model.save_pretrained(folder / "exported", fusion=False)
        return [model.encode_speech(clips), model.encode_images(images), model.encode_text(["an image"])]

    best = vectors(folder / "run" / "best")
    for one, other in zip(best, vectors(folder / "exported"), strict=True):
        np.testing.assert_array_equal(one, other)


STAGES = {"encoders": write_encoders, "corpus": write_corpus, "export": export}


if __name__ == "__main__":
    main()
