"""``saysee data``: make or check a manifest."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from saysee.cli.printing import Result, print_message
from saysee.errors import ConfigError

if TYPE_CHECKING:
    from saysee.data.corpora.preparing import Prepared


def scenes(
    *,
    to: Path,
    images: int = 3000,
    val_images: int | None = None,
    test_images: int | None = None,
    seed: int = 0,
    workers: int | None = None,
) -> Result:
    """Make the embedded corpus: drawn scenes with synthesized speech.

    Args:
        to: folder of the corpus
        images: number of images, with five clips each
        val_images: how many of them are for validation (default: one in twenty)
        test_images: how many of them are for testing (default: three in twenty)
        seed: the same seed gives the same corpus
        workers: number of processes (default: one per CPU core)
    """
    from saysee.data.scenes.corpus import build_scenes

    manifest = build_scenes(
        to, images=images, seed=seed, val_images=val_images, test_images=test_images, workers=workers
    )
    return Result({"manifest": str(manifest)}, [str(manifest)])


def flickr8k(*, to: Path, audio: Path, images: Path, text: Path | None = None, allow_missing: int = 10) -> Result:
    """Prepare Flickr8k with its spoken captions.

    Args:
        to: the manifest to write, .parquet or .jsonl
        audio: folder of the clips, in any layout
        images: folder of the images, in any layout
        text: folder of the lists (default: found in the other folders or beside them)
        allow_missing: how many files may be missing or empty
    """
    from saysee.data.corpora.flickr8k import prepare_flickr8k

    return _result(prepare_flickr8k(audio, images, to, text=text, allow_missing=allow_missing))


def spokencoco(*, to: Path, audio: Path, images: Path, karpathy: Path | None = None, allow_missing: int = 0) -> Result:
    """Prepare SpokenCOCO, in its own split or in Karpathy's.

    Args:
        to: the manifest to write, .parquet or .jsonl
        audio: folder of the clips, in any layout
        images: folder of the images, in any layout
        karpathy: dataset_coco.json, to use its split
        allow_missing: how many files may be missing or empty
    """
    from saysee.data.corpora.spokencoco import prepare_spokencoco

    return _result(prepare_spokencoco(audio, images, to, karpathy=karpathy, allow_missing=allow_missing))


def places(*, to: Path, metadata: tuple[Path, ...], audio: Path, images: Path, allow_missing: int = 0) -> Result:
    """Prepare the Places audio captions.

    Args:
        to: the manifest to write, .parquet or .jsonl
        metadata: folder of train.json and val.json, or the files
        audio: folder of the clips, in any layout
        images: folder of the images, in any layout
        allow_missing: how many files may be missing or empty
    """
    from saysee.data.corpora.places import prepare_places

    return _result(prepare_places(metadata, audio, images, to, allow_missing=allow_missing))


def folder(
    folder: Path,
    *,
    to: Path,
    pair_by: Literal["auto", "csv", "stem", "sub-folder"] = "auto",
    csv: Path | None = None,
    val_share: float = 0.1,
    test_share: float = 0.1,
    seed: int = 0,
    language: str | None = None,
    allow_missing: int = 0,
) -> Result:
    """Prepare a folder of your own clips and images.

    Args:
        folder: folder of the files
        to: the manifest to write, .parquet or .jsonl
        pair_by: how clips and images are paired; auto uses a table if there is one, else the way that pairs more clips
        csv: a table with the columns clip and image
        val_share: share of the images for validation
        test_share: share of the images for testing
        seed: another seed splits the images differently
        language: language of the speech, such as en, where no table has it
        allow_missing: how many files may be missing or empty
    """
    from saysee.data.corpora.folder import prepare_folder

    prepared = prepare_folder(
        folder,
        to,
        pair_by=pair_by,
        table=csv,
        val_share=val_share,
        test_share=test_share,
        seed=seed,
        language=language,
        allow_missing=allow_missing,
    )
    return _result(prepared)


def hub(
    source: Sequence[str],
    *,
    to: Path,
    config: str | None = None,
    audio_column: str | None = None,
    image_column: str | None = None,
    text_column: str | None = None,
    speaker_column: str | None = None,
    language_column: str | None = None,
    id_column: str | None = None,
    split_column: str | None = None,
    split: Sequence[str] = (),
    val_share: float = 0.0,
    test_share: float = 0.0,
    seed: int = 0,
    language: str | None = None,
    allow_missing: int = 0,
) -> Result:
    """Prepare a data set of the Hugging Face hub, or WebDataset tars.

    Args:
        source: name on the hub; folder of save_to_disk, Parquet files or tars; such files, where {000..010} is a range
        to: the manifest to write, .parquet or .jsonl
        config: configuration (subset) of a data set that has several
        audio_column: column, member or JSON key of the clips
        image_column: the same of the images
        text_column: the same of the spoken text ('' for none)
        speaker_column: the same of the speaker
        language_column: the same of the language
        id_column: the same of what the captions of one image share (default: equal images are one)
        split_column: the same of the split
        split: NAME=SPLIT renames a split of the data set (repeatable; validation becomes val)
        val_share: share of the images for validation, if the data set has one split only
        test_share: share of the images for testing, likewise
        seed: another seed splits the images differently
        language: language of the speech, such as en, where no column has it
        allow_missing: how many files may be missing or empty
    """
    from saysee.data.corpora.hub import prepare_hub

    splits = dict(word.partition("=")[::2] for word in split)
    if not all(splits.values()) or "" in splits:
        raise ConfigError(f"--split is {' '.join(split)}; give NAME=SPLIT, such as validation=val")
    prepared = prepare_hub(
        source,
        to,
        config=config,
        audio_column=audio_column,
        image_column=image_column,
        text_column=text_column,
        speaker_column=speaker_column,
        language_column=language_column,
        id_column=id_column,
        split_column=split_column,
        splits=splits,
        val_share=val_share,
        test_share=test_share,
        seed=seed,
        language=language,
        allow_missing=allow_missing,
    )
    return _result(prepared)


def verify(manifest: Path, *, to: Path | None = None, max_seconds: float = 60.0, workers: int | None = None) -> Result:
    """Open every file of a manifest and list those that cannot be used.

    Args:
        manifest: a .parquet or .jsonl manifest
        to: a manifest to write without the rows of those files, and with the length of each clip
        max_seconds: longest clip that can be used
        workers: number of processes (default: one per CPU core)
    """
    from saysee.data.manifest import Manifest
    from saysee.data.verify import problems_table, problems_to_dict, verify

    rows = Manifest.read(manifest)
    problems = verify(rows, max_seconds=max_seconds, workers=workers, to=to)
    values = problems_to_dict(rows, problems)
    table = [problems_table(problems)] if problems else []
    if to is not None:
        bad = values["bad_rows"]
        kinds = ", ".join(f"{count:,} {kind}" for kind, count in values["kinds"].items())
        why = f" (bad files: {kinds})" if problems else ""
        line = f"{to}: {len(rows) - bad:,} rows of {len(rows):,}, each with seconds; {bad:,} removed{why}"
        return Result(values | {"manifest": str(to), "rows": len(rows) - bad}, [*table, line])
    if not problems:
        return Result(values, [f"{manifest}: all of {len(rows)} clips and {len(rows.images())} images can be used"])
    failure = (
        f"{manifest}: {len(problems)} of its files cannot be used; fix them, or write a manifest without them by --to"
    )
    return Result(values, table, failures=[failure])


def _result(prepared: Prepared) -> Result:
    for note in prepared.notes:
        print_message(note)
    return Result(prepared.to_dict(), [prepared.to_line()])
