"""What cross-modal denoising rebuilds, from clean and from noisy input, with and without the other modality.

    result = reconstruct("runs/first/best", "scenes/manifest.parquet")
    result.write(Path("reconstruction"))

Each clip and each image is encoded once. Then the fusion encoder rebuilds features for each noisy side that the model
was trained with, each source of noise, each share of noisy tokens, and three kinds of the other modality: the right
one, that of another item, and none (one token and a global vector of zeros, the same for all items).

Shapes: B items of a batch, N items, K rebuilt features, D width.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from saysee.data.loader import SpeechImageLoader
from saysee.data.manifest import Manifest
from saysee.errors import CheckpointError, ConfigError, SaySeeError
from saysee.evaluation.recall import retrieval_ranks
from saysee.evaluation.statistics import Floats, Integers, image_interval
from saysee.evaluation.table import Table, number, write_tables
from saysee.files import short_name, write_bytes
from saysee.hardware import torch_device
from saysee.log import progress_bar
from saysee.model.features import ImageFeatures, SpeechFeatures
from saysee.model.loading import load_model
from saysee.settings.reading import resolve_recipe
from saysee.studies.plots import Panel, panels_png
from saysee.tasks.base import Inputs
from saysee.tasks.denoising import DenoisingTask
from saysee.tasks.noise import NoiseSource
from saysee.training.checkpoint import load_task
from saysee.training.objective import Objective, build_tasks

SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)
OTHERS = {"right": None, "another's": "clean", "none": "withheld"}
"""The other modality, and what :meth:`DenoisingTask.reconstruct` calls it."""
MOST_TOKENS = 256  # where tokens are rebuilt, so many of a batch are compared with each other, drawn at random

Gains = Mapping[str, Mapping[str, tuple[float, float, float]]]
Features = tuple[SpeechFeatures, ImageFeatures, Tensor, Inputs | None]
"""Both sides of B items, the number of each item's image and, if noise is put there, what features are made of."""


@dataclass(frozen=True)
class Quality:
    """What is rebuilt of one kind of input."""

    place: str  # the noisy side: "image" or "speech"
    source: str  # of the noise
    share: float  # of the tokens that are replaced
    other: str  # one of ``OTHERS``
    nearest: float  # share of the rebuilt features that are nearest to their own target, by cosine; 0 to 1
    nearest_interval: tuple[float, float]  # 95 %, bootstrap over images
    cosine: float  # mean cosine with the target
    cosine_interval: tuple[float, float]
    loss: float  # of the task; it has no interval, as items are compared with each other


@dataclass(frozen=True)
class Reconstruction:
    """The result of :func:`reconstruct`."""

    model: str
    manifest: str
    split: str
    seed: int
    images: int  # N, each with one clip
    target: str  # what is rebuilt: "global", "replaced" or "all"
    trained_share: float  # of the noise in training
    trained_source: str
    candidates: float  # number of targets that a rebuilt feature is compared with
    chance: float  # of ``nearest``: one over the candidates
    qualities: Sequence[Quality]
    gains: Gains
    """For each place, at the noise of the training: how much higher ``nearest`` is with the right other modality than
    with "another's" and than with "none", and the 95 % interval of the paired difference."""

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)

    def to_lines(self) -> list[str]:
        """Whether the task needs the other modality, a line for each place."""
        lines = []
        for place, gains in self.gains.items():
            of = f"rebuilt {place} features, {self.trained_source}, share {self.trained_share:g}"
            percent = {other: [100 * value for value in of_other] for other, of_other in gains.items()}
            parts = [f"{number(x[0], interval=x[1:], sign=True)} points over {other}" for other, x in percent.items()]
            lines.append(f"{of}: the right other modality finds {' and '.join(parts)}")
        return lines

    def to_table(self) -> Table:
        """A row for each place, source and share."""
        rows: list[list[str]] = []
        sections: list[int] = []
        for at in range(0, len(self.qualities), len(OTHERS)):
            found = self.qualities[at : at + len(OTHERS)]
            first = found[0]
            if rows and rows[-1][:2] != [first.place, first.source]:
                sections.append(len(rows))
            cells = [number(100 * one.nearest, interval=[100 * end for end in one.nearest_interval]) for one in found]
            cosines, losses = (" / ".join(f"{getattr(one, name):.2f}" for one in found) for name in ("cosine", "loss"))
            rows.append([first.place, first.source, f"{first.share:g}", *cells, cosines, losses])
        kinds = " / ".join(OTHERS)
        title = f"rebuilt features nearest to their own target, percent; chance {100 * self.chance:.2g}"
        headings = ["noisy side", "source", "share", *OTHERS, f"cosine, {kinds}", f"loss, {kinds}"]
        notes = [f"{self.images:,} images of the {self.split} split, a clip each; in brackets: 95 %, over images"]
        notes.append("columns: the other modality is the right one, that of another item, or withheld")
        return Table(title, headings, rows, 2, notes, sections)

    def write(self, folder: Path) -> None:
        """Writes ``table.md``, ``results.json`` and ``reconstruction.png`` into a folder, which need not exist."""
        title = f"Reconstruction: {self.model}"
        write_tables(folder, title, [self.to_table()], self.to_dict(), self.to_lines())
        write_bytes(folder / "reconstruction.png", self._picture())

    def _picture(self) -> bytes:
        places = len({one.place for one in self.qualities})
        lines: dict[str, dict[str, list[tuple[float, float, float, float]]]] = {}
        for one in self.qualities:
            name = f"{one.place}: {one.source}" if places > 1 else one.source
            name += " (in training)" if one.source == self.trained_source else ""
            value, low, high = (100 * value for value in (one.nearest, *one.nearest_interval))
            line = lines.setdefault(name, {}).setdefault(f"other modality: {one.other}", [])
            line.append((one.share, value, low, high))
        panels = [Panel(name, "share of noisy tokens", of_panel) for name, of_panel in lines.items()]
        title = f"{self.model}: rebuilt features nearest to their own of {self.candidates:,.0f} targets"
        return panels_png(title, "percent", panels, marks=(100 * self.chance, self.trained_share))


