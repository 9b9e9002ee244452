"""Batches hold what the manifest says, and an interrupted loader resumes with exactly the next one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image

from saysee.data.loader import Batch, SpeechImageLoader
from saysee.data.manifest import Manifest, Row
from saysee.errors import CheckpointError, ConfigError, ManifestError, MediaError

CLIPS = 22


def same(waveform: np.ndarray) -> np.ndarray:
    return waveform


def to_pixels(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(image.resize((8, 8)))).permute(2, 0, 1).float() / 255


def seconds_of(number: int) -> float:
    return 0.1 + 0.05 * (number * 7 % CLIPS)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    root = tmp_path_factory.mktemp("corpus")
    rows = []
    for number in range(CLIPS):
        noise = np.random.default_rng(number).normal(0, 0.1, round(seconds_of(number) * 16_000))
        soundfile.write(root / f"{number}.wav", noise, 16_000)
        image = number // 2
        Image.new("RGB", (8, 8), (image, 0, 0)).save(root / f"{image}.png")
        rows.append(Row(f"{number}.wav", f"{image}.png", f"image {image}", "train"))
    return Manifest(rows, root)


def loader(manifest: Manifest, **changes: Any) -> SpeechImageLoader:
    options: dict[str, Any] = {"batch_size": 4, "seed": 1, "bucket_batches": 3}
    return SpeechImageLoader(manifest, prepare_speech=same, prepare_image=to_pixels, **(options | changes))


def identical(one: list[Batch], other: list[Batch]) -> bool:
    def values(batch: Batch) -> tuple[torch.Tensor, ...]:
        return batch.waveforms, batch.speech_mask, batch.pixels, batch.image_ids, torch.tensor(batch.rows)

    return len(one) == len(other) and all(
        torch.equal(a, b) for x, y in zip(one, other, strict=True) for a, b in zip(values(x), values(y), strict=True)
    )


def test_a_batch_holds_the_clips_and_images_of_its_rows(corpus: Manifest) -> None:
    batches = list(loader(corpus))
    assert len(batches) == len(loader(corpus)) == 5
    for batch in batches:
        assert batch.pixels.shape == (4, 3, 8, 8)
        assert batch.waveforms.dtype == torch.float32
        assert batch.speech_mask.dtype == torch.bool
        assert batch.speech_mask.any(dim=0).all(), "no longer than its longest clip"
        for at, row in enumerate(batch.rows):
            samples, _ = soundfile.read(corpus.clip_path(corpus.rows[row]), dtype="float32")
            mask = batch.speech_mask[at]
            np.testing.assert_array_equal(batch.waveforms[at][mask].numpy(), samples)
            assert mask[: len(samples)].all()
            assert not batch.waveforms[at][~mask].any()
            assert batch.image_ids[at] == row // 2
            assert round(float(batch.pixels[at, 0, 0, 0]) * 255) == row // 2


def test_an_epoch_gives_each_row_once_in_an_order_of_its_own(corpus: Manifest) -> None:
    whole = loader(corpus, drop_last=False)
    epochs = [[batch.rows for batch in whole] for _ in range(2)]
    assert whole.epoch == 2
    assert len(whole) == 6
    for rows in epochs:
        assert sorted(row for batch in rows for row in batch) == list(range(CLIPS))
    assert epochs[0] != epochs[1]
    whole.set_epoch(0)
    assert [batch.rows for batch in whole] == epochs[0]
    assert [batch.rows for batch in loader(corpus, seed=2, drop_last=False)] != epochs[0]


def test_batches_are_of_like_length(corpus: Manifest) -> None:
    def padding(**options: Any) -> float:
        return float(np.mean([1 - batch.speech_mask.float().mean() for batch in loader(corpus, **options)]))

    assert padding(bucket_batches=6) < 0.5 * padding(bucket_batches=1)


def test_a_crop_is_a_stretch_of_the_clip_that_changes_with_the_epoch(corpus: Manifest) -> None:
    cropped = loader(corpus, crop_seconds=0.3)
    starts = []
    for _ in range(2):
        found = {}
        for batch in cropped:
            assert batch.waveforms.shape[1] <= 4800
            for at, row in enumerate(batch.rows):
                samples, _ = soundfile.read(corpus.clip_path(corpus.rows[row]), dtype="float32")
                crop = batch.waveforms[at][batch.speech_mask[at]].numpy()
                assert len(crop) == min(len(samples), 4800)
                start = next(s for s in range(len(samples) - len(crop) + 1) if (samples[s : s + 9] == crop[:9]).all())
                np.testing.assert_array_equal(samples[start : start + len(crop)], crop)
                found[row] = start
        starts.append(found)
    both = [row for row in starts[0] if row in starts[1] and seconds_of(row) > 0.4]
    assert sum(starts[0][row] != starts[1][row] for row in both) > len(both) / 2


def test_augmented_clips_change_with_the_epoch_and_repeat_with_the_seed(corpus: Manifest) -> None:
    def clips(augmenting: SpeechImageLoader) -> dict[int, bytes]:
        return {
            row: batch.waveforms[at][batch.speech_mask[at]].numpy().tobytes()
            for batch in augmenting
            for at, row in enumerate(batch.rows)
        }

    plain, augmenting = clips(loader(corpus, drop_last=False)), loader(corpus, drop_last=False, augment=True)
    first, second = clips(augmenting), clips(augmenting)
    assert clips(loader(corpus, drop_last=False, augment=True)) == first
    for one, other in ((plain, first), (first, second)):
        assert sum(one[row] != other[row] for row in one) > len(one) / 2


@pytest.mark.parametrize(("workers", "resumed_by"), [(0, 0), (2, 2), (2, 0)])
def test_a_resumed_loader_gives_the_remaining_batches_bit_for_bit(
    corpus: Manifest, workers: int, resumed_by: int
) -> None:
    first = loader(corpus, workers=workers, crop_seconds=0.3)
    expected: list[Batch] = []
    states = []
    for _ in range(2):  # two epochs, a state after each batch
        for batch in first:
            expected.append(batch)
            states.append(json.loads(json.dumps(first.state_dict())))
    for taken in (2, 5, 7) if resumed_by == 0 else (3,):  # within an epoch, at its last batch, in the next
        second = loader(corpus, workers=resumed_by, crop_seconds=0.3)
        second.load_state_dict(states[taken - 1])
        rest: list[Batch] = []
        while second.epoch < 2:
            rest += list(second)
        assert identical(rest, expected[taken:])


def test_an_interrupted_epoch_resumes_where_it_was(corpus: Manifest) -> None:
    expected = list(loader(corpus))
    interrupted = loader(corpus, workers=1)
    some = [batch for batch, _ in zip(interrupted, range(2), strict=False)]
    assert interrupted.state_dict()["next_batch"] in (2, 3)
    at = interrupted.state_dict()["next_batch"]
    assert identical(some, expected[:2])
    assert identical(list(interrupted), expected[at:])


def test_iterating_leaves_the_global_random_state_alone(corpus: Manifest) -> None:
    before = torch.get_rng_state()
    list(loader(corpus, crop_seconds=0.3))
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"batch_size": 5}, "batch_size 4, not 5"),
        ({"seed": 3}, "seed 1, not 3"),
        ({"crop_seconds": 0.5}, "crop_seconds"),
    ],
)
def test_a_position_of_another_order_is_an_error(corpus: Manifest, change: dict[str, Any], named: str) -> None:
    state = loader(corpus).state_dict()
    with pytest.raises(CheckpointError, match=named):
        loader(corpus, **change).load_state_dict(state)
    other = Manifest([*corpus.rows[:-1], Row("x.wav", "0.png", "image 0", "train", extra={})], corpus.root)
    soundfile.write(corpus.root / "x.wav", np.random.default_rng(0).normal(0, 0.1, 1600), 16_000)
    with pytest.raises(CheckpointError, match="checksum of clips"):
        loader(other).load_state_dict(state)


def spoiled(corpus: Manifest, root: Path, clips: list[int], images: tuple[int, ...] = ()) -> Manifest:
    """A copy of the corpus whose named files are silent or not images."""
    for path in corpus.root.iterdir():
        (root / path.name).write_bytes(path.read_bytes())
    for number in clips:
        soundfile.write(root / f"{number}.wav", np.zeros(4000), 16_000)
    for number in images:
        (root / f"{number}.png").write_bytes(b"not an image")
    return Manifest(corpus.rows, root)


def error_of(stopped: SpeechImageLoader) -> MediaError:
    try:
        list(stopped)
    except MediaError as error:
        return error.with_traceback(None)  # its frames would keep the workers alive, which pytest.raises does
    return pytest.fail("no file raised an error")


@pytest.mark.parametrize("workers", [0, 1])
def test_a_bad_file_stops_with_an_error_of_one_line(corpus: Manifest, tmp_path: Path, workers: int) -> None:
    stopped = loader(spoiled(corpus, tmp_path, [3]), workers=workers, drop_last=False)
    error = error_of(stopped)
    assert error.code == "silent"
    assert str(tmp_path / "3.wav") in str(error)
    assert "\n" not in str(error)
    at = stopped.state_dict()["next_batch"]  # of the batch with the bad file: once fixed, it resumes there
    soundfile.write(tmp_path / "3.wav", np.random.default_rng(3).normal(0, 0.1, 8000), 16_000)
    assert len(list(stopped)) == len(stopped) - at


@pytest.mark.parametrize("workers", [0, 1])
def test_bad_files_are_skipped_listed_and_remembered(corpus: Manifest, tmp_path: Path, workers: int) -> None:
    manifest = spoiled(corpus, tmp_path, [3], images=(5,))
    skipping = loader(manifest, workers=workers, on_bad_file="skip", drop_last=False)
    rows = sorted(row for batch in skipping for row in batch.rows)
    assert rows == [row for row in range(CLIPS) if row not in (3, 10, 11)]
    assert {Path(path).name for path, _ in skipping.bad_files} == {"3.wav", "5.png"}
    assert all(path in why for path, why in skipping.bad_files)
    again = loader(manifest, on_bad_file="skip", drop_last=False)
    again.load_state_dict(skipping.state_dict())
    assert again.bad_files == skipping.bad_files


def test_a_batch_of_bad_files_only_is_skipped(corpus: Manifest, tmp_path: Path) -> None:
    manifest = spoiled(corpus, tmp_path, list(range(0, CLIPS, 2)))
    (tmp_path / "0.wav").unlink()
    skipping = loader(manifest, batch_size=1, on_bad_file="skip")
    assert sorted(row for batch in skipping for row in batch.rows) == list(range(1, CLIPS, 2))
    assert len(skipping.bad_files) == CLIPS // 2
    assert skipping.epoch == 1


def test_images_are_cached_up_to_the_limit_and_are_the_same(corpus: Manifest, tmp_path: Path) -> None:
    manifest = spoiled(corpus, tmp_path, [])
    size = 3 * 8 * 8 * 4
    cached = loader(manifest, cache_images=4 * size + 1, drop_last=False)
    first = list(cached)
    for image in range(CLIPS // 2):
        (tmp_path / f"{image}.png").unlink()
    with pytest.raises(MediaError):
        list(cached)
    assert len(cached.pixels.kept) == 4
    assert cached.pixels.room == 1
    assert identical(first, list(loader(corpus, drop_last=False)))


def test_processes_share_each_batch(corpus: Manifest) -> None:
    shares = [list(loader(corpus, rank=rank, world_size=2)) for rank in range(2)]
    for one, other, whole in zip(*shares, loader(corpus), strict=True):
        assert sorted(one.rows + other.rows) == sorted(whole.rows)
        assert len(one) == len(other) == 2


def test_lengths_come_from_the_column_seconds(corpus: Manifest, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [Row(r.clip, r.image, r.image_id, r.split, extra={"seconds": seconds_of(n)}) for n, r in enumerate(corpus)]
    expected = [batch.rows for batch in loader(corpus)]
    monkeypatch.setattr("saysee.data.loader.audio_seconds", lambda path: pytest.fail("opened"))
    assert [batch.rows for batch in loader(Manifest(rows, corpus.root))] == expected
    rows[1] = Row("1.wav", "0.png", "image 0", "train", extra={"seconds": "x"})
    with pytest.raises(ManifestError, match=r"1\.wav: seconds is 'x'"):
        loader(Manifest(rows, corpus.root))


@pytest.mark.parametrize(
    "bad",
    [
        {"batch_size": CLIPS + 1},
        {"world_size": 3},
        {"world_size": 2, "on_bad_file": "skip"},
    ],
)
def test_settings_that_do_not_fit_are_named(corpus: Manifest, bad: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(bad)).replace("world_size", "processes")):
        loader(corpus, **bad)
