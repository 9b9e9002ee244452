"""The model card: ``README.md`` beside the weights, with the hub's header, from what the run and its scores say.

``save_pretrained`` writes one, and ``training.json``, what the run tells of itself, by which a card can be made anew:
with scores, by ``saysee card``. A card that was edited by hand is not written over.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from saysee.errors import CheckpointError, ConfigError
from saysee.files import fingerprint, write_text
from saysee.model.configuration import SpeechImageConfig
from saysee.model.packaged import OWNER

CARD_FILE, TRAINING_FILE = "README.md", "training.json"
_MARK = re.compile(r"\n<!-- written by SaySee, contents ([0-9a-f]{32}) -->\n$")
_WAYS = (("speech_to_image", "speech to image"), ("image_to_speech", "image to speech"))
_CUTOFFS = (1, 5, 10)
_HUB_NAME = re.compile(r"^[\w.-]+/[\w.-]+$")


@dataclass(frozen=True)
class Score:
    """What ``saysee evaluate --json`` says of one corpus.

    Attributes:
        system: "this model", or the parts of a cascade that it is compared with.
        corpus: name of the corpus.
        split: its split.
        overall: the measures, as ``RetrievalMeasures.to_dict`` gives them.
    """

    system: str
    corpus: str
    split: str
    overall: Mapping[str, Any]

    @property
    def is_own(self) -> bool:
        """Whether it is the model's own."""
        return self.system == "this model"


def read_scores(path: str | os.PathLike[str]) -> list[Score]:
    """The scores in a file that ``saysee evaluate --json`` printed: of a model or a cascade, on one corpus or more.

    Raises:
        ConfigError: it cannot be read, or is something else.
    """
    mend = "give a file that 'saysee evaluate … --json' printed"
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        cascade = content.get("cascade")
        system = "this model"
        if cascade is not None:
            heard = cascade["asr"] if "asr" in cascade else f"{cascade['transcripts']}'s own texts"
            system = f"cascade: {heard}, {cascade['clip']}"
        scores = [
            Score(system, _corpus_name(corpus["manifest"]), corpus["split"], corpus["overall"])
            for corpus in content.get("corpora", [content])
        ]
        for score in scores:
            _cells(score)
        return scores
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror or error}); {mend}") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ConfigError(f"{path}: no scores of 'saysee evaluate'; {mend}") from None


def read_training(file: str | os.PathLike[str] | None) -> dict[str, Any] | None:
    """What the run tells of itself, from its file beside the weights; None where there is none.

    Raises:
        CheckpointError: it is damaged.
    """
    if file is None or not Path(file).is_file():
        return None
    try:
        content: dict[str, Any] = json.loads(Path(file).read_text(encoding="utf-8"))
        return {part: content[part] for part in ("data", "recipe", "best", "run")}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{file}: damaged ({error!r:.80}); copy the model again, or remove the file") from None


def save_card(folder: str | os.PathLike[str], config: SpeechImageConfig, training: Mapping[str, Any] | None) -> None:
    """Writes a saved model's card and what the run tells of itself; a card that was edited by hand stays."""
    place = Path(folder)
    if training is None:
        (place / TRAINING_FILE).unlink(missing_ok=True)  # of another model that lay here
    else:
        write_text(place / TRAINING_FILE, json.dumps(training, indent=1) + "\n")
    if not _edited(place / CARD_FILE):
        write_text(place / CARD_FILE, card_text(_name_of(place), config, training))


def write_card(
    folder: str | os.PathLike[str],
    scores: Sequence[Score] = (),
    *,
    to: str | os.PathLike[str] | None = None,
    name: str | None = None,
    license: str | None = None,
) -> Path:
    """Makes the card of a model in a folder anew, with scores.

    Args:
        folder: of the model.
        scores: of it, and of what it is compared with.
        to: the file; None takes ``README.md`` in the folder.
        name: of the model; None takes the folder's, or that of its run.
        license: of the weights, as the hub names it; None leaves it out.

    Raises:
        CheckpointError: the folder holds no SaySee model.
        ConfigError: the file holds a card that was edited by hand, or is no card of ours.
    """
    place = Path(folder)
    if not (place / "config.json").is_file():
        raise CheckpointError(f"no SaySee model at {place}: no config.json; give a folder that 'saysee train' wrote")
    config = SpeechImageConfig.from_pretrained(place)
    if config.model_type != SpeechImageConfig.model_type or not hasattr(config, "speech_config"):
        raise CheckpointError(f"{place} holds a model of another kind; give a folder that 'saysee train' wrote")
    path = place / CARD_FILE if to is None else Path(to)
    if _edited(path):
        raise ConfigError(f"{path}: not written over, as it was edited or is not ours; write elsewhere by --to FILE")
    write_text(path, card_text(name or _name_of(place), config, read_training(place / TRAINING_FILE), scores, license))
    return path


