"""Every setting of a training: its type, default, range and description, once.

A recipe is a YAML file of these settings. Files, flags and documentation are made from these dataclasses; see
:mod:`saysee.settings.reading`. Nothing here imports torch, so that ``saysee train --help`` answers at once.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any, Literal, Optional, Union

from saysee.errors import ConfigError

# jsonargparse reads these annotations at run time on Python 3.10 too, hence Optional and Union.
Layers = Union[int, Literal["all"]]  # noqa: UP007


_WITHIN = {"at_least": operator.ge, "above": operator.gt, "at_most": operator.le, "below": operator.lt}


def setting(default: Any, **limits: float) -> Any:
    """A field whose number, or each number of its list, must be within limits of ``_WITHIN``; None passes."""
    if isinstance(default, list):
        return field(default_factory=default.copy, metadata={"limits": limits})
    return field(default=default, metadata={"limits": limits})


def derived(default: Any) -> Any:
    """A field that is set by the program and is no setting."""
    return field(default=default, metadata={"derived": True})


@dataclass
class DataSettings:
    """What to train on."""

    manifest: str = ""
    """The manifest (.parquet or .jsonl) with the training and validation splits."""
    train_split: str = "train"
    """Name of the split to train on."""
    val_split: str = "val"
    """Name of the split that chooses the best model."""
    language: str = ""
    """Train and validate on the clips of this language alone, as the manifest's column has it; empty takes all."""
    batch_size: int = setting(256, at_least=2)
    """Pairs in a batch, over all processes together: each pair's negatives are the other pairs of its batch."""
    chunk_size: Optional[int] = setting(None, at_least=2)  # noqa: UP045
    """The most pairs that a process encodes at a time; null encodes its whole share of the batch. Smaller chunks take
    less memory and more time (each pair is encoded twice), and keep every negative of the contrastive loss; denoising
    and matching then work on the pairs of a chunk."""
    bucket_batches: int = setting(1, at_least=1)
    """Clips are sorted by length within groups of this many batches: more give less padding, but pairs of like length
    meet in a batch; 1 shuffles all pairs."""
    crop_seconds: Optional[float] = setting(6.4, at_least=0.1)  # noqa: UP045
    """Longer training clips are cropped at random to this many seconds; null keeps them whole. Training only."""
    augment: bool = False
    """Training clips sound as if other people spoke them elsewhere: other formants and timbre, rooms, noise, telephone.
    Each is changed anew whenever it is read, or once where its features are cached."""
    workers: int = setting(1, at_least=0)
    """Number of processes that decode files."""
    cache_images_mb: int = setting(512, at_least=0)
    """Memory, in MiB per worker, for prepared images (each is read once per caption); 0 turns it off."""
    on_bad_file: Literal["stop", "skip"] = "stop"
    """stop ends training at an unreadable file with an error (one of the validation split before the first step); skip
    leaves such files out and lists them."""


@dataclass
class ModelSettings:
    """The two encoders."""

    speech: Union[str, dict[str, Any]] = "facebook/hubert-base-ls960"  # noqa: UP007
    """Hub name or folder of a HuBERT, or the values of a HubertConfig for one with random weights."""
    image: Union[str, dict[str, Any]] = "openai/clip-vit-base-patch32"  # noqa: UP007
    """Hub name or folder of a CLIP, or the values of a CLIPVisionConfig for one with random weights."""
    speech_trainable: Layers = 0
    """How many of HuBERT's last layers are trained, or "all" (the convolutions too)."""
    image_trainable: Layers = 0
    """How many of the vision transformer's last layers are trained (with its projection), or "all"."""
    frozen_dropout: bool = True
    """Keep HuBERT's dropout on in training while all of it is frozen, as SpeechCLIP does. HuBERT base has some, HuBERT
    large has none. Features that pass through dropout cannot be cached."""
    text: bool = True
    """Keep CLIP's text encoder, for text queries; it is never trained here."""


