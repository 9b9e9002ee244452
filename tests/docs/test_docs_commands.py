"""Every command and every Python example of the documentation works.

Those that take seconds run, as they are written and in the order of the pages, in one folder: on a small scenes corpus,
and on small copies of the published corpora with encoders of random weights under their names on the hub. Every command
is parsed; those of ``PARSED_ONLY`` do not run.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import re
import runpy
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from tests.docs.examples import PAGES, ROOT, Example, examples_of

import saysee
from saysee.cli import main, parse
from saysee_process import start_saysee

TESTS = ROOT / "tests"
ORDER = ["corpora.md", "train.md", "flickr8k-and-spokencoco.md", "evaluate.md", "search.md", "lancedb.md"]
ORDER += ["search-python.md", "serve.md", "README.md"]
ORDER += ["published-weights.md"]  # last, because it takes the place of an encoder
"""The pages whose examples run: each uses what those before it made."""
PARSED_ONLY = {
    r"^saysee (demo|ablate)": "takes minutes; tests/studies",
    r"postgresql://": "needs a server; tests/search/index",
    r"--record|--open": "needs a microphone or a browser; tests/search/terminal",
    r"^saysee serve": "runs until it is stopped; its HTTP examples run against a service started here",
    r"--recognizer small": "needs a download; tests/search/test_recognizer_search.py",
    r"cascade:small": "needs a download; tests/encoding, tests/evaluation",
    r"--data.batch_size 1024": "needs a corpus of that size; tests/training",
    r'^saysee data hub "?(USER|shards)/': "needs a data set; tests/data/corpora",
}
ENCODERS = {
    "facebook/hubert-base-ls960": "base",
    "facebook/hubert-large-ll60k": "large",
    "openai/clip-vit-base-patch32": "clip",
    "openai/clip-vit-large-patch14": "clip",
}
FEW_STEPS = shlex.split(
    "--training.steps 2 --training.eval_every 2 --training.device cpu --training.precision fp32 "
    "--optimizer.warmup_steps 1 --data.batch_size 4 --data.workers 0"
)
"""Added to all training except that of the model that later pages use."""
FEW_SCENES = ["--images", "18", "--val-images", "4", "--test-images", "4"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_is_valid(page: Path) -> None:
    for example in examples_of(page):
        if example.language == "sh":
            check_command(example)


def test_every_name_of_the_reference_can_be_imported_from_the_package() -> None:
    page = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    names = [path.rpartition(".")[2] for path in re.findall(r"^::: (saysee\.\S+\.\S+)$", page, re.MULTILINE)]
    names += re.findall(r"\w+Error", page)
    assert sorted({*names, "__version__"}) == sorted(saysee.__all__)
    for name in names:
        assert getattr(saysee, name).__module__.startswith("saysee.")


def check_command(example: Example) -> None:
    """Raises if a command names a verb, flag, setting, target, module or extra that does not exist."""
    words = example.words
    if ">" in words:
        words = words[: words.index(">")]
    if words[0] == "torchrun":
        words = words[words.index("-m") + 1 :]
    match words[0]:
        case "saysee":
            check_saysee(words[1:])
        case "make":
            targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
            assert words[1] in targets, example
        case "pip":
            extras = re.findall(r"^(\w+) = \[", (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE)
            assert set(re.findall(r"\w+", words[-1])) <= set(extras), example
        case "python" if words[1] == "-m":
            check_module(words[2], words[3:])
        case "curl" | "python3" | "source" | "hf":  # curl runs below; the others make an environment, or download
            pass
        case other:
            pytest.fail(f"{example.page}: nothing checks {other!r}")


def check_saysee(words: Sequence[str]) -> None:
    with contextlib.redirect_stdout(io.StringIO()):  # of --version
        call = parse(words)
    takes_recipe = call is not None and words[0] in ("train", "ablate", "overhead")
    if takes_recipe and not str(call.arguments["recipe"]).endswith(".yaml"):
        from saysee.settings.reading import load_recipe

        load_recipe(call.arguments["recipe"], call.arguments["overrides"])


def check_module(name: str, words: Sequence[str]) -> None:
    """Runs a program of ``lab`` or ``benchmarks`` up to ``--help``, after it has read its arguments."""
    printed = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
        patch.setattr(sys, "argv", [name, *words, "--help"])
        patch.delitem(sys.modules, name, raising=False)  # runpy warns if it is imported already
        with pytest.raises(SystemExit) as ended:
            runpy.run_module(name, run_name="__main__")
    assert ended.value.code in (0, None), (name, words)
    for word in words:
        assert not word.startswith("--") or "." in word or word.split("=")[0] in printed.getvalue(), (name, word)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hubert_configs: Any, clip_folder: Path) -> Path:
    """A working folder with the encoders and the files that the pages expect."""
    from transformers import HubertModel, Wav2Vec2FeatureExtractor

    here = tmp_path / "docs"
    here.mkdir()
    for name, kind in ENCODERS.items():
        (here / name).parent.mkdir(exist_ok=True)
        if kind == "clip":
            (here / name).symlink_to(clip_folder)
            continue
        HubertModel(hubert_configs[kind]).save_pretrained(here / name)
        Wav2Vec2FeatureExtractor(return_attention_mask=kind == "large").save_pretrained(here / name)
    files = load("data/corpora/conftest.py").Files
    load("data/corpora/test_flickr8k.py").published(files, here)
    coco = load("data/corpora/test_spokencoco.py")
    coco.published(files, here)
    load("data/corpora/test_hub_pairs.py").published(files, here)
    coco.karpathy_json(files, here / "dataset_coco.json", list(coco.IMAGES))
    write_places(files, here)
    for number in range(16):
        files.image(here / "photos" / f"{number}.jpg")
        files.clip(here / "photos" / f"{number}.wav")
    monkeypatch.setattr("saysee.training.dry_run.MEASURED_STEPS", 1)
    monkeypatch.chdir(here)
    return here


def test_every_example_runs_in_the_order_of_the_pages(place: Path) -> None:
    for name in ORDER:
        prepare(name, place)
        page = next(page for page in PAGES if page.name == name)
        requests = []
        for example in examples_of(page):
            try:
                if example.language == "sh" and example.words[0] == "curl":
                    requests.append(example)
                else:
                    run(example)
            except (Exception, SystemExit) as error:
                pytest.fail(f"{name}: {example.text}\n{type(error).__name__}: {error}")
        if requests:
            run_requests(requests)
    check_results(place)


def run(example: Example) -> None:
    if example.language == "python":
        if "import mteb" in example.text and importlib.util.find_spec("mteb") is None:
            return
        exec(compile(example.text, example.page, "exec"), {"__name__": "__main__"})
    elif example.language == "json":
        from saysee.data.manifest import Row

        Row(**json.loads(example.text))
    elif example.language == "yaml":
        Path(example.text.partition("\n")[0].removeprefix("# ").partition(":")[0]).write_text(example.text)
    elif example.words[0] == "saysee" and not any(re.search(why, example.text) for why in PARSED_ONLY):
        run_saysee(example.words[1:])


def run_saysee(words: list[str]) -> None:
    """Runs a command; what it prints goes where the command redirects it."""
    to = None
    if ">" in words:
        words, to = words[: words.index(">")], words[words.index(">") + 1]
    if words[0] == "train" and "runs/first" not in words and "--resume" not in words:
        words = words + FEW_STEPS
    if words[:2] == ["data", "scenes"]:
        words = words + FEW_SCENES
    printed, errors = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(errors):
        code = main(words)
    assert code == 0, errors.getvalue()
    if words[0] == "evaluate" and "--json" not in words:
        assert "mean R@1" in printed.getvalue().replace("_", " ")  # the CSV has mean_R@1
    if to is not None:
        Path(to).write_text(printed.getvalue(), encoding="utf-8")


def run_requests(examples: list[Example]) -> None:
    """The HTTP examples of a page, by curl, against a service of its index."""
    if shutil.which("curl") is None:
        return
    service = start_saysee("serve", "scenes.index", "--port", "0")
    try:
        assert service.stdout is not None
        address = service.stdout.readline().split()[-1].rstrip("/")
        for example in examples:
            words = [word.replace("http://127.0.0.1:8765", address) for word in example.words]
            answer = subprocess.run([*words, "-sS", "--fail-with-body"], capture_output=True, text=True)
            assert answer.returncode == 0, f"{example.text}\n{answer.stdout}{answer.stderr}"
            assert "hits" in json.loads(answer.stdout), answer.stdout
    finally:
        service.send_signal(signal.SIGINT)
        service.communicate(timeout=60)
    assert service.returncode == 130


def prepare(page: str, place: Path) -> None:
    """Files that a page speaks of and no earlier page makes."""
    scenes = place / "scenes"
    if page == "search.md":
        import numpy as np

        from saysee import SpeechImageModel

        images = sorted((scenes / "images").rglob("*.png"))[:12]
        vectors = SpeechImageModel.from_pretrained("runs/first/best").encode_images(images)
        np.save(place / "vectors.npy", vectors)
        (place / "ids.csv").write_text("\n".join(["path", *map(str, images)]) + "\n")
        (place / "queries").mkdir()
        for clip in sorted((scenes / "clips").rglob("*.flac"))[:2]:
            shutil.copy(clip, place / "queries")
    if page == "serve.md":
        shutil.copy(scenes / "clips/000/000000-0.flac", place / "query.wav")  # formats are found by content
        shutil.copy(scenes / "images/000/000000.png", place / "photo.jpg")
    if page == "README.md":
        (place / "demo" / "runs" / "SaySee").mkdir(parents=True)
        (place / "demo" / "runs" / "SaySee" / "best").symlink_to(place / "runs" / "first" / "best")
        (place / "demo" / "scenes").symlink_to(scenes)
    if page == "published-weights.md":
        write_published(place)


def write_published(place: Path) -> None:
    """A checkpoint of SpeechCLIP base under its published name, and a HuBERT with as many layers."""
    from transformers import HubertConfig, HubertModel

    speechclip = load("model/test_speechclip.py")
    hubert = place / "facebook/hubert-base-ls960"
    config = HubertConfig.from_pretrained(hubert)
    config.num_hidden_layers = 12
    HubertModel(config).save_pretrained(hubert)
    path = place / "base/flickr/parallel/epoch_131-step_15443-val_recall_mean_1_36.0100.ckpt"
    path.parent.mkdir(parents=True)
    head = speechclip.PublishedHead(13, config.hidden_size, 24)
    speechclip.write_checkpoint(path, head.published() | speechclip.frozen(4))


def check_results(place: Path) -> None:
    """What the commands from the published corpora to the tables leave."""
    from huggingface_hub import ModelCard

    flickr8k = json.loads((place / "flickr8k-base.json").read_text(encoding="utf-8"))
    assert (flickr8k["split"], flickr8k["overall"]["clips"], flickr8k["overall"]["images"]) == ("test", 4, 2)
    transfer = json.loads((place / "spokencoco-large.json").read_text(encoding="utf-8"))["corpora"]
    assert [corpus["manifest"] for corpus in transfer] == ["spokencoco.parquet", "flickr8k.parquet"]
    card = ModelCard.load(place / "runs" / "flickr8k-base" / "best" / "README.md")
    assert "| flickr8k, test | this model | 4 | 2 |" in card.text
    assert "openai/clip-vit-base-patch32" in card.text
    assert "| flickr8k, test | this model | 4 | 2 |" in (place / "speechclip-base" / "README.md").read_text()


def write_places(files: Any, here: Path) -> None:
    """Places as it was published: two images, a clip each."""
    audio = here / "PlacesAudio_400k_distro"
    for split in ("train", "val"):
        files.image(here / "images256" / "a" / f"{split}.jpg")
        files.clip(audio / "wavs" / f"{split}.wav")
        wav, image = f"wavs/{split}.wav", f"a/{split}.jpg"
        row = {"uttid": split, "speaker": "s", "asr_text": "a place", "wav": wav, "image": image}
        content = {"image_base_path": "/elsewhere/", "audio_base_path": "/elsewhere/", "data": [row]}
        files.text(audio / "metadata" / f"{split}.json", json.dumps(content))


def load(path: str) -> ModuleType:
    """A module of the tests by its path."""
    spec = importlib.util.spec_from_file_location(Path(path).stem, TESTS / path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
