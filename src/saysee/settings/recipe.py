"""Every setting, once: typed, documented, with its default.

A recipe is a YAML file of these settings; a file, a dotted flag and the documentation read the same dataclasses.
Nothing here imports torch, so that ``saysee train --help`` answers at once.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, is_dataclass
from pathlib import Path
from typing import Any, Literal, Optional, Union

from saysee.errors import ConfigError
from saysee.files import write_text

# jsonargparse reads these annotations at run time on Python 3.10 too, hence Optional and Union.
Layers = Union[int, Literal["all"]]  # noqa: UP007


@dataclass
class DataSettings:
    """What to train on."""

    manifest: str = ""
    """The manifest (.parquet or .jsonl) with the training and the validation split."""
    train_split: str = "train"
    """Name of the split to train on."""
    val_split: str = "val"
    """Name of the split that chooses the best model."""
    batch_size: int = 256
    """Pairs in a batch, over all processes together: each pair's negatives are the other pairs of its batch."""
    chunk_size: Optional[int] = None  # noqa: UP045
    """The most pairs that a process encodes at a time; null encodes its whole share of the batch. Less takes less
    memory and more time (each pair is encoded twice), and keeps every negative of the contrastive loss; denoising then
    works on the pairs of a chunk."""
    bucket_batches: int = 50
    """Clips are sorted by length within chunks of this many batches: more gives less padding, less shuffling."""
    crop_seconds: Optional[float] = 6.4  # noqa: UP045
    """Longer training clips are cropped at random to this many seconds; null keeps them whole. Training only."""
    workers: int = 1
    """Processes that decode."""
    cache_images_mb: int = 512
    """Memory, in MiB per worker, for pictures already prepared (each is met once a caption); 0 turns it off."""
    on_bad_file: Literal["stop", "skip"] = "stop"
    """An unreadable file stops training with its name, or is skipped, counted and listed at the end of the epoch."""


@dataclass
class ModelSettings:
    """The two encoders and the speech head."""

    speech: Union[str, dict[str, Any]] = "facebook/hubert-base-ls960"  # noqa: UP007
    """Hub name or folder of a HuBERT, or the values of a HubertConfig for one with random weights."""
    image: Union[str, dict[str, Any]] = "openai/clip-vit-base-patch32"  # noqa: UP007
    """Hub name or folder of a CLIP, or the values of a CLIPVisionConfig for one with random weights."""
    speech_trainable: Layers = 0
    """How many of HuBERT's last layers are trained, or "all" (the convolutions too)."""
    image_trainable: Layers = 0
    """How many of the vision transformer's last layers are trained (with its projection), or "all"."""
    text: bool = True
    """Keep CLIP's text encoder, so that text can query; it is never trained here."""
    speech_layers: Optional[list[int]] = None  # noqa: UP045
    """Which of HuBERT's hidden states are mixed: 0 is the input of its first layer, then one a layer; negative numbers
    count from the last, -1. null takes all. Fewer make kept features smaller."""
    head_layers: int = 1
    """Transformer layers of the speech head."""
    head_heads: int = 8
    """Attention heads of the speech head."""
    head_feedforward: Optional[int] = None  # noqa: UP045
    """Feed-forward width of the speech head; null is four times HuBERT's width."""
    head_dropout: float = 0.1
    """Dropout of the speech head."""
    normalize_hidden_states: Optional[bool] = None  # noqa: UP045
    """Layer-normalise each of HuBERT's hidden states before they are mixed; null: yes for the large kind, no for
    base."""


@dataclass
class FeatureSettings:
    """What frozen encoders give, computed once and kept on disk."""

    keep: Literal["auto", "off"] = "auto"
    """auto keeps features when both encoders are frozen and no clip is cropped; off recomputes them at each step."""
    folder: str = ""
    """Where they are kept, for all runs together; empty is the folder "features" beside the manifest."""
    limit_gb: float = 50.0
    """The most that the folder may come to hold, in GB (10 to the 9th bytes); more is refused before it is computed."""