def card_text(
    name: str,
    config: SpeechImageConfig,
    training: Mapping[str, Any] | None,
    scores: Sequence[Score] = (),
    license: str | None = None,
) -> str:
    """The whole card: header, text, and a mark by which a later edit is noticed."""
    parts = [
        f"# {name}",
        _opening(config),
        _use(name, config),
        _training(training),
        _scores(training, scores),
        _limits(training),
        _again(training),
    ]
    text = f"---\n{_header(name, training, scores, license)}---\n\n" + "\n\n".join(filter(None, parts)) + "\n"
    return f"{text}\n<!-- written by SaySee, contents {fingerprint(text.encode())} -->\n"


def _edited(path: Path) -> bool:
    """Whether there is a file that is no card of ours, or was changed since."""
    if not path.is_file():
        return False
    text = path.read_text(encoding="utf-8", errors="replace")
    mark = _MARK.search(text)
    return mark is None or fingerprint(text[: mark.start()].encode()) != mark[1]


def _name_of(folder: Path) -> str:
    """The run's name for its ``best`` folder, also while that is being written; else the folder's own."""
    path = folder.absolute()
    return path.parent.name if re.fullmatch(r"(?:\.\w+-)?best", path.name) else path.name


def _corpus_name(manifest: str) -> str:
    path = Path(manifest)
    return path.absolute().parent.name if path.stem == "manifest" else path.stem


# --- the header -------------------------------------------------------------------------------------------------------


def _header(name: str, training: Mapping[str, Any] | None, scores: Sequence[Score], license: str | None) -> str:
    from huggingface_hub import EvalResult, ModelCardData

    results = [
        EvalResult(
            task_type="speech-image-retrieval",
            dataset_type=re.sub(r"[^\w.-]+", "-", score.corpus),
            dataset_name=score.corpus,
            dataset_split=score.split,
            metric_type=f"recall_at_{k}",
            metric_name=f"{words} R@{k}",
            metric_value=round(score.overall[way][f"R@{k}"], 2),
        )
        for score in scores
        if score.is_own
        for way, words in _WAYS
        if score.overall[way] is not None
        for k in _CUTOFFS
    ]
    data = ModelCardData(
        model_name=name if results else None,
        library_name="saysee",
        license=license,
        language=((training or {}).get("data") or {}).get("languages") or None,
        base_model=_base_models(training) or None,
        tags=["speech-image-retrieval", "visually-grounded-speech", "hubert", "clip"],
        eval_results=results or None,
    )
    return str(data.to_yaml()) + "\n"


def _base_models(training: Mapping[str, Any] | None) -> list[str]:
    """The encoders that the hub knows: neither folders nor those of the package."""
    model = ((training or {}).get("recipe") or {}).get("model") or {}
    names = [model.get("speech"), model.get("image")]
    return [
        name
        for name in names
        if isinstance(name, str) and _HUB_NAME.match(name) and not name.startswith(OWNER) and not Path(name).exists()
    ]


# --- the text ---------------------------------------------------------------------------------------------------------


def _opening(config: SpeechImageConfig) -> str:
    speech, vision = config.speech_config, config.vision_config
    return (
        f"A speech-image retrieval model of SaySee: a HuBERT of {speech.num_hidden_layers} layers for speech and a "
        f"CLIP vision transformer of {vision.num_hidden_layers} layers for pictures give unit vectors of one space of "
        f"{config.projection_dim} dimensions. Say what you want to see and find the picture, or the other way round: "
        "the score is their cosine." + (" CLIP's text encoder is part of it." if config.has_text else "")
    )


def _use(name: str, config: SpeechImageConfig) -> str:
    text = '\ntext = model.encode_text(["a dog on a beach"])' if config.has_text else ""
    return f"""## Use

```python
from saysee import SpeechImageModel

model = SpeechImageModel.from_pretrained("{name}")  # the folder or hub name where this card lies
speech = model.encode_speech(["query.wav"])
images = model.encode_images(["one.jpg", "two.jpg"]){text}
print(model.similarity(speech, images))
```"""


