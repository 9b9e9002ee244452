"""Retrieval data sets of three tables (queries, corpus, pairs): one manifest, in which each clip is of its image."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from saysee.cli import main
from saysee.data.corpora.hub import prepare_hub
from saysee.data.manifest import Manifest
from saysee.data.verify import verify
from saysee.errors import ManifestError, SaySeeError

datasets = pytest.importorskip("datasets", reason="needs the extra hub")

IMAGES = ("000000391895", "000000060623", "000000483108")
CLIPS = {f"m{n}-{image}": image for image in IMAGES for n in range(2)}
PAIRS = [{"query-id": clip, "corpus-id": image, "score": 1} for clip, image in CLIPS.items()]


Items = list[dict[str, Any]]


def items_of(files: Any, folder: Path) -> tuple[Items, Items]:
    """The rows of the table of images and of that of clips."""
    images = {name: files.image(folder / f"{name}.jpg").read_bytes() for name in IMAGES}
    clips = {name: files.clip(folder / f"{name}.wav").read_bytes() for name in CLIPS}
    return (
        [{"id": name, "image": {"bytes": data, "path": None}} for name, data in images.items()],
        [{"id": name, "audio": {"bytes": data, "path": None}} for name, data in clips.items()],
    )


@pytest.fixture
def images(tmp_path: Path, files: Any) -> Items:
    return items_of(files, tmp_path / "made")[0]


@pytest.fixture
def clips(tmp_path: Path, files: Any) -> Items:
    return items_of(files, tmp_path / "made")[1]


def published(files: Any, root: Path) -> None:
    """A small copy of the data set of the hub, in a folder of its name."""
    audio_to_image(root / "whybe-choi" / "SpokenCOCOA2IRetrieval", *items_of(files, root / "made"))


def data_set(items: Items) -> Any:
    """As ``datasets`` makes it of clips and images; encoding an Audio needs torchcodec, so it is cast afterwards."""
    media = {"bytes": datasets.Value("binary"), "path": datasets.Value("string")}
    kinds = {str: datasets.Value("string"), int: datasets.Value("int32"), dict: media}
    made = datasets.Dataset.from_list(
        items, features=datasets.Features({name: kinds[type(value)] for name, value in items[0].items()})
    )
    for name, feature in (("audio", datasets.Audio()), ("image", datasets.Image())):
        made = made.cast_column(name, feature) if name in items[0] else made
    return made


def write(items: Items, path: Path, shards: int = 1) -> None:
    """As ``push_to_hub`` writes a split of a configuration."""
    path.parent.mkdir(parents=True, exist_ok=True)
    for number in range(shards):
        name = f"{path.name}-{number:05d}-of-{shards:05d}.parquet"
        data_set(items).shard(shards, number, contiguous=True).to_parquet(path.with_name(name))


def card(root: Path, split: str, *configs: str) -> None:
    lines = ["---", "configs:"]
    for name in configs:
        lines += [f"- config_name: {name}", "  data_files:", f"  - split: {split}", f"    path: {name}/{split}-*"]
    (root / "README.md").write_text("\n".join([*lines, "---", "# A data set", ""]))


def audio_to_image(root: Path, images: Items, clips: Items, pairs: Items = PAIRS) -> list[str]:
    """As whybe-choi/SpokenCOCOA2IRetrieval: clips are queries; images of several shards are the corpus."""
    for name, items, shards in (("corpus", images, 2), ("queries", clips, 1), ("qrels", pairs, 1)):
        write(items, root / name / "test", shards)
    card(root, "test", "corpus", "qrels", "queries")
    return [str(root)]


def image_to_audio(root: Path, images: Items, clips: Items) -> list[str]:
    """The other direction, as a snapshot without its card, with BEIR's table of pairs and the older name of an id."""
    write(
        [{"modality": "audio", "_id": each["id"], "audio": each["audio"]} for each in clips], root / "corpus" / "test"
    )
    write(
        [{"modality": "image", "_id": each["id"], "image": each["image"]} for each in images], root / "queries" / "test"
    )
    lines = [f"{image}\t{clip}\t1" for clip, image in CLIPS.items()]
    lines.append(f"{IMAGES[0]}\tm0-{IMAGES[1]}\t0")
    (root / "qrels").mkdir()
    (root / "qrels" / "test.tsv").write_text("\n".join(["query-id\tcorpus-id\tscore", *lines, ""]))
    return [str(root)]


def json_lines(root: Path, images: Items, clips: Items) -> list[str]:
    """Pairs as JSON lines, the tables named one by one."""
    write(images, root / "corpus" / "test")
    write(clips, root / "queries" / "test")
    (root / "qrels.jsonl").write_text("".join(f"{json.dumps(pair)}\n" for pair in PAIRS))
    return [*map(str, root.glob("*/*.parquet")), str(root / "qrels.jsonl")]


