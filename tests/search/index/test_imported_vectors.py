"""Vectors that a user has are indexed from any usual file, and a row that cannot be is named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from media_files import rows
from saysee import Index, SaySeeError
from saysee.search.index.imported_vectors import index_vectors
from saysee.search.index.readers.files import read_files

COUNT, DIMENSION = 12, 24


def index_files(encoder, vectors, ids, to):
    return index_vectors(encoder, read_files(vectors, ids, encoder.dimension), to)


@pytest.fixture
def vectors() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((COUNT, DIMENSION)).astype(np.float32)


def names(count: int = COUNT) -> list[str]:
    return [f"{number}.jpg" for number in range(count)]


def write_ids(path: Path, paths: list[str]) -> Path:
    path.write_text("path\n" + "".join(f'"{name}"\n' for name in paths))
    return path


def stored(place: Path) -> dict[str, np.ndarray]:
    """The vector of each path, which an index keeps in the precision of the file."""
    found = {path: row[1] for (_, path), row in rows(place).items()}
    return {path: np.frombuffer(data, "<f2" if len(data) == 2 * DIMENSION else "<f4") for path, data in found.items()}


def unit(vector: np.ndarray) -> np.ndarray:
    return vector.astype(np.float64) / np.linalg.norm(vector.astype(np.float64))


def array_of(vectors: np.ndarray, kind: pa.DataType) -> pa.Array:
    return pa.array([list(vector) for vector in vectors], pa.list_(pa.float64())).cast(kind)


KINDS = {
    "list of float16": pa.list_(pa.float16()),
    "list of float32": pa.list_(pa.float32()),
    "list of float64": pa.list_(pa.float64()),
    "large list": pa.large_list(pa.float32()),
    "fixed size": pa.list_(pa.float32(), DIMENSION),
    "fixed size of float16": pa.list_(pa.float16(), DIMENSION),
}


@pytest.mark.parametrize("kind", KINDS)
def test_parquet_vectors_of_any_list_are_read(encoder: Any, vectors: np.ndarray, tmp_path: Path, kind: str) -> None:
    table = pa.table({"tags": [["a", "b"]] * COUNT, "emb": array_of(vectors, KINDS[kind]), "path": names()})
    pq.write_table(table, tmp_path / "v.parquet", row_group_size=5)
    report = index_files(encoder, tmp_path / "v.parquet", tmp_path / "v.parquet", tmp_path / "index")
    assert (report.images, report.refused) == (COUNT, [])
    found = stored(tmp_path / "index")
    for name, vector in zip(names(), vectors, strict=True):
        np.testing.assert_allclose(found[name], unit(vector), atol=2e-3 if "16" in kind else 1e-6)
    ((hit,),) = Index.open(tmp_path / "index").search(vectors=vectors[:1], k=1)
    assert hit.metadata == {"tags": ["a", "b"]}


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 0])
@pytest.mark.parametrize("suffix", [".npy", ".parquet"])
def test_one_bad_vector_is_named_and_the_others_are_indexed(
    encoder: Any, photos: Path, tmp_path: Path, bad: float, suffix: str
) -> None:
    images = sorted(path.relative_to(photos).as_posix() for path in photos.rglob("*.png"))
    matrix = encoder.model.encode_images([photos / name for name in images])
    matrix[1, slice(None) if bad == 0 else 3] = bad
    if suffix == ".npy":
        np.save(tmp_path / "v.npy", matrix)
    else:
        pq.write_table(pa.table({"v": array_of(matrix, pa.list_(pa.float32()))}), tmp_path / "v.parquet")
    report = index_files(encoder, tmp_path / f"v{suffix}", write_ids(photos / "ids.csv", images), tmp_path / "index")
    ((path, reason),) = report.refused
    assert path == images[1]
    assert f"v{suffix}: row 2 ({images[1]}): " in reason
    assert report.notes == []  # the others were compared with the model's
    assert report.images == len(images) - 1


def test_rows_of_another_width_or_without_a_vector_are_named(encoder: Any, vectors: np.ndarray, tmp_path: Path) -> None:
    lists: list[Any] = [list(vector) for vector in vectors]
    lists[2], lists[5], lists[7] = lists[2][:-1], None, [*lists[7][:-1], None]
    pq.write_table(pa.table({"v": pa.array(lists, pa.large_list(pa.float64()))}), tmp_path / "v.parquet")
    report = index_files(encoder, tmp_path / "v.parquet", write_ids(tmp_path / "ids.csv", names()), tmp_path / "index")
    assert [path for path, _ in report.refused] == ["2.jpg", "5.jpg", "7.jpg"]
    for (_, reason), words in zip(report.refused, (f"{DIMENSION - 1} dim", "no vector", "nan"), strict=True):
        assert words in reason
    np.testing.assert_allclose(stored(tmp_path / "index")["6.jpg"], unit(vectors[6]), atol=1e-6)


def test_a_small_change_of_a_vector_is_written_and_rounding_is_no_change(
    encoder: Any, vectors: np.ndarray, tmp_path: Path
) -> None:
    def imported(vectors: np.ndarray) -> int:
        np.save(tmp_path / "v.npy", vectors.astype(np.float16))
        ids = write_ids(tmp_path / "ids.csv", names())
        return index_files(encoder, tmp_path / "v.npy", ids, tmp_path / "index").imported

    units = np.stack([unit(vector) for vector in vectors])
    assert (imported(units), imported(units)) == (COUNT, 0)
    units[0, np.abs(units[0]).argmin()] += 3e-4
    assert imported(units) == 1


def test_rows_stay_where_most_vectors_have_become_bad(encoder: Any, vectors: np.ndarray, tmp_path: Path) -> None:
    ids = write_ids(tmp_path / "ids.csv", names())
    np.save(tmp_path / "v.npy", vectors)
    index_files(encoder, tmp_path / "v.npy", ids, tmp_path / "index")
    vectors[1:] = np.nan
    np.save(tmp_path / "v.npy", vectors)
    given = read_files(tmp_path / "v.npy", ids, DIMENSION)
    report = index_vectors(encoder, given, tmp_path / "index")
    assert (report.removed, report.missing.total(), len(report.refused)) == (0, COUNT - 1, COUNT - 1)
    assert index_vectors(encoder, given, tmp_path / "index", allow_removals=True).removed == COUNT - 1
    assert list(stored(tmp_path / "index")) == ["0.jpg"]
    vectors[:] = np.nan
    np.save(tmp_path / "v.npy", vectors)
    with pytest.raises(SaySeeError, match=r"0\.jpg"):
        index_files(encoder, tmp_path / "v.npy", ids, tmp_path / "new")


def test_large_values_are_no_reason_to_refuse_a_vector(encoder: Any, vectors: np.ndarray, tmp_path: Path) -> None:
    np.save(tmp_path / "v.npy", vectors * np.float32(1e30))
    report = index_files(encoder, tmp_path / "v.npy", write_ids(tmp_path / "ids.csv", names()), tmp_path / "index")
    assert (report.images, report.refused) == (COUNT, [])


def test_the_folders_of_clip_retrieval_are_read_in_the_order_of_their_numbers(
    encoder: Any, vectors: np.ndarray, tmp_path: Path
) -> None:
    (tmp_path / "emb/img_emb").mkdir(parents=True)
    (tmp_path / "emb/metadata").mkdir()
    for number in range(COUNT):  # 10 comes after 9, not after 1
        np.save(tmp_path / f"emb/img_emb/img_emb_{number}.npy", vectors[number : number + 1].astype(np.float16))
        table = {
            "image_path": [f"photos/{number}.jpg"],
            "caption": ["a, b; c"],
            "key": [f"{number:05}"],
            "width": [640],
        }
        pq.write_table(pa.table(table), tmp_path / f"emb/metadata/metadata_{number}.parquet")
    report = index_files(encoder, tmp_path / "emb", tmp_path / "emb", tmp_path / "index")
    assert report.images == COUNT
    found = stored(tmp_path / "index")
    for number in range(COUNT):
        np.testing.assert_allclose(found[f"photos/{number}.jpg"], unit(vectors[number]), atol=2e-3)
    again = index_files(encoder, tmp_path / "emb/img_emb", tmp_path / "emb/metadata", tmp_path / "index")
    assert (again.images, again.removed) == (COUNT, 0)
    np.save(tmp_path / "emb/img_emb/img_emb_3.npy", vectors[:2])
    with pytest.raises(SaySeeError, match=r"metadata_3\.parquet: 1 .*2 vectors of .*img_emb_3\.npy"):
        index_files(encoder, tmp_path / "emb", tmp_path / "emb", tmp_path / "other")
    (tmp_path / "emb/metadata/metadata_11.parquet").unlink()
    with pytest.raises(SaySeeError, match=r"11 lines for the 13 vectors"):
        index_files(encoder, tmp_path / "emb", tmp_path / "emb", tmp_path / "other")


ODD = ["a, b.jpg", "c;d.jpg", "e 'f'.jpg", "été.jpg"]
IDS = {
    "ids.csv": "path,caption\n" + "".join(f'"{name}","x, y; z"\n' for name in ODD),
    "semicolons.csv": "sep=;\r\nCaption;Image Path\r\n" + "".join(f'"x, y; z";"{name}"\r\n' for name in ODD),
    "ids.tsv": "url\tcaption\n" + "".join(f"{name}\tx, y; z\n" for name in ODD),
    "ids.txt": "\n".join(ODD),
    "headed.txt": "path\n" + "".join(f"{name}\n" for name in ODD),
    "ids.jsonl": "".join(json.dumps({"caption": "x, y; z", "file_name": name}) + "\n" for name in ODD),
}


@pytest.mark.parametrize("name", [*IDS, "ids.parquet"])
def test_ids_are_read_from_any_usual_table(encoder: Any, vectors: np.ndarray, tmp_path: Path, name: str) -> None:
    if name == "ids.parquet":
        captions = pa.array(["x, y; z"] * len(ODD)).dictionary_encode()
        pq.write_table(pa.table({"caption": captions, "path": pa.array(ODD).cast(pa.string_view())}), tmp_path / name)
    else:
        (tmp_path / name).write_text(IDS[name], newline="")
    np.save(tmp_path / "v.npy", vectors[: len(ODD)])
    index_files(encoder, tmp_path / "v.npy", tmp_path / name, tmp_path / "index")
    found = stored(tmp_path / "index")
    for path, vector in zip(ODD, vectors, strict=False):
        np.testing.assert_allclose(found[path], unit(vector), atol=1e-6)
    ((hit,),) = Index.open(tmp_path / "index").search(vectors=vectors[1:2], k=1)
    captions = [value for title, value in hit.metadata.items() if title.lower() == "caption"]
    assert captions == ([] if name.endswith(".txt") else ["x, y; z"])


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("path,caption\n0.jpg,a\n1.jpg,b, c\n", r"ids\.csv: line 3: 3 cells"),
        ("path,caption\n0.jpg,a\n,b\n", r"ids\.csv: line 3: no path"),
        ("path\n0.jpg\n0.jpg\n", r"ids\.csv: line 3: '0\.jpg'"),
        ("color\nred\nblue\n", r"ids\.csv: .*'path'.*color"),
        ("path\n", r"ids\.csv: 0 lines for the 2 vectors"),
        ("", r"ids\.csv: "),
    ],
)
def test_ids_that_cannot_be_used_are_an_error_with_their_line(
    encoder: Any, vectors: np.ndarray, tmp_path: Path, lines: str, message: str
) -> None:
    np.save(tmp_path / "v.npy", vectors[:2])
    (tmp_path / "ids.csv").write_text(lines)
    with pytest.raises(SaySeeError, match=message):
        index_files(encoder, tmp_path / "v.npy", tmp_path / "ids.csv", tmp_path / "index")


def test_ids_find_images_whose_accents_are_stored_otherwise(encoder: Any, photos: Path, tmp_path: Path) -> None:
    (photos / "work").rename(photos / "U\u0308bung")
    images = [path.relative_to(photos).as_posix() for path in sorted((photos / "U\u0308bung").iterdir())]
    np.save(tmp_path / "v.npy", encoder.model.encode_images([photos / name for name in images]))
    ids = write_ids(photos / "ids.csv", [name.replace("U\u0308", "Ü").replace("/", "\\") for name in images])
    report = index_files(encoder, tmp_path / "v.npy", ids, tmp_path / "index")
    assert report.notes == []  # they were compared with the model's
    assert {path for _, path in rows(tmp_path / "index")} == set(images)
