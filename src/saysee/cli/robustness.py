"""``saysee robustness``: how retrieval degrades in noise, rooms, codecs and other conditions."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

from saysee.cli.evaluate import TRANSCRIPTS, cascade_of, load_encoder, read_corpus, sorted_places
from saysee.cli.printing import Result
from saysee.errors import ConfigError


def robustness(
    models_and_manifest: Sequence[str],
    *,
    to: Path,
    conditions: str | None = None,
    split: str = "test",
    clips: int | None = None,
    seed: int = 0,
    by: Sequence[str] = (),
    noises: Path | None = None,
    rooms: Path | None = None,
    features: Path | None = None,
    language: str | None = None,
    device: Literal["auto", "cpu", "cuda"] = "auto",
) -> Result:
    """Score models on changed speech and images: noise, rooms, codecs, speed, lost parts, blur and more.

    MODEL is the folder or hub name of a SaySee model, or a cascade (as for saysee evaluate), such as
    cascade:tiny.en+runs/a/best for the transcribed speech of the same model. All models hear the same changed clips,
    and what is finished is kept: the same command resumes.

    Args:
        models_and_manifest: MODEL [MODEL ...] MANIFEST
        to: folder of the table, the picture and the results
        conditions: names, or families of them, with strengths of your own, such as noise=20,0,room,telephone (default:
            all); an unknown name lists them
        split: the split to score
        clips: number of clips that are queries, drawn by the seed (default: all); the image gallery stays whole
        seed: seed of the noise, the rooms and all other draws
        by: also score each value of this column separately (repeatable)
        noises: folder of noises of your own, such as MUSAN: a condition for each subfolder
        rooms: folder of room responses of your own, such as simulated_rirs of RIRS_NOISES
        features: folder of cached features of the clean files, such as scenes/features
        language: the spoken language, such as en, for the Whisper of a cascade
        device: device to compute on
    """
    models, manifests = sorted_places(models_and_manifest)
    if len(manifests) > 1:
        raise ConfigError(f"robustness scores one corpus, not {', '.join(manifests)}; run it once for each")
    cascades = {model: cascade_of(model) for model in models}
    if any(parts and parts.recognizer == TRANSCRIPTS for parts in cascades.values()):
        raise ConfigError(
            f"a cascade with {TRANSCRIPTS!r} hears no speech; give a recognizer, such as cascade:tiny.en+…"
        )
    corpus = read_corpus(manifests[0], split, by)
    from saysee.evaluation.comparison import short_names
    from saysee.model.loading import kind_of
    from saysee.studies.robustness.study import RobustnessSettings, run_robustness

    for model, parts in cascades.items():
        kind_of(parts.clip if parts else model)  # raises before the long work
    names = zip(models, short_names(models), strict=True)
    loaders = {name: partial(_load, model, cascades[model], device, features, language) for model, name in names}
    settings = RobustnessSettings(conditions or "", split, clips, seed, by, noises, rooms)
    result = run_robustness(loaders, corpus, to, settings)
    tables = [result.summary(), *filter(None, [result.groups()])]
    return Result(result.to_dict(), [*tables, f"table: {to / 'table.md'}", f"picture: {to / 'robustness.png'}"])


def _load(model: str, cascade: Any, device: str, features: Path | None, language: str | None) -> Any:
    from saysee.encoding.encoder import Encoder

    encoder, heard_by = load_encoder(model, cascade, device, features, language)
    if heard_by is not None:
        return Encoder(encoder.model, cache=encoder.cache, recognizer=heard_by)
    if encoder.warning:
        raise ConfigError(f"{encoder.warning}; train the model first")
    return encoder