def reconstruct(
    model: str | os.PathLike[str],
    manifest: str | os.PathLike[str],
    *,
    split: str = "test",
    images: int = 1000,
    seed: int = 0,
    device: str = "auto",
) -> Reconstruction:
    """Measures what the fusion encoder of a model, in a folder, rebuilds of a split of a corpus.

    At most ``images`` are drawn at random, each with one of its clips; ``seed`` is of the images, the clips, the noise
    and the resamples; ``device`` is as torch names it, or "auto".

    Raises SaySeeError if the model has no fusion encoder, the split has fewer than two images, or a file cannot be
    used.
    """
    if images < 2:
        raise ConfigError(f"images is {images}; rebuilding compares at least 2")
    task, batches = _prepared(Path(model), Path(manifest), split, images, seed, torch_device(device))
    qualities, gains, chance = measure(task, batches, seed)
    settings, count = task.settings, sum(len(image_ids) for _, _, image_ids, _ in batches)
    about = short_name(model), short_name(manifest), split, seed, count
    trained = settings.target, settings.share, settings.source
    return Reconstruction(*about, *trained, 1 / chance, chance, qualities, gains)


def measure(task: DenoisingTask, batches: Sequence[Features], seed: int) -> tuple[list[Quality], Gains, float]:
    """What a task rebuilds of batches of features: qualities, gains and chance as of :class:`Reconstruction`."""
    settings, trained = task.settings, {}
    shares = sorted({*SHARES, settings.share} - ({0.0} if settings.target == "replaced" else set()))
    kinds = [(place, source) for place in task.noisy_sides for source in get_args(NoiseSource)]
    qualities, chances = [], np.ones(1)
    with progress_bar("rebuilding", len(kinds) * len(shares) * len(OTHERS)) as bar:
        for (place, source), share in itertools.product(kinds, shares):
            task.settings = replace(settings, share=share, source=source)
            for other, swap in OTHERS.items():
                hits, cosines, owners, chances, loss = _rebuild(task, place, swap, batches, seed)
                if (source, share) == (settings.source, settings.share):
                    trained[place, other] = hits, owners
                intervals = [image_interval(values, owners, seed=seed) for values in (hits, cosines)]
                measured = float(hits.mean()), intervals[0], float(cosines.mean()), intervals[1], loss
                qualities.append(Quality(place, source, share, other, *measured))
                bar.update()
    task.settings = settings
    gains: dict[str, dict[str, tuple[float, float, float]]] = {place: {} for place in task.noisy_sides}
    for (place, other), (hits, owners) in trained.items():
        if other != "right":
            more = trained[place, "right"][0] - hits
            gains[place][other] = (float(more.mean()), *image_interval(more, owners, seed=seed))
    return qualities, gains, float(np.mean(chances))


