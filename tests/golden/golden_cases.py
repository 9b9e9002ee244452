"""Made-up clips, pictures and corpora, and what SaySee makes of them: vectors, tables, rows, scores, losses.

It knows public names, the command line and the names of the weights only, so that files may move in the package.
"""

from __future__ import annotations

import json
import os
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from PIL import Image
from transformers import CLIPConfig, HubertConfig

from saysee import Index, Manifest, SpeechImageModel
from saysee.evaluation.recall import group_measures, retrieval_measures, retrieval_ranks
from saysee_process import start_saysee

COUNT, RATE = 20, 16_000
EXPECTED = Path(__file__).with_name("expected.json")
VECTORS = Path(__file__).with_name("expected.npz")
TEXTS = [
    "a red square above a blue circle",
    "two green stars",
    "a yellow triangle",
    "three small black circles",
    "blue",
    "a large white square to the left of a star",
    "a purple ring below an orange cross",
    "a dog runs on the beach",
    "A Red Square, above a blue circle!",
    "one circle and one square and one triangle and one star and one ring",
]
STABLE_COLUMNS = ("clip", "image", "image_id", "split", "text", "speaker", "language")


HAS_BF16 = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def capability() -> str:
    """What chooses torch's kernels here, and with them the last bits of a result."""
    processor = getattr(torch.cpu, "get_capabilities", dict)()
    features = [name for name in ("avx512_bf16", "amx_tile") if processor.get(name)]
    return " ".join([torch.backends.cpu.get_cpu_capability(), *features, "torch", torch.__version__.split("+")[0]])


def run_saysee(*words: object) -> None:
    """The command line in a process of its own; its message is the error's where it fails."""
    # One thread: sums of another order would move the losses, and small tensors wait for a second thread.
    process = start_saysee(*words, HF_HUB_OFFLINE="1", OMP_NUM_THREADS="1")
    _, errors = process.communicate()
    assert process.returncode == 0, f"{words}: {errors}"


def sound(path: Path, seconds: float = 0.1) -> Path:
    """A tone of three partials that glides, with a rhythm and noise, all of it following from the file's name."""
    rng = np.random.default_rng(zlib.crc32(path.name.encode()))
    time = np.arange(round(seconds * RATE)) / RATE
    pitch, glide, rhythm = rng.uniform(80, 900), rng.uniform(-100, 100), rng.uniform(1, 9)
    phase = 2 * np.pi * (pitch * time + glide * time**2)
    wave = sum(loud * np.sin(partial * phase) for partial, loud in enumerate(rng.uniform(0, 0.2, 3), start=1))
    wave = wave * (1 + np.sin(2 * np.pi * rhythm * time)) / 2 + rng.uniform(0.001, 0.1) * rng.standard_normal(len(time))
    wave = np.stack([wave, wave * 0.5], axis=1) if path.stem.endswith("7") else wave  # some are stereo
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, np.clip(wave * 32_767, -32_768, 32_767).astype(np.int16), RATE, subtype="PCM_16")
    return path