@dataclass(frozen=True)
class HeadConfig:
    """The speech head, which turns HuBERT's hidden states into vectors of the joint space."""

    layers: int = setting(1, at_least=1)
    """Transformer layers."""
    heads: int = setting(8, at_least=1)
    """Attention heads; must divide HuBERT's width."""
    feedforward: Optional[int] = setting(None, at_least=1)  # noqa: UP045
    """Feed-forward width; null is four times HuBERT's width."""
    dropout: float = setting(0.1, at_least=0, at_most=1)
    """Dropout of the transformer layers."""
    normalize_hidden_states: Optional[bool] = None  # noqa: UP045
    """Layer-normalize each hidden state before they are mixed. SpeechCLIP does so for HuBERT large (arXiv 2210.00705,
    authors' code), not for base; null follows HuBERT's kind."""
    speech_layers: Optional[list[int]] = None  # noqa: UP045
    """Which of HuBERT's hidden states are mixed: 0 is the input of its first layer, then one a layer; negative numbers
    count from the last, -1. null takes all. Fewer make cached features smaller."""
    pooling: Literal["cls", "mean"] = "cls"
    """What becomes a clip's vector: the CLS token that stands before the frames, or the mean of the frames."""
    stride: int = setting(1, at_least=1)
    """How many frames are averaged into one before the transformer layers, which then take less time."""
    as_published: bool = derived(True)
    """The head ends in a LayerNorm, and the last hidden state of HuBERT large is taken before HuBERT's final norm.
    Models of releases before this field have no such LayerNorm, and take that state behind the final norm."""


@dataclass
class FeatureSettings:
    """Features of frozen encoders, computed once and cached on disk."""

    keep: Literal["auto", "off"] = "auto"
    """auto caches features when both encoders are frozen and no clip is cropped; off recomputes them at each step."""
    folder: str = ""
    """Folder of the cached features of all runs; empty is the folder "features" beside the manifest."""
    limit_gb: float = setting(50.0, above=0)
    """Maximum size of the folder, in GB (10 to the 9th bytes); what would exceed it is not computed."""


@dataclass(frozen=True)
class FusionConfig:
    """The multimodal fusion encoder. It exists only if a task uses it, and after training if save_fusion is on."""

    width: int = setting(256, at_least=1)
    """Width W of its tokens; a multiple of heads."""
    layers: int = setting(2, at_least=1)
    """Cross-attention layers."""
    heads: int = setting(8, at_least=1)
    """Attention heads."""
    feedforward: Optional[int] = setting(None, at_least=1)  # noqa: UP045
    """Feed-forward width; null is four times the width."""
    dropout: float = setting(0.1, at_least=0, at_most=1)
    """Dropout."""
    query: str = derived("speech")
    """"speech" if it is trained with speech as the query, "image" if with patches."""
    matching: bool = derived(False)
    """Whether it has the linear layer of matching, by which results are re-ranked."""
    global_token: str = derived("vector")
    """"vector" if the global vector of the query's modality precedes the queries; where that is withheld because it is
    what is rebuilt, "blank", or "other" for the vector of the other modality."""


@dataclass
class ContrastiveSettings:
    """Speech-image contrastive learning on the global vectors."""

    weight: float = setting(1.0, at_least=0)
    """Weight of the loss; 0 turns the task off."""
    temperature: float = setting(0.07, above=0)
    """Temperature of the softmax at the start."""
    learn_temperature: bool = False
    """Learn the temperature (SpeechCLIP large does, base does not)."""
    negatives: Literal["batch", "all"] = "batch"
    """The images that a clip must tell from its own: those of its batch, or all of the training split, which must then
    be by a frozen encoder. An image is compared with the clips of its batch in both cases."""