@dataclass
class FusionSettings:
    """The multimodal fusion encoder: it exists in training only, and only when a task asks for it."""

    width: int = 256
    """Width of its tokens."""
    layers: int = 2
    """Cross-attention layers."""
    heads: int = 8
    """Attention heads."""
    feedforward: Optional[int] = None  # noqa: UP045
    """Feed-forward width; null is four times the width."""
    dropout: float = 0.1
    """Dropout."""


@dataclass
class ContrastiveSettings:
    """Speech-image contrastive learning on the global vectors."""

    weight: float = 1.0
    """Weight of the loss; 0 turns the task off."""
    temperature: float = 0.07
    """Temperature of the softmax at the start."""
    learn_temperature: bool = False
    """Learn the temperature (SpeechCLIP large does, base does not)."""


@dataclass
class DenoisingSettings:
    """Cross-modal denoising (CMD). The defaults are the "paper" preset."""

    weight: float = 1.0
    """Weight of the loss; 0 turns the task off, and then it costs nothing."""
    start_step: int = 0
    """Step before which the weight is 0."""
    warmup_steps: int = 0
    """Steps over which the weight rises from 0 after start_step."""
    noise: Literal["image", "speech", "both"] = "image"
    """Whose features are made noisy."""
    share: float = 0.5
    """Share of the noisy side's tokens that are replaced, 0 to 1."""
    source: Literal["same_position", "any_position", "alike", "zeros", "gaussian"] = "any_position"
    """What replaces a token: another image's token at the same place or at any place, the token at the same place of
    that image of the batch whose vector is the most alike, zeros, or Gaussian noise."""
    query: Literal["speech", "image", "noisy"] = "speech"
    """Whose tokens are the queries of the fusion encoder ("noisy": those of the noisy side); the others are keys and
    values."""
    front: Literal["blank", "other"] = "blank"
    """What stands in front of the queries where their own side's vector would give the answer away: a learned blank, or
    the global vector of the side that is looked at, which then must hold what the noisy side lacks."""
    target: Literal["global", "replaced", "all"] = "global"
    """What is rebuilt: the clean global vector, the clean token at each replaced place, or every token. The last two
    need the noisy side as the query."""
    loss: Literal["contrastive", "cosine", "smooth_l1"] = "contrastive"
    """How a rebuilt feature is compared with the clean one."""
    temperature: float = 0.07
    """Temperature of the contrastive loss."""
    stop_gradient: bool = True
    """Keep the target out of the gradient."""
    max_tokens: int = 2048
    """With contrastive loss on tokens, the most tokens of a batch that are compared with each other, drawn at
    random."""


@dataclass
class OptimizerSettings:
    """AdamW, its groups and its schedule."""

    lr: float = 1e-4
    """Peak learning rate of the head, the fusion encoder and the tasks."""
    encoder_lr: float = 1e-5
    """Peak learning rate of those parts of the encoders that are trained."""
    weight_decay: float = 1e-6
    """Weight decay of matrices (never of biases, norms and scalars)."""
    betas: list[float] = field(default_factory=lambda: [0.9, 0.999])
    """Adam's two decay rates."""
    warmup_steps: int = 5000
    """Steps over which the learning rate rises from 0."""
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    """How the learning rate falls to 0 after the warm-up, at the last step."""
    clip_norm: float = 4.0
    """The gradient's norm is clipped to this."""
    accumulate: int = 1
    """Batches whose gradients are averaged for one step. It adds no negatives: a larger data.batch_size with
    data.chunk_size does."""


@dataclass
class TrainingSettings:
    """How long, how exact, how often."""

    steps: int = 50_000
    """Optimiser steps."""
    seed: int = 0
    """Seed of the weights, the order of the data, the noise and the dropout."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Arithmetic of the networks: auto is bf16 where the chip has it, else fp32. Similarities and losses are always
    fp32."""
    eval_every: int = 1000
    """Steps between evaluations on the validation split."""
    best_by: Literal["recall", "step"] = "recall"
    """Which evaluation's model is the best, and kept: that of the highest mean R@1, or the latest. The latest is for a
    schedule that ends at 0 where the validation split is too small to tell two evaluations apart."""
    patience: int = 0
    """Stop after this many evaluations without a better mean R@1; 0 never stops early."""
    checkpoint_every: int = 1000
    """Steps between checkpoints."""
    keep_checkpoints: int = 2
    """Checkpoints that stay on disk."""
    log_every: int = 10
    """Steps between lines of the log."""
    save_fusion: bool = False
    """Keep the fusion encoder in the best model, for pictures of attention; retrieval does not need it."""
    device: Literal["auto", "cpu"] = "auto"
    """auto takes the accelerator that torch sees; cpu stays on the processor."""