def _training(training: Mapping[str, Any] | None) -> str:
    if training is None:
        return "## Training\n\nNothing is recorded of how it was trained, if it was: its speech head may be random."
    data, best = training["data"], training["best"]
    rows = [f"| {split} | {part['clips']:,} | {part['images']:,} |" for split, part in data["splits"].items()]
    about = [f"languages: {', '.join(data['languages'])}"] if data["languages"] else []
    about += [f"speakers: {data['speakers']:,}"] if data["speakers"] else []
    recipe = yaml.safe_dump(training["recipe"], sort_keys=False, allow_unicode=True)
    return "\n".join(
        [
            "## Training",
            "",
            f"Data: {'; '.join([data['name'], *about])}.",
            "",
            "| split | clips | pictures |",
            "|---|---|---|",
            *rows,
            "",
            f"The weights are those of step {best['step']:,} of {training['recipe']['training']['steps']:,}, the best "
            f"by mean R@1 on {best['split']}. All settings:",
            "",
            f"<details>\n<summary>recipe</summary>\n\n```yaml\n{recipe}```\n\n</details>",
        ]
    )


def _scores(training: Mapping[str, Any] | None, scores: Sequence[Score]) -> str:
    lines = ["## Scores", ""]
    if scores:
        heads = [f"{words} R@{k}" for _, words in _WAYS for k in _CUTOFFS]
        lines += [f"| corpus | system | clips | pictures | {' | '.join(heads)} | mean R@1 |", "|---" * 11 + "|"]
        lines += [f"| {' | '.join(_cells(score))} |" for score in scores]
        lines += ["", "In percent; in brackets 95 % bootstrap intervals over pictures.", ""]
    if training is not None:
        best = training["best"]
        lines += [
            f"Mean R@1 on {best['split']}, which chose the weights: {best['mean_R@1']:.1f} %, without an interval."
            + (
                "" if scores else " No other score has been put into this card; `saysee card MODEL --scores FILE` does."
            ),
            "",
        ]
    elif not scores:
        return ""
    lines.append(
        "Protocol: every clip is a query, whole; the gallery holds each picture of the split once. Image to speech is "
        "right when any clip of the picture is among the first k. Ties count against the system."
    )
    return "\n".join(lines)


def _cells(score: Score) -> list[str]:
    overall, intervals = score.overall, score.overall["interval"] or {}

    def cell(value: float | None, interval: Sequence[float] | None) -> str:
        if value is None:
            return "–"
        return f"{value:.1f}" + (f" ({interval[0]:.1f} to {interval[1]:.1f})" if interval else "")

    values = [
        cell((overall[way] or {}).get(f"R@{k}"), (intervals.get(way) or {}).get(f"R@{k}"))
        for way, _ in _WAYS
        for k in _CUTOFFS
    ]
    mean = cell(overall["mean_R@1"], intervals.get("mean_R@1"))
    corpus = f"{score.corpus}, {score.split}"
    return [corpus, score.system, f"{overall['clips']:,}", f"{overall['images']:,}", *values, mean]


def _limits(training: Mapping[str, Any] | None) -> str:
    model = ((training or {}).get("recipe") or {}).get("model") or {}
    languages = ((training or {}).get("data") or {}).get("languages") or []
    items = [
        "Not for naming, tracking or judging people by their voice or picture.",
        "Not a transcript: it finds pictures that go with speech and does not say which words were spoken.",
        "The score orders pictures for one query. It is no probability, and one threshold does not fit all queries: a "
        "gallery without the right picture gives its least wrong one.",
        "Speech and pictures unlike those it was trained on are answered worse, and nothing marks such an answer"
        + (f". It was trained on speech in: {', '.join(languages)}." if languages else "."),
        "Leanings of its encoders and its corpus, in whom and what they show, come along; so do their licences.",
    ]
    if any(str(model.get(side)).startswith(OWNER) for side in ("speech", "image")):
        items.insert(
            0, "Not for photographs or people's speech: its encoders know drawn scenes and synthesised English."
        )
    return "## What it is not for\n\n" + "\n".join(f"- {item}" for item in items)


def _again(training: Mapping[str, Any] | None) -> str:
    if training is None:
        return ""
    run = training["run"]
    versions = ", ".join(f"{name} {version}" for name, version in run["versions"].items())
    commit = f", commit {run['git_commit']}" if run.get("git_commit") else ""
    return (
        f"## To have it again\n\nSeed {run['seed']}, {run['arithmetic']} on {run['device']}; Python {run['python']}, "
        f"{versions}{commit}."
    )