@dataclass
class SpeechNoiseSettings:
    """Clips with gaps, in training only: spans of what HuBERT gives for a clip are replaced before the head, which must
    find the image by the rest."""

    clips: float = setting(0.0, at_least=0, at_most=1)
    """Share of the clips that get gaps; 0 turns them off."""
    min_epochs: float = setting(0.0, at_least=0)
    """Gaps are off in a run that sees each clip fewer times than this: they help only against overfitting."""
    share: float = setting(0.3, at_least=0, below=1)
    """Share of such a clip's frames that is replaced, on average."""
    seconds: float = setting(0.2, above=0)
    """Length of a gap; gaps may overlap."""
    source: Literal["clip", "zeros"] = "clip"
    """What fills the gaps: frames of a clip of another image of the batch, or zeros."""


@dataclass
class MatchingSettings:
    """Speech-image matching: the fusion encoder tells right pairs from similar wrong ones. A model that is saved with
    training.save_fusion can then re-rank the first results."""

    weight: float = setting(0.0, at_least=0)
    """Weight of the loss; 0 turns the task off, and then it costs nothing."""


@dataclass
class DenoisingSettings:
    """Cross-modal denoising (CMD). The defaults are the "paper" preset."""

    weight: float = setting(1.0, at_least=0)
    """Weight of the loss; 0 turns the task off, and then it costs nothing."""
    start_step: int = setting(0, at_least=0)
    """Step before which the weight is 0."""
    warmup_steps: int = setting(0, at_least=0)
    """Steps over which the weight rises from 0 after start_step."""
    noise: Literal["image", "speech", "both"] = "image"
    """The modality whose features are made noisy."""
    share: float = setting(0.5, at_least=0, at_most=1)
    """Share of the noisy modality's tokens that are replaced."""
    place: Literal["features", "middle", "input"] = "features"
    """Where they are replaced: in the features that the fusion encoder reads, whose other tokens have seen what is
    replaced; or before it is seen, in the input of the network that makes the features (an image's pixels, by patches;
    what HuBERT gives to the head), or of the middle layer of the vision transformer ("middle": images only). The
    network then runs once more in each step."""
    block: int = setting(1, at_least=1)
    """Tokens that are replaced together: squares of so many by so many patches, or so many frames on end."""
    source: Literal["same_position", "any_position", "alike", "zeros", "gaussian"] = "any_position"
    """What replaces a token: another image's token at the same position or at any position, the token at the same
    position of the image of the batch whose vector is the most alike, zeros, or Gaussian noise."""
    query: Literal["speech", "image", "noisy"] = "speech"
    """The modality whose tokens are the queries of the fusion encoder ("noisy": the noisy one); the other's are keys
    and values."""
    speech: Literal["frames", "vector"] = "frames"
    """What the fusion encoder reads of a clip: its frames, or its global vector alone, as one token, so that speech
    helps only by what retrieval uses."""
    front: Literal["blank", "other"] = "blank"
    """What precedes the queries where the vector of their own modality would give the answer away: a learned blank, or
    the global vector of the other modality, which must then hold what the noisy one has lost."""
    target: Literal["global", "replaced", "all"] = "global"
    """What is rebuilt: the clean global vector, the clean token at each replaced position, or every token. The last two
    need the noisy modality as the query."""
    loss: Literal["contrastive", "cosine", "smooth_l1"] = "contrastive"
    """How a rebuilt feature is compared with the clean one."""
    temperature: float = setting(0.07, above=0)
    """Temperature of the contrastive loss."""
    stop_gradient: bool = True
    """Compute no gradient through the target."""
    max_tokens: int = setting(2048, at_least=2)
    """With the contrastive loss on tokens, the most tokens of a batch that are compared with each other, drawn at
    random."""

    @property
    def needs_pixels(self) -> bool:
        """Whether image features are made again, from pixels."""
        return self.weight > 0 and self.noise != "speech" and self.place != "features"