@dataclass
class Recipe:
    """A whole experiment."""

    output: str = "runs/default"
    """Folder of the run."""
    data: DataSettings = field(default_factory=DataSettings)
    model: ModelSettings = field(default_factory=ModelSettings)
    features: FeatureSettings = field(default_factory=FeatureSettings)
    fusion: FusionSettings = field(default_factory=FusionSettings)
    contrastive: ContrastiveSettings = field(default_factory=ContrastiveSettings)
    denoising: DenoisingSettings = field(default_factory=DenoisingSettings)
    optimizer: OptimizerSettings = field(default_factory=OptimizerSettings)
    training: TrainingSettings = field(default_factory=TrainingSettings)


RECIPES = Path(__file__).parent / "recipes"

DENOISING_PRESETS: dict[str, dict[str, Any]] = {
    "off": {"weight": 0.0},
    # The reading that fits every sentence known of the paper: queries are the speech frames with the global token in
    # front, keys and values are the noisy patches, the fused global token must give back the clean image's vector.
    "paper": {
        "weight": 1.0,
        "noise": "image",
        "share": 0.5,
        "source": "any_position",
        "query": "speech",
        "target": "global",
        "loss": "contrastive",
        "stop_gradient": True,
    },
}
"""Named settings of cross-modal denoising: ``denoising: {preset: paper, share: 0.3}`` starts from one of them."""


