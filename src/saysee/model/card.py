"""The model card: ``README.md`` beside the weights, with the hub's metadata, made from the run and its scores.

``save_pretrained`` writes the card and ``training.json``, the facts about the run from which ``saysee card`` makes the
card again, with scores. A card that was edited by hand is never overwritten.
"""

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from saysee.errors import CheckpointError, ConfigError
from saysee.files import fingerprint, short_name, write_text
from saysee.model.configuration import SpeechImageConfig
from saysee.model.pretrained.weights import OWNER, read_config

CARD_FILE, TRAINING_FILE = "README.md", "training.json"
_TEMPLATE = Path(__file__).with_name("card_template.md")
_MARK = re.compile(r"\n<!-- written by SaySee, contents ([0-9a-f]{32}) -->\n$")
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
OWN = "this model"
_METRICS = [(way, f"R@{k}") for way in ("speech_to_image", "image_to_speech") for k in (1, 5, 10)]


@dataclass(frozen=True)
class Score:
    """The result of ``saysee evaluate --json`` on one corpus."""

    system: str  # "this model", or the name of another model or a cascade to compare it with
    corpus: str
    split: str
    overall: Mapping[str, Any]  # the metrics, as ``RetrievalMetrics.to_dict`` gives them

    def cells(self) -> list[str]:
        """The row of the card's table."""
        overall, intervals = self.overall, self.overall["interval"] or {}

        def cell(value: float | None, interval: Sequence[float] | None) -> str:
            if value is None:
                return "–"
            return f"{value:.1f}" + (f" ({interval[0]:.1f} to {interval[1]:.1f})" if interval else "")

        values = [cell((overall[way] or {}).get(name), (intervals.get(way) or {}).get(name)) for way, name in _METRICS]
        mean = cell(overall["mean_R@1"], intervals.get("mean_R@1"))
        counts = [f"{overall[name]:,}" for name in ("clips", "images")]
        return [f"{self.corpus}, {self.split}", self.system, *counts, *values, mean]


def read_scores(path: str | os.PathLike[str], folder: str | os.PathLike[str], name: str | None = None) -> list[Score]:
    """Reads the scores that ``saysee evaluate --json`` printed, of models and cascades on one corpus or more.

    They are for the card of the model in ``folder``, by ``name`` on the hub, if it was scored by it. Scores of a folder
    that is not on this machine are taken for its own if the run or folder has its name. Raises ConfigError if the file
    cannot be read, or has other contents.
    """
    fix = "give a file that 'saysee evaluate … --json' printed"
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        scores = []
        for each in content.get("models", [content]):
            if cascade := each.get("cascade"):
                system = f"cascade: {cascade.get('asr', 'manifest texts')}, {cascade['clip']}"
            else:
                system = OWN if each["model"] == name else _system(each["model"], Path(folder))
            scores += [
                Score(
                    f"{system}, first {corpus['rerank']['first']} re-ranked" if "rerank" in corpus else system,
                    short_name(corpus["manifest"]),
                    corpus["split"],
                    corpus["overall"],
                )
                for corpus in each.get("corpora", [each])
            ]
        for score in scores:
            score.cells()  # raises if a metric is missing
        return scores
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror or error}); {fix}") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ConfigError(f"{path}: has no scores of 'saysee evaluate'; {fix}") from None


def read_training(file: str | os.PathLike[str] | None) -> dict[str, Any] | None:
    """The facts about the run, or the conversion, beside the weights, if any; CheckpointError if they are damaged."""
    if file is None or not Path(file).is_file():
        return None
    try:
        content: dict[str, Any] = json.loads(Path(file).read_text(encoding="utf-8"))
        parts = ("converted",) if "converted" in content else ("data", "recipe", "best", "run")
        return {part: content[part] for part in parts}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{file}: damaged ({error!r:.80}); copy the model again, or remove the file") from None


def save_card(folder: str | os.PathLike[str], config: SpeechImageConfig, training: Mapping[str, Any] | None) -> None:
    """Writes the card of a saved model, unless it was edited by hand, and the facts about its run."""
    folder = Path(folder)
    if training is None:
        (folder / TRAINING_FILE).unlink(missing_ok=True)  # of a model that was here before
    else:
        write_text(folder / TRAINING_FILE, json.dumps(training, indent=1) + "\n")
    if not _edited(folder / CARD_FILE):
        write_text(folder / CARD_FILE, card_text(short_name(folder), config, training))