@dataclass
class OptimizerSettings:
    """Adam, its parameter groups and its schedule."""

    lr: float = setting(1e-4, at_least=0)
    """Peak learning rate of the head, the fusion encoder and the tasks."""
    encoder_lr: float = setting(1e-5, at_least=0)
    """Peak learning rate of the trained parts of the encoders."""
    weight_decay: float = setting(1e-6, at_least=0)
    """Weight of the L2 penalty on all trained parameters, added to their gradients."""
    betas: list[float] = setting([0.9, 0.999], at_least=0, below=1)  # noqa: RUF009
    """Adam's two decay rates."""
    warmup_steps: int = setting(5000, at_least=0)
    """Steps over which the learning rate rises from 0."""
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    """How the learning rate falls after the warm-up, to 0 at the last step."""
    clip_norm: float = setting(4.0, above=0)
    """The norm of the gradient is clipped to this."""
    accumulate: int = setting(1, at_least=1)
    """Batches whose gradients are averaged for one step. This adds no negatives: a larger data.batch_size with
    data.chunk_size does."""


@dataclass
class TrainingSettings:
    """Length, precision, evaluation and checkpoints."""

    steps: int = setting(50_000, at_least=1)
    """Optimizer steps."""
    seed: int = setting(0, at_least=0, below=2**63)
    """Seed of the weights, the order of the data, the noise and the dropout."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Arithmetic of the networks: auto is bf16 where the CPU or GPU has it, else fp32. Similarities and losses are
    always fp32."""
    eval_every: int = setting(0, at_least=0)
    """Steps between evaluations on the validation split; 0 evaluates after each epoch."""
    best_by: Literal["mean_R@1", "mean_R@10", "step"] = "mean_R@10"
    """Which evaluated model is kept as the best: the one with the highest recall, or the latest. The latest is for a
    schedule that ends at 0 where the validation split is too small to tell two evaluations apart."""
    patience: int = setting(0, at_least=0)
    """Stop after this many evaluations without a better training.best_by; 0 never stops early."""
    checkpoint_every: int = setting(1000, at_least=1)
    """Steps between checkpoints."""
    keep_checkpoints: int = setting(2, at_least=1)
    """Number of checkpoints that stay on disk."""
    log_every: int = setting(10, at_least=1)
    """Steps between lines of the log."""
    save_fusion: bool = False
    """Keep fusion encoder and tasks in the best model, for attention maps, re-ranking and studies; retrieval does not
    need them."""
    device: Literal["auto", "cpu"] = "auto"
    """auto uses a GPU if torch sees one; cpu uses the CPU."""