def recipe_names() -> list[str]:
    """Names of the recipes that come with the package."""
    return sorted(path.stem for path in RECIPES.glob("*.yaml"))


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Reads a recipe and applies dotted overrides.

    Args:
        path: a YAML file of settings, or the name of a recipe of the package; what it leaves out keeps its default. A
        relative ``data.manifest`` is as
            seen from the working folder.
        overrides: flags such as ``["--optimizer.lr", "3e-4", "--denoising.preset=off"]``; the last word wins.

    Raises:
        ConfigError: the file cannot be read, a name is unknown, a value has the wrong type, or two do not go together.
    """
    import yaml

    file = RECIPES / f"{path}.yaml" if str(path) in recipe_names() else Path(path)
    try:
        settings = yaml.safe_load(file.read_text(encoding="utf-8")) or {}
    except OSError as error:
        raise ConfigError(
            f"recipe {path}: {error.strerror or error}; give the path of a YAML file, or one of the package's recipes: "
            f"{', '.join(recipe_names())}"
        ) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"recipe {path} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(settings, dict):
        raise ConfigError(f"recipe {path} must be a mapping of settings, such as 'data: {{manifest: ...}}'")
    return resolve_recipe(settings, overrides, where=f"recipe {path}")


def resolve_recipe(settings: Mapping[str, Any], overrides: Sequence[str] = (), where: str = "recipe") -> Recipe:
    """Turns plain settings and dotted overrides into a checked :class:`Recipe`.

    Raises:
        ConfigError: as for :func:`load_recipe`.
    """
    unknown = [name for name in settings if name not in Recipe.__dataclass_fields__]
    if unknown:
        raise ConfigError(
            f"{where}: unknown setting {unknown[0]!r}; it may have {', '.join(Recipe.__dataclass_fields__)}"
        )
    merged: dict[str, Any] = {}
    for name, value in settings.items():
        section = is_dataclass(Recipe.__dataclass_fields__[name].default_factory)
        if section and not isinstance(value, Mapping | None):
            raise ConfigError(f"{where}: {name} is {value!r}; it is a section: give settings below it")
        merged[name] = dict(value or {}) if section else value
    features = merged.get("features")
    if isinstance(features, dict) and features.get("keep") is False:
        features["keep"] = "off"  # YAML 1.1 reads a bare off as false
    if merged.get("training", {}).pop("shard", False):
        raise ConfigError(f"{where}: training.shard (FSDP) is no longer supported; remove it")
    preset, overrides = _take_preset(merged, overrides)
    if preset is not None:
        if preset not in DENOISING_PRESETS:
            raise ConfigError(f"{where}: denoising.preset: {preset!r} is none of {', '.join(DENOISING_PRESETS)}")
        merged["denoising"] = {**DENOISING_PRESETS[preset], **(merged.get("denoising") or {})}
    recipe = _parse(merged, overrides, where)
    check_recipe(recipe, where)
    return recipe


def check_recipe(recipe: Recipe, where: str = "recipe") -> None:
    """Refuses values that are out of range or do not go with each other.

    Raises:
        ConfigError: naming the setting, its value and what it may be.
    """
    for setting, value, mend in itertools.chain(_out_of_range(recipe), _at_odds(recipe)):
        raise ConfigError(f"{where}: {setting} is {value!r}; {mend}")


_AT_LEAST_ONE = (
    "training.steps",
    "training.eval_every",
    "training.checkpoint_every",
    "training.keep_checkpoints",
    "training.log_every",
    "optimizer.accumulate",
    "data.bucket_batches",
    "fusion.layers",
    "fusion.heads",
    "fusion.width",
    "model.head_layers",
    "model.head_heads",
)
_NOT_NEGATIVE = (
    "denoising.weight",
    "denoising.start_step",
    "denoising.warmup_steps",
    "contrastive.weight",
    "optimizer.lr",
    "optimizer.encoder_lr",
    "optimizer.weight_decay",
    "optimizer.warmup_steps",
    "training.patience",
    "data.workers",
    "data.cache_images_mb",
)
_ABOVE_ZERO = ("features.limit_gb", "denoising.temperature", "contrastive.temperature", "optimizer.clip_norm")
_SHARES = ("denoising.share", "fusion.dropout", "model.head_dropout")


def _out_of_range(recipe: Recipe) -> Iterator[tuple[str, Any, str]]:
    """Setting, value and mend of each value that no recipe may have."""

    def value_of(setting: str) -> Any:
        section, name = setting.split(".")
        return getattr(getattr(recipe, section), name)

    checks: tuple[tuple[tuple[str, ...], Callable[[Any], bool], str], ...] = (
        (_AT_LEAST_ONE, lambda value: value >= 1, "it must be at least 1"),
        (_NOT_NEGATIVE, lambda value: value >= 0, "it must be 0 or more"),
        (_ABOVE_ZERO, lambda value: value > 0, "it must be above 0"),
        (_SHARES, lambda value: 0 <= value <= 1, "it is a share, 0 to 1"),
    )
    for settings, fits, mend in checks:
        for setting in settings:
            if not fits(value_of(setting)):
                yield setting, value_of(setting), mend
    if recipe.data.batch_size < 2:
        yield "data.batch_size", recipe.data.batch_size, "contrastive learning needs at least 2 pairs in a batch"
    if recipe.data.chunk_size is not None and recipe.data.chunk_size < 2:
        yield "data.chunk_size", recipe.data.chunk_size, "give at least 2 pairs, or null for the whole batch at once"
    if recipe.denoising.max_tokens < 2:
        yield "denoising.max_tokens", recipe.denoising.max_tokens, "comparing tokens needs at least 2"
    if len(recipe.optimizer.betas) != 2 or not all(0 <= beta < 1 for beta in recipe.optimizer.betas):
        yield "optimizer.betas", recipe.optimizer.betas, "give two numbers from 0 to below 1"
    for setting in ("fusion.feedforward", "model.head_feedforward"):
        if value_of(setting) is not None and value_of(setting) < 1:
            yield setting, value_of(setting), "it must be at least 1, or null for four times the width"
    layers = recipe.model.speech_layers
    if layers is not None and (not layers or len(set(layers)) < len(layers)):
        yield "model.speech_layers", layers, "name each hidden state once, at least one, or give null for all"
    if not 0 <= recipe.training.seed < 2**63:
        yield "training.seed", recipe.training.seed, "it must be a number from 0 to below 2 to the 63rd"


def _at_odds(recipe: Recipe) -> Iterator[tuple[str, Any, str]]:
    """Setting, value and mend of each value that does not go with another."""
    denoising, fusion, contrastive = recipe.denoising, recipe.fusion, recipe.contrastive
    if fusion.width % fusion.heads:
        yield "fusion.width", fusion.width, f"it must be a multiple of fusion.heads ({fusion.heads})"
    if recipe.training.best_by == "step" and recipe.training.patience:
        yield "training.patience", recipe.training.patience, "it waits for a better R@1: set training.best_by to recall"
    if contrastive.weight == 0 and denoising.weight == 0:
        yield "contrastive.weight", contrastive.weight, "with denoising off too, nothing is left to train"
    if contrastive.weight == 0 and recipe.data.chunk_size is not None:
        mend = "without contrastive learning nothing compares all pairs of a batch: give a smaller data.batch_size"
        yield "data.chunk_size", recipe.data.chunk_size, mend
    if contrastive.weight == 0 and (denoising.start_step or denoising.warmup_steps):
        mend = "nothing trains until denoising starts: give it no start_step or warmup_steps"
        yield "contrastive.weight", contrastive.weight, mend
    if denoising.weight and denoising.target == "replaced" and denoising.share == 0:
        yield "denoising.share", denoising.share, "the target is the replaced tokens, so it must be above 0"
    if denoising.weight and denoising.target != "global":
        for noisy in ("image", "speech") if denoising.noise == "both" else (denoising.noise,):
            if denoising.query not in (noisy, "noisy"):
                yield (
                    "denoising.target",
                    denoising.target,
                    "rebuilding tokens needs the noisy side as the query: set denoising.query to noisy (it is "
                    f"{denoising.query}, the noise is on {denoising.noise}), or the target to global",
                )


def recipe_to_dict(recipe: Recipe) -> dict[str, Any]:
    """The recipe as plain values, ready for YAML or JSON."""
    return asdict(recipe)


def save_recipe(recipe: Recipe, path: Path) -> None:
    """Writes the resolved recipe, every setting with its value, as YAML."""
    import yaml

    write_text(path, yaml.safe_dump(recipe_to_dict(recipe), sort_keys=False, allow_unicode=True))


def recipe_help() -> str:
    """Every setting with its type, its default and its description."""
    return str(_parser().format_help())


def _parser() -> Any:
    from jsonargparse import ArgumentParser, set_parsing_settings

    set_parsing_settings(docstring_parse_attribute_docstrings=True)  # the descriptions stand under the settings
    parser = ArgumentParser(exit_on_error=False, prog="saysee train RECIPE", usage=None, description=None)
    parser.add_class_arguments(Recipe, as_group=False)
    return parser


def _parse(settings: Mapping[str, Any], overrides: Sequence[str], where: str) -> Recipe:
    from jsonargparse import ArgumentError

    parser = _parser()
    try:
        namespace = parser.parse_object(dict(settings))
        namespace = parser.parse_args(list(overrides), namespace=namespace)
        values = parser.instantiate_classes(namespace)
    except (ArgumentError, TypeError, ValueError, KeyError) as error:
        raise ConfigError(f"{where}: {' '.join(str(error).split())}") from error
    return Recipe(**vars(values))


def _take_preset(settings: dict[str, Any], overrides: Sequence[str]) -> tuple[str | None, list[str]]:
    """Removes ``denoising.preset`` from the settings and from the flags; a flag wins, and then the file's own
    denoising settings do not apply (the preset is asked for as it is)."""
    rest: list[str] = []
    flag: str | None = None
    words = iter(overrides)
    for word in words:
        if word == "--denoising.preset":
            flag = next(words, "")
        elif word.startswith("--denoising.preset="):
            flag = word.split("=", 1)[1]
        else:
            rest.append(word)
    section = settings.get("denoising")
    in_file = section.pop("preset", None) if isinstance(section, dict) else None
    if in_file is not None:
        in_file = "off" if in_file is False else str(in_file)  # YAML 1.1 reads a bare off as false
    if flag is not None:
        settings["denoising"] = {}
    return (flag if flag is not None else in_file), rest