def image_and_audio_ids(root: Path, images: Items, clips: Items) -> list[str]:
    """As deep9539/flickr-audio-image, whose images have a caption that is not what each clip says."""
    write([each | {"text": "the first caption"} for each in images], root / "images" / "train")
    write(clips, root / "audio" / "train")
    write([{"image_id": image, "audio_id": clip} for clip, image in CLIPS.items()], root / "qrels" / "train")
    card(root, "train", "audio", "images", "qrels")
    return [str(root)]


def saved(root: Path, images: Items, clips: Items) -> list[str]:
    """Three splits of one ``save_to_disk``."""
    tables = {"corpus": data_set(images), "queries": data_set(clips), "qrels": data_set(PAIRS)}
    datasets.DatasetDict(tables).save_to_disk(root)
    return [str(root)]


def saved_apart(root: Path, images: Items, clips: Items) -> list[str]:
    for name, items in (("corpus", images), ("queries", clips), ("qrels", PAIRS)):
        datasets.DatasetDict({"test": data_set(items)}).save_to_disk(root / name)
    return [str(root)]


def of_languages(root: Path, images: Items, clips: Items) -> list[str]:
    """Tables of two languages, of which one is named; the pairs have the name of the language alone."""
    for language in ("en", "de"):
        for name, items in ((f"{language}-corpus", images), (f"{language}-queries", clips), (language, PAIRS)):
            write(items[: 2 if language == "de" else None], root / name / "test")
    card(root, "test", "en-corpus", "en-queries", "en", "de-corpus", "de-queries", "de")
    return [str(root)]


FORMS = [audio_to_image, image_to_audio, json_lines, image_and_audio_ids, saved, saved_apart, of_languages]
Form = Callable[..., list[str]]


@pytest.mark.parametrize("form", FORMS)
def test_every_clip_is_of_its_image(tmp_path: Path, images: Items, clips: Items, form: Form) -> None:
    sources = form(tmp_path / "set", images, clips)
    config = "en" if form is of_languages else None
    prepared = prepare_hub(sources, tmp_path / "m.parquet", config=config, language="en")
    split = "train" if form is image_and_audio_ids else "test"
    assert prepared.clips == {split: 6}
    assert prepared.images == {split: 3}
    assert prepared.problems.counts() == {"missing": 0, "empty": 0, "extra": 0}
    manifest = Manifest.read(prepared.manifest)
    found = {manifest.clip_path(row).read_bytes(): row.image_id for row in manifest}
    assert found == {each["audio"]["bytes"]: CLIPS[each["id"]] for each in clips}
    media = {each["id"]: each["image"]["bytes"] for each in images}
    assert all(manifest.image_path(row).read_bytes() == media[row.image_id] for row in manifest)
    assert {(row.text, row.language) for row in manifest} == {(None, "en")}
    assert verify(manifest, workers=1) == []
    if form is image_to_audio:
        assert any("1 of relevance 0" in note for note in prepared.notes)


def test_words_of_the_clips_are_kept(tmp_path: Path, images: Items, clips: Items) -> None:
    spoken = [each | {"text": f"words of {each['id']}", "speaker": f"s{n}"} for n, each in enumerate(clips)]
    prepare_hub(audio_to_image(tmp_path / "set", images, spoken), tmp_path / "m.jsonl")
    rows = list(Manifest.read(tmp_path / "m.jsonl"))
    assert [(row.text, row.speaker) for row in rows] == [(f"words of {name}", f"s{n}") for n, name in enumerate(CLIPS)]


def test_what_has_no_counterpart_is_counted(tmp_path: Path, images: Items, clips: Items) -> None:
    """Ids that no table has are missing; items of no pair are extra: a corpus may hold images that nobody describes."""
    pairs = [*PAIRS[:3], PAIRS[3] | {"score": 0}, PAIRS[0] | {"query-id": "gone"}, PAIRS[1] | {"corpus-id": "lost"}]
    sources = audio_to_image(tmp_path / "set", images, clips, pairs)
    with pytest.raises(SaySeeError, match=r"1 missing clip \(gone.*1 missing image \(lost.*--allow-missing 2"):
        prepare_hub(sources, tmp_path / "m.jsonl")
    prepared = prepare_hub(sources, tmp_path / "m.jsonl", allow_missing=2)
    assert prepared.clips == {"test": 3}
    assert [name.split(" of ")[0] for name in prepared.problems.extra["images"]] == [IMAGES[2]]
    assert [name.split(" of ")[0] for name in prepared.problems.extra["clips"]] == list(CLIPS)[3:]
    assert not list((tmp_path / "m.files").rglob(f"*{IMAGES[2]}*"))