@dataclass
class Recipe:
    """A whole experiment; ConfigError if a value is out of range, or cannot be combined with another."""

    output: str = "runs/default"
    """Folder of the run."""
    data: DataSettings = field(default_factory=DataSettings)
    model: ModelSettings = field(default_factory=ModelSettings)
    head: HeadConfig = field(default_factory=HeadConfig)
    features: FeatureSettings = field(default_factory=FeatureSettings)
    fusion: FusionConfig = field(default_factory=FusionConfig)
    contrastive: ContrastiveSettings = field(default_factory=ContrastiveSettings)
    speech_noise: SpeechNoiseSettings = field(default_factory=SpeechNoiseSettings)
    matching: MatchingSettings = field(default_factory=MatchingSettings)
    denoising: DenoisingSettings = field(default_factory=DenoisingSettings)
    optimizer: OptimizerSettings = field(default_factory=OptimizerSettings)
    training: TrainingSettings = field(default_factory=TrainingSettings)

    def __post_init__(self) -> None:
        check_limits(self)
        for name, value, fix in self._conflicts():
            raise ConfigError(f"{name} is {value!r}; {fix}")

    def _conflicts(self) -> Iterator[tuple[str, Any, str]]:
        """Setting, value and fix of each value that cannot be combined with another."""
        denoising, fusion, contrastive = self.denoising, self.fusion, self.contrastive
        if len(self.optimizer.betas) != 2:
            yield "optimizer.betas", self.optimizer.betas, "give two numbers"
        layers = self.head.speech_layers
        if layers is not None and (not layers or len(set(layers)) < len(layers)):
            yield "head.speech_layers", layers, "name each hidden state once, at least one, or give null for all"
        if fusion.width % fusion.heads:
            yield "fusion.width", fusion.width, f"give a multiple of fusion.heads ({fusion.heads})"
        if self.training.best_by == "step" and self.training.patience:
            fix = "it waits for a better recall: set training.best_by to mean_R@1 or mean_R@10"
            yield "training.patience", self.training.patience, fix
        if contrastive.negatives == "all" and self.model.image_trainable:
            fix = f"model.image_trainable is {self.model.image_trainable}, and vectors change: set it to batch"
            yield "contrastive.negatives", contrastive.negatives, fix
        if contrastive.weight == 0:
            if self.matching.weight:
                fix = "contrastive.weight is 0, and negatives are drawn by contrastive similarity: set it above 0"
                yield "matching.weight", self.matching.weight, fix
            if denoising.weight == 0:
                yield "contrastive.weight", contrastive.weight, "denoising is off too: turn on at least one of them"
            if self.data.chunk_size is not None:
                fix = "without contrastive learning no loss needs the whole batch: give a smaller data.batch_size"
                yield "data.chunk_size", self.data.chunk_size, fix
            if denoising.start_step or denoising.warmup_steps:
                fix = "nothing trains until denoising starts: set its start_step and warmup_steps to 0"
                yield "contrastive.weight", contrastive.weight, fix
        if denoising.weight and denoising.noise != "image":
            if denoising.place == "middle":
                fix = f"denoising.noise is {denoising.noise}: only images have it; give input"
                yield "denoising.place", denoising.place, fix
            if denoising.speech == "vector" and (denoising.place, denoising.target) != ("input", "global"):
                fix = (
                    "the vector has no frames to replace or rebuild: set denoising.place to input and target to global"
                )
                yield "denoising.speech", denoising.speech, fix
        if denoising.weight and denoising.target == "replaced" and denoising.share == 0:
            yield "denoising.share", denoising.share, "denoising.target is replaced, so give a share above 0"
        if denoising.weight and denoising.target != "global":
            for noisy in ("image", "speech") if denoising.noise == "both" else (denoising.noise,):
                if denoising.query not in (noisy, "noisy"):
                    fix = (
                        "tokens can be rebuilt only if the noisy modality is the query: set denoising.query to noisy "
                        f"(it is {denoising.query}, the noise is on {denoising.noise}), or the target to global"
                    )
                    yield "denoising.target", denoising.target, fix


def check_limits(settings: Any, prefix: str = "") -> None:
    """Checks every number of a dataclass, and of those within it, against the limits of its field.

    Raises ConfigError with the setting, its value and the range.
    """
    for item in fields(settings):
        value, limits = getattr(settings, item.name), item.metadata.get("limits", {})
        if is_dataclass(value):
            check_limits(value, f"{prefix}{item.name}.")
            continue
        numbers = value if isinstance(value, list) else [] if value is None else [value]
        if not all(_WITHIN[words](one, limit) for one in numbers for words, limit in limits.items()):
            range_ = " and ".join(f"{words.replace('_', ' ')} {limit:g}" for words, limit in limits.items())
            subject = "each number" if isinstance(value, list) else "it"
            raise ConfigError(f"{prefix}{item.name} is {value!r}; {subject} must be {range_}")


DENOISING_PRESETS: dict[str, dict[str, Any]] = {
    "off": {"weight": 0.0},
    # The reading that fits every sentence known of the paper: queries are the speech frames with the global token in
    # front, keys and values are the noisy patches, and the fused global token must rebuild the clean image's vector.
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