def picture(path: Path) -> Path:
    """Coloured rectangles, of a size that follows from the file's name as they do."""
    rng = np.random.default_rng(zlib.crc32(path.name.encode()))
    width, height = rng.integers(24, 260, 2)
    pixels = np.empty((height, width, 3), np.uint8)
    pixels[:] = rng.integers(0, 256, 3)
    for _ in range(int(rng.integers(1, 6))):
        x, y = rng.integers(0, width), rng.integers(0, height)
        pixels[y : y + height // 3, x : x + width // 3] = rng.integers(0, 256, 3)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).convert({"5": "L", "6": "RGBA", "7": "P"}.get(path.stem[-1], "RGB")).save(path)
    return path


def write_media(folder: Path) -> tuple[list[Path], list[Path]]:
    """20 clips of 0.3 to 4 s and 20 pictures."""
    seconds = np.random.default_rng(0).permutation(np.linspace(0.3, 4.0, COUNT))
    clips = [sound(folder / f"clip{number:02}.wav", length) for number, length in enumerate(seconds)]
    return clips, [picture(folder / f"picture{number:02}.png") for number in range(COUNT)]


_LAYERS = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
_HUBERT = _LAYERS | {"conv_dim": [16] * 7, "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 2}
_KINDS: dict[str, dict[str, Any]] = {
    "base": {"feat_extract_norm": "group", "do_stable_layer_norm": False},
    "large": {"feat_extract_norm": "layer", "do_stable_layer_norm": True, "conv_bias": True},
}


def random_model(kind: str) -> SpeechImageModel:
    """HuBERT base or large and CLIP B/32 in small, with random weights."""
    torch.manual_seed(0)
    vision = _LAYERS | {"image_size": 32, "patch_size": 16}
    # Spread wider than usual: else the vectors of so small a model are nearly constant, and a test on them blind.
    clip = CLIPConfig(text_config=_LAYERS, vision_config=vision, projection_dim=16, initializer_factor=4.0)
    hubert = HubertConfig(**_HUBERT, **_KINDS[kind], initializer_range=0.2)
    return SpeechImageModel.from_encoders(hubert, clip, text=False)


def packaged_model(*, stirred: bool) -> SpeechImageModel:
    """The package's encoders under a new head; ``stirred`` moves its weights by what follows from their names."""
    torch.manual_seed(0)
    model = SpeechImageModel.from_encoders("saysee/hubert-nano", "saysee/clip-nano", text=True)
    for name, weight in model.named_parameters() if stirred else ():
        if name.startswith("speech_encoder.") and not name.startswith("speech_encoder.hubert."):
            more = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(tuple(weight.shape))
            weight.data += 0.2 * torch.from_numpy(more).float()
    return model


def vectors(folder: Path) -> dict[str, np.ndarray]:
    """What each model gives for the clips, pictures and texts, float32."""
    clips, pictures = write_media(folder)
    new, stirred = packaged_model(stirred=False), packaged_model(stirred=True)
    found = {"nano/speech": new.encode_speech(clips), "nano/speech, stirred head": stirred.encode_speech(clips)}
    found |= {"nano/images": new.encode_images(pictures), "nano/texts": new.encode_text(TEXTS)}
    for kind in _KINDS:
        model = random_model(kind)
        found |= {f"{kind}/speech": model.encode_speech(clips), f"{kind}/images": model.encode_images(pictures)}
    return found


def recall_tables() -> dict[str, Any]:
    """Measures with intervals of 60 clips of 12 of 13 pictures; scores of few values, so many are ties."""
    rng = np.random.default_rng(0)
    image_of_clip = np.repeat(np.arange(12), 5)
    # Each row has the same values, so the same length: the cosines are these scores, but for one factor.
    scores = rng.permuted(np.tile([9, 7, 7, 5, 5, 5, 3, 3, 3, 1, 1, 1, 0], (60, 1)), axis=1)
    for row in range(0, 60, 3):  # a third of the clips have their own picture first
        own, best = image_of_clip[row], scores[row].argmax()
        scores[row, [own, best]] = scores[row, [best, own]]
    ranks = retrieval_ranks(scores.astype(np.float32), np.eye(13, dtype=np.float32), image_of_clip)
    speakers = [None if row % 7 == 0 else f"speaker {row // 30}" for row in range(60)]
    groups = {name: one.to_dict() for name, one in group_measures(ranks, speakers, resamples=200).items()}
    tables = {"all": retrieval_measures(ranks, resamples=1000, seed=0).to_dict(), "groups": groups}
    tables |= {"ranks": [ranks.speech_to_image.tolist(), ranks.image_to_speech.tolist()]}
    return json.loads(json.dumps(tables), parse_float=lambda digits: round(float(digits), 6))


def _text(path: Path, *lines: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def _flickr8k(root: Path) -> list[object]:
    splits = {"train": ["1000268201_693b08cb0e", "1001773457_577c3a7d70"], "dev": ["two dogs"], "test": ["33_d3"]}
    pairs = [(stem, number) for stems in splits.values() for stem in stems for number in range(2)]
    for stem, number in pairs:
        picture(root / "Flicker8k_Dataset" / f"{stem}.jpg")
        sound(root / "flickr_audio" / "wavs" / f"{stem}_{number}.wav")
    audio, text = root / "flickr_audio", root / "Flickr8k_text"
    _text(audio / "wav2capt.txt", *(f"{stem}_{number}.wav {stem}.jpg #{number}" for stem, number in pairs))
    _text(audio / "wav2spk.txt", *(f"{stem}_{number}.wav {number + 1}" for stem, number in pairs))
    _text(text / "Flickr8k.token.txt", *(f'{stem}.jpg#{number}\tA "é" {number}, {stem} .' for stem, number in pairs))
    for split, stems in splits.items():
        _text(text / f"Flickr_8k.{split}Images.txt", *(f"{stem}.jpg" for stem in stems))
    return ["--audio", audio, "--images", root / "Flicker8k_Dataset", "--text", text, "--allow-missing", 0]


def _spokencoco(root: Path) -> list[object]:
    for split, numbers in {"train": (9, 25), "val": (42,)}.items():
        data = []
        for number in numbers:
            image = f"{split}2014/COCO_{split}2014_{number:012}.jpg"
            picture(root / "coco" / image)
            captions = []
            for at in range(2):
                name = f"m{at}-3LUY_{number}_{at}"
                caption = {"text": f"A PICTURE É {name}", "speaker": f"m{at}", "uttid": name}
                captions.append(caption | {"wav": f"wavs/{split}/{at}/{name}.wav"})
                sound(root / "SpokenCOCO" / captions[-1]["wav"])
            data.append({"image": image, "captions": captions})
        _text(root / "SpokenCOCO" / f"SpokenCOCO_{split}.json", json.dumps({"data": data}))
    return ["--audio", root / "SpokenCOCO", "--images", root / "coco"]


def _places(root: Path) -> list[object]:
    pictures = {"train": ["a/abbey/gsun_0a1b.jpg", "a/abbey/00000001.jpg"], "val": ["b/beach/00000001.jpg"]}
    audio = root / "audio"
    for split, images in pictures.items():
        data = []
        for number, image in enumerate(images):
            name = f"A1-{split}{number}"
            picture(root / "images" / image)
            told = {"uttid": name, "speaker": f"A{number}", "asr_text": f"this is é {name}", "image": image}
            data.append(told | {"wav": f"wavs/{number}/utterance_{name}.wav"})
            sound(audio / data[-1]["wav"])
        _text(audio / "metadata" / f"{split}.json", json.dumps({"data": data}))
    return ["--metadata", audio / "metadata", "--audio", audio, "--images", root / "images"]


def _folder(root: Path) -> list[object]:
    for number in range(6):
        picture(root / "pictures" / f"p{number}.png")
        sound(root / "sounds" / f"p{number}.wav")
        sound(root / "sounds" / f"p{number}_2.wav")
        _text(root / "sounds" / f"p{number}.txt", f"what  is seen é {number}")
    return [root, "--val-share", 0.3, "--test-share", 0.3, "--language", "en"]


LAYOUTS = {"flickr8k": _flickr8k, "spokencoco": _spokencoco, "places": _places, "folder": _folder}


def manifest_rows(layout: str, folder: Path) -> list[dict[str, Any]]:
    """The stable columns of a small corpus's manifest, paths as seen from the corpus."""
    root = folder / "corpus"
    run_saysee("data", layout, *LAYOUTS[layout](root), "--to", folder / "manifest.jsonl")
    manifest = Manifest.read(folder / "manifest.jsonl")
    rows = [{name: getattr(row, name) for name in STABLE_COLUMNS} for row in manifest]
    for row in rows:
        for name in ("clip", "image"):
            row[name] = Path(os.path.relpath(manifest.root / row[name], root)).as_posix()
    return rows


def scores(folder: Path, k: int) -> list[dict[str, float]]:
    """Score by file name of the first k of 20 queries, best first: clips and texts for pictures, pictures for clips."""
    clips, pictures = write_media(folder / "media")
    packaged_model(stirred=True).save_pretrained(folder / "model")
    run_saysee("index", folder / "model", folder / "media", "--to", folder / "index", "--device", "cpu")
    index = Index.open(folder / "index")
    found = index.search(speech=clips[:7], k=k, kind="image") + index.search(images=pictures[:7], k=k, kind="clip")
    found += index.search(texts=TEXTS[:6], k=k, kind="image")
    return [{Path(hit.path).name: round(hit.score, 6) for hit in hits} for hits in found]


RUNS = {f"{preset}, features {keep}": (preset, keep) for preset in ("off", "paper") for keep in ("auto", "off")}


def write_pairs(folder: Path) -> Path:
    """A manifest of the 20 clips, each with the picture of its number: 16 to train on, 4 to validate."""
    clips, pictures = write_media(folder)
    rows = [{"clip": clip.name, "image": image.name} for clip, image in zip(clips, pictures, strict=True)]
    for number, row in enumerate(rows):
        row |= {"image_id": str(number), "split": "train" if number < 16 else "val"}
    _text(folder / "manifest.jsonl", *map(json.dumps, rows))
    return folder / "manifest.jsonl"


def losses(manifest: Path, run: str, folder: Path) -> list[float]:
    """The losses of 20 steps in fp32, one of ``RUNS``: nano with the head and negatives of SpeechCLIP parallel."""
    preset, keep = RUNS[run]
    settings = {"data.manifest": manifest, "data.batch_size": 8, "data.workers": 0, "features.keep": keep}
    settings |= {"denoising.preset": preset, "training.steps": 20, "training.log_every": 1}
    settings |= {"training.precision": "fp32", "training.device": "cpu"}
    settings |= {
        "head.layers": 1,
        "head.pooling": "cls",
        "head.stride": 1,
        "contrastive.negatives": "batch",
        "speech_noise.clips": 0,
    }
    run_saysee("train", "nano", "--output", folder, *(f"--{name}={value}" for name, value in settings.items()))
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [line["loss"] for line in lines if line["kind"] == "train"]