def test_a_clip_of_two_images_becomes_two_rows(tmp_path: Path, images: Items, clips: Items) -> None:
    pairs = [*PAIRS, PAIRS[0] | {"corpus-id": IMAGES[1]}, PAIRS[0]]
    prepared = prepare_hub(audio_to_image(tmp_path / "set", images, clips, pairs), tmp_path / "m.jsonl")
    assert prepared.clips == {"test": 7}
    of_image = {row.image_id for row in Manifest.read(prepared.manifest) if "-" in Path(row.clip).name}
    assert of_image == {IMAGES[1]}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pairs": [*PAIRS, PAIRS[0] | {"score": "x"}]}, r"test-00000-of-00001\.parquet row 7: score .*'x'"),
        ({"pairs": [*PAIRS, PAIRS[0] | {"query-id": ""}]}, r"row 7"),
        ({"clips": "twice"}, r"row 7: the id 'm0-000000391895'"),
    ],
)
def test_tables_that_contradict_themselves_are_rejected(
    tmp_path: Path, images: Items, clips: Items, change: dict[str, Any], message: str
) -> None:
    clips += [clips[0]] * ("clips" in change)
    pairs = [pair | {"score": str(pair["score"])} for pair in change.get("pairs", PAIRS)]
    with pytest.raises(ManifestError, match=message):
        prepare_hub(audio_to_image(tmp_path / "set", images, clips, pairs), tmp_path / "m.jsonl")


def test_an_unknown_direction_or_set_of_tables_is_rejected(tmp_path: Path, images: Items, clips: Items) -> None:
    for name, items in (("a", images), ("b", clips), ("qrels", PAIRS)):
        write(items, tmp_path / "set" / name / "test")
    with pytest.raises(ManifestError, match="queries"):
        prepare_hub([tmp_path / "set"], tmp_path / "m.jsonl")
    with pytest.raises(SaySeeError, match=r"en, de.*--config"):
        prepare_hub(of_languages(tmp_path / "two", images, clips), tmp_path / "m.jsonl")
    [folder] = audio_to_image(tmp_path / "named", images, clips)
    with pytest.raises(SaySeeError, match=r"corpus, qrels, queries.*--config"):
        prepare_hub([folder], tmp_path / "m.jsonl", config="nope")
    with pytest.raises(ManifestError, match="--audio-column"):
        prepare_hub([folder], tmp_path / "m.jsonl", config="corpus")
    (tmp_path / "set" / "b" / "test-00000-of-00001.parquet").unlink()
    with pytest.raises(ManifestError, match="clips"):
        prepare_hub([tmp_path / "set"], tmp_path / "m.jsonl")


def test_a_missing_shard_of_the_corpus_is_reported(tmp_path: Path, images: Items, clips: Items) -> None:
    sources = audio_to_image(tmp_path / "set", images, clips)
    (tmp_path / "set" / "corpus" / "test-00001-of-00002.parquet").unlink()
    with pytest.raises(SaySeeError, match=r"test-00001-of-00002: no such file"):
        prepare_hub(sources, tmp_path / "m.jsonl")


def test_a_damaged_table_is_reported(tmp_path: Path, images: Items, clips: Items) -> None:
    sources = audio_to_image(tmp_path / "set", images, clips)
    for name in ("corpus/test-00001-of-00002", "queries/test-00000-of-00001"):
        path = tmp_path / "set" / f"{name}.parquet"
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        with pytest.raises(SaySeeError, match=rf"{path.name}: damaged"):
            prepare_hub(sources, tmp_path / "m.jsonl")


def test_ids_of_two_splits_may_begin_anew(tmp_path: Path, images: Items, clips: Items) -> None:
    (tmp_path / "set").mkdir()
    for split, image, clip in (("val", images[0], clips[0]), ("test", images[1], clips[2])):
        for name, item in (
            ("corpus", image | {"id": "0"}),
            ("queries", clip | {"id": "0"}),
            ("qrels", {"query-id": "0", "corpus-id": "0", "score": 1}),
        ):
            data_set([item]).to_parquet(tmp_path / "set" / f"{name}-{split}.parquet")
    prepare_hub([tmp_path / "set"], tmp_path / "m.jsonl")
    rows = Manifest.read(tmp_path / "m.jsonl").rows
    assert {row.split: row.image_id for row in rows} == {"val": "val/0", "test": "test/0"}
    assert len({row.image for row in rows}) == 2


def test_a_model_is_scored_on_it_with_two_commands(
    tmp_path: Path, images: Items, clips: Items, capsys: pytest.CaptureFixture[str], finished_run: Path
) -> None:
    model = str(finished_run / "best")
    [folder] = audio_to_image(tmp_path / "set", images, clips)
    to = str(tmp_path / "spokencoco-test.parquet")
    assert main(["data", "hub", folder, "--to", to, "--language", "en", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["splits"] == {"test": {"images": 3, "clips": 6}}
    assert main(["evaluate", model, to, "--json"]) == 0
    scored = json.loads(capsys.readouterr().out)
    assert (scored["overall"]["images"], scored["overall"]["clips"]) == (3, 6)
