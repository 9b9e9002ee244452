"""Data sets of the Hugging Face hub, and WebDataset tars, which hold audio and images in their files (extra ``hub``).

The ``datasets`` library finds the files of a data set with their splits, and reads its tables. Nothing is decoded: the
bytes of clips and images become files beside the manifest; files to which a table refers stay where they are.
"""

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from saysee.data.corpora.folder import check_shares, divide
from saysee.data.corpora.hub_files import Part, find_parts
from saysee.data.corpora.hub_pairs import find_tables, join_tables
from saysee.data.corpora.hub_rows import FLAGS, Rows, read_table
from saysee.data.corpora.hub_tars import read_tar
from saysee.data.corpora.preparing import Expected, Prepared, check_target, prepare
from saysee.data.manifest import Row
from saysee.errors import ConfigError, ManifestError, SaySeeError
from saysee.log import progress_bar


def prepare_hub(
    sources: Sequence[str | os.PathLike[str]],
    to: str | os.PathLike[str],
    *,
    config: str | None = None,
    audio_column: str | None = None,
    image_column: str | None = None,
    text_column: str | None = None,
    speaker_column: str | None = None,
    language_column: str | None = None,
    id_column: str | None = None,
    split_column: str | None = None,
    splits: Mapping[str, str] | None = None,
    val_share: float = 0.0,
    test_share: float = 0.0,
    seed: int = 0,
    language: str | None = None,
    allow_missing: int = 0,
) -> Prepared:
    """Write the manifest of a data set, and its clips and images as files into ``STEM.files`` beside it.

    Files are named by their contents and written atomically: the same command continues an interrupted run, and an
    image of several rows is one file. The manifest is written last.

    Args:
        sources: an OWNER/NAME on the hub; folders; ``.parquet``, ``.arrow`` or ``.tar`` files, where braces stand for
            numbers or words (``{000..010}``, ``{train,val}``).
        to: the manifest, ``.parquet`` or ``.jsonl``.
        config: configuration ("subset") of a data set that has several.
        audio_column: column, member or JSON key of the clips, if types and titles do not identify it.
        image_column: that of the images.
        text_column: that of the spoken text; "" for none.
        speaker_column: that of the speaker; "" for none.
        language_column: that of the language; "" for none.
        id_column: that of what the captions of one image share; without one, equal images are one.
        split_column: that of the split, in place of the splits of the files.
        splits: new name of each split that is renamed; by default, validation and dev become val.
        val_share: share of the images for validation, if the data set has one split.
        test_share: share of the images for testing, likewise.
        seed: another seed selects other images.
        language: of the speech, if no column says it.
        allow_missing: how many clips, images and files may be missing, empty or damaged.

    Raises:
        SaySeeError: ``datasets`` or a source is missing, a column is missing or does not fit, an image is in two
            splits, settings are invalid, or more is missing than allowed.
    """
    columns = (audio_column, image_column, text_column, speaker_column, language_column, id_column, split_column)
    names = {role: name for role, name in zip(FLAGS, columns, strict=True) if name is not None}
    for role in ("clip", "image"):
        if names.get(role) == "":
            raise ConfigError(f"{FLAGS[role]} is empty; name a column, or omit the flag")
    check_shares(val_share, test_share)
    target = check_target(to, allow_missing)
    parts, missing = find_parts([os.fspath(source) for source in sources], config, target)
    rows = Rows(target.with_name(f"{target.stem}.files"), language)
    rows.problems.missing |= {"shards": missing} if missing else {}
    with progress_bar("reading files of the data set", len(parts)) as rows.bar:
        notes = _read(parts, names, rows)
    captions, split_notes = _with_splits(rows.captions, splits or {}, val_share, test_share, seed)
    rows.find_extra()
    forms = Counter(part.form for part in parts)
    read = ", ".join(f"{count:,} {form} {'file' if count == 1 else 'files'}" for form, count in forms.items())
    about: dict[str, Any] = {"splits": splits, "problems": rows.problems}
    notes = [f"read from {read}; audio and images are in {rows.folder}", *notes, *split_notes]
    return prepare(captions, None, None, target, allow_missing, Expected("the data set"), notes=notes, **about)


def _read(parts: Sequence[Part], names: Mapping[str, str], rows: Rows) -> list[str]:
    """Adds the captions of all parts to ``rows``; returns notes."""
    if tables := find_tables(parts):
        return join_tables(tables, names, rows)
    forms = sorted({part.form for part in parts})
    paths = ", ".join(part.path for part in parts[:3])
    if "text" in forms:
        raise SaySeeError(f"{paths}: not .parquet, .arrow or .tar files; name such files, or a folder of them")
    if len(forms) > 1:
        raise SaySeeError(f"{paths}: files of several kinds ({', '.join(forms)}); name those of one kind")
    empty: list[str] = []
    for part in parts:
        with rows.reading(part):
            samples = 0
            for place, values in (read_tar if part.form == "tar" else read_table)(part, names):
                rows.add(place, values, part.split)
                samples += 1
            empty += [] if samples else [part.name]
    return [f"nothing is in {', '.join(empty)}"] if empty else []


def _with_splits(
    captions: list[Row], splits: Mapping[str, str], val_share: float, test_share: float, seed: int
) -> tuple[list[Row], list[str]]:
    """The captions, divided if asked for, and notes on their splits."""
    without = [caption for caption in captions if not caption.split]
    if without and len(without) < len(captions):
        what = f"{without[0].clip}: no split, and so {len(without) - 1:,} more clips, while others have one"
        raise ManifestError(f"{what}; fill the column of splits, or omit it by {FLAGS['split']} ''")
    have = list(dict.fromkeys(caption.split or "train" for caption in captions))
    for name in splits:
        if name not in have:
            raise ConfigError(f"--split {name}=…: the data set has no such split; it has {', '.join(have) or 'none'}")
    if val_share or test_share:
        if len(have) > 1:
            what = f"require a data set of one split; this has {', '.join(have)} (omit them)"
            raise ConfigError(f"--val-share and --test-share {what}")
        captions, note = divide(captions, val_share, test_share, seed)
        return captions, [note]
    notes = ["all captions are in train; --val-share and --test-share divide them"] if have == ["train"] else []
    return [caption if caption.split else replace(caption, split="train") for caption in captions], notes