def _prepared(
    folder: Path, manifest: Path, split: str, images: int, seed: int, device: str
) -> tuple[DenoisingTask, list[Features]]:
    """The task as it was trained, and the features of the items in whole batches as large as in training."""
    rows = _one_clip_an_image(Manifest.read(manifest).select(split), images, seed)
    if len(rows) < 2:
        raise SaySeeError(f"{manifest}: the split {split!r} has {len(rows)} image; rebuilding compares at least 2")
    model = load_model(folder)
    facts = getattr(model, "trained", None) or {}
    if getattr(model, "fusion", None) is None:
        raise SaySeeError(f"{folder} was saved without a fusion encoder; train it with training.save_fusion: true")
    if "recipe" not in facts:
        raise CheckpointError(f"{folder} has no training.json with its recipe; give a model that 'saysee train' saved")
    recipe = resolve_recipe(facts["recipe"], where=f"{folder}/training.json")
    task = build_tasks(recipe, model).get("denoising")
    if not isinstance(task, DenoisingTask):
        raise SaySeeError(f"{folder} was trained without denoising; give a model of a denoising.weight above 0")
    load_task(folder, facts["best"]["step"], task)
    objective = Objective(model, {task.name: task}).to(device).eval()
    loader = SpeechImageLoader(
        rows,
        prepare_speech=model.processor.prepare_speech,
        prepare_image=model.processor.prepare_image,
        batch_size=min(recipe.data.chunk_size or recipe.data.batch_size, len(rows)),  # noise comes from the batch
        seed=seed,
        bucket_batches=recipe.data.bucket_batches,
    )
    batches = []
    with torch.inference_mode(), progress_bar("encoding", len(loader)) as bar:
        for batch in (each.to(device) for each in loader):
            features = objective.features(batch)
            again = task.settings.place != "features"
            batches.append((*features[:2], batch.image_ids, features[2] if again else None))
            bar.update()
    return task, batches


def _one_clip_an_image(rows: Manifest, count: int, seed: int) -> Manifest:
    """At most ``count`` random images, each with a random one of its clips."""
    listed = list(rows)
    chosen = {listed[at].image_id: listed[at] for at in np.random.default_rng(seed).permutation(len(listed))}
    return Manifest(list(chosen.values())[:count], rows.root)


@torch.inference_mode()
def _rebuild(
    task: DenoisingTask, place: str, swap: str | None, batches: Sequence[Features], seed: int
) -> tuple[Floats, Floats, Integers, Floats, float]:
    """Whether each rebuilt feature [K] is nearest to its own target, its cosine with it, its image, chance; the loss.

    Vectors are compared with those of all batches, tokens with those of their batch. The noise depends on the seed and
    the batch alone: two calls differ in nothing else, and a larger share replaces what a smaller one does, and more.
    """
    found: list[tuple[Tensor, ...]] = []
    losses = []
    with torch.random.fork_rng(devices=[ids.device for _, _, ids, _ in batches[:1] if ids.is_cuda]):
        for at, (speech, images, image_ids, inputs) in enumerate(batches):
            torch.manual_seed(int(np.random.SeedSequence([seed, at]).generate_state(1)[0]))
            rebuilt, clean, ids, _ = task.reconstruct(place, speech, images, image_ids, swap, inputs)
            if not len(rebuilt):
                continue  # no other image in the batch, or a share of no whole token
            losses.append(float(task.compare(rebuilt, clean, ids)))
            owners = image_ids
            if task.settings.target != "global":
                drawn = torch.randperm(len(ids))[:MOST_TOKENS].to(ids.device)
                rebuilt, clean, ids = rebuilt[drawn], clean[drawn], ids[drawn]
                items = ids // (images.patches if place == "image" else speech.frames).shape[1]
                owners = items if place == "image" else image_ids[items]
            found.append((rebuilt.float().cpu(), clean.float().cpu(), owners.cpu()))
    if not found:
        raise SaySeeError(
            f"a share of {task.settings.share:g} replaces none of the {place} tokens, so there is nothing to rebuild; "
            "use a model trained with a larger denoising.share"
        )
    if task.settings.target == "global":
        found = [tuple(torch.cat(parts) for parts in zip(*found, strict=True))]
    hits = np.concatenate([nearest(rebuilt, clean) for rebuilt, clean, _ in found])
    cosines = np.concatenate([functional.cosine_similarity(rebuilt, clean).numpy() for rebuilt, clean, _ in found])
    chances = np.concatenate([np.full(len(clean), 1 / len(clean)) for _, clean, _ in found])
    of_images = torch.cat([owners for *_, owners in found]).numpy()
    return hits, cosines.astype(np.float64), of_images, chances, float(np.mean(losses))


def nearest(rebuilt: Tensor, clean: Tensor) -> Floats:
    """[K] 1.0 where a rebuilt feature [K, D] is nearest to its own clean one, by cosine; else, and in a tie, 0.0."""
    hits: Floats = (retrieval_ranks(rebuilt, clean, np.arange(len(clean))).speech_to_image == 1).astype(np.float64)
    return hits