def write_card(
    folder: str | os.PathLike[str],
    scores: Sequence[Score] = (),
    *,
    to: str | os.PathLike[str] | None = None,
    name: str | None = None,
    license: str | None = None,
) -> Path:
    """Writes the card of a saved model again, with scores of it and of cascades to compare it with.

    By default the file is ``README.md`` in the folder, and the name that of the model's run or folder; the license is
    of the weights, as the hub names it. Raises CheckpointError if the folder holds no SaySee model, ConfigError if the
    file was edited by hand, or SaySee did not write it.
    """
    folder = Path(folder)
    fix = "give a folder that 'saysee train' wrote"
    config = SpeechImageConfig.of(read_config(folder, (SpeechImageConfig.model_type,), "SaySee model", fix))
    path = folder / CARD_FILE if to is None else Path(to)
    if _edited(path):
        raise ConfigError(f"{path}: was edited, or SaySee did not write it; write to another file with --to FILE")
    training = read_training(folder / TRAINING_FILE)
    write_text(path, card_text(name or short_name(folder), config, training, scores, license))
    return path


def card_text(
    name: str,
    config: SpeechImageConfig,
    training: Mapping[str, Any] | None,
    scores: Sequence[Score] = (),
    license: str | None = None,
) -> str:
    """The whole card: metadata, text, and a mark by which a later edit is detected."""
    from huggingface_hub import EvalResult, ModelCard, ModelCardData

    results = [
        EvalResult(
            task_type="speech-image-retrieval",
            dataset_type=re.sub(r"[^\w.-]+", "-", score.corpus),
            dataset_name=score.corpus,
            dataset_split=score.split,
            metric_type=f"recall_at_{metric.removeprefix('R@')}",
            metric_name=f"{way.replace('_', ' ')} {metric}",
            metric_value=round(score.overall[way][metric], 2),
        )
        for score in scores
        if score.system == OWN
        for way, metric in _METRICS
        if score.overall[way] is not None
    ]
    converted = (training or {}).get("converted")
    training = None if converted else training
    sides = converted or (training["recipe"]["model"] if training else {})
    encoders = [str(sides[side]) for side in ("speech", "image") if sides.get(side)]
    data = ModelCardData(
        model_name=name if results else None,
        library_name="saysee",
        license=license,
        language=(training["data"]["languages"] if training else None) or None,
        base_model=[encoder for encoder in encoders if _is_on_hub(encoder)] or None,
        tags=["speech-image-retrieval", "visually-grounded-speech", "hubert", "clip"],
        eval_results=results or None,
    )
    card = ModelCard.from_template(
        data,
        template_path=str(_TEMPLATE),
        name=name,
        config=config,
        converted=converted,
        training=training,
        recipe=training and yaml.safe_dump(training["recipe"], sort_keys=False, allow_unicode=True),
        heads=[f"{way.replace('_', ' ')} {metric}" for way, metric in _METRICS],
        scores=scores,
        packaged=any(encoder.startswith(OWNER) for encoder in encoders),
    )
    text = f"{card}\n"
    return f"{text}\n<!-- written by SaySee, contents {fingerprint(text.encode())} -->\n"


def _edited(path: Path) -> bool:
    """Whether the file exists and SaySee did not write it as it is."""
    if not path.is_file():
        return False
    text = path.read_text(encoding="utf-8", errors="replace")
    mark = _MARK.search(text)
    return mark is None or fingerprint(text[: mark.start()].encode()) != mark[1]


def _system(scored: str, folder: Path) -> str:
    """:data:`OWN` if what was scored is the model of the folder, else the name of the other model."""
    place = Path(scored)
    if place.exists() and folder.exists():
        own = place.samefile(folder)
    else:
        own = short_name(place) == short_name(folder) and not _is_on_hub(scored)
    return OWN if own else scored if _is_on_hub(scored) else short_name(place)


def _is_on_hub(encoder: str) -> bool:
    """Whether this names an encoder on the hub: no folder, and none of the package."""
    return bool(_HUB_NAME.fullmatch(encoder)) and not encoder.startswith(OWNER) and not Path(encoder).exists()
