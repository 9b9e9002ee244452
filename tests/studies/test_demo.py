"""The demo: one report of two trainings, and nothing repeated by a second call."""

from __future__ import annotations

import contextlib
import json
import re
import threading
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
from markupsafe import escape

from saysee import Index
from saysee.cli import main
from saysee.errors import SaySeeError
from saysee.evaluation import localization
from saysee.studies import demo as demo_module
from saysee.studies import full, overhead
from saysee.studies.ablation import study as ablation
from saysee.studies.demo import ROWS, DemoSettings, choose_examples, run_demo
from saysee.studies.report import DemoResult
from saysee.training.trainer import Trainer

SMALL = DemoSettings(
    images=32,
    val_images=4,
    test_images=12,
    other_queries=3,
    recipe_overrides=(
        "--training.steps=4",
        "--training.eval_every=2",
        "--training.checkpoint_every=2",
        "--data.batch_size=16",
        "--data.workers=0",
    ),
)


@pytest.fixture(scope="module")
def one_process() -> Iterator[None]:
    """The demo's steps in this process, which is faster; test_study_processes has the real ones."""

    def train(recipe: Any, recipe_file: Path, what: str) -> dict[str, Any]:
        return Trainer(recipe).fit(resume="auto")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo_module, "train_alone", train)
        patch.setattr(demo_module, "run_alone", lambda function, *arguments: function(*arguments))
        patch.setattr(demo_module, "cpu_shares", lambda most: [])
        yield


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory, one_process: None) -> tuple[Path, DemoResult]:
    folder = tmp_path_factory.mktemp("demo")
    return folder, run_demo(folder, SMALL)


class Page(HTMLParser):
    """Tags of a page, and the addresses that it would fetch."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.sources: list[str] = []
        self.tags: list[str] = []
        self.right = 0
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        values = dict(attrs)
        self.sources += [value for name in ("src", "href") if tag != "use" and (value := values.get(name))]
        self.right += values.get("class") == "right"


def test_the_report_is_one_file_with_scores_curves_queries_and_attention(demo: tuple[Path, DemoResult]) -> None:
    folder, result = demo
    text = (folder / "report.html").read_text(encoding="utf-8")
    page = Page(text)
    assert all(source.startswith(("data:", "#")) for source in page.sources), "the report fetches something"
    assert page.tags.count("audio") == 10 + 3
    assert len([source for source in page.sources if source.startswith("data:image/jpeg")]) >= 10 * 5 + 3
    assert page.tags.count("svg") == 3
    for name, found in result.results.items():
        assert name in text
        assert f"{found.overall.mean_recall_at_1:.2f} (" in text
    for setting in ("batch_size: 16", "temperature: 0.1", "speech: saysee/hubert-nano", "&#34;test_images&#34;: 12"):
        assert setting in text


def test_the_right_image_is_framed_exactly_if_it_ranks_in_the_first_five(demo: tuple[Path, DemoResult]) -> None:
    text = (demo[0] / "report.html").read_text(encoding="utf-8")
    ranks = [int(rank) for rank in re.findall(r"right image at rank (\d+) of 12", text)]
    assert len(ranks) == 10
    assert Page(text).right == sum(rank <= 5 for rank in ranks)


def test_all_rows_have_the_same_data_and_steps(demo: tuple[Path, DemoResult]) -> None:
    folder, result = demo
    metrics = {
        name: [json.loads(line) for line in (folder / "runs" / name / "metrics.jsonl").read_text().splitlines()]
        for name in ROWS
    }
    assert {name: run["steps"] for name, run in result.runs.items()} == dict.fromkeys(ROWS, 4)
    assert {name: run["clips"] for name, run in result.runs.items()} == dict.fromkeys(ROWS, 64)
    assert not any("denoising_loss" in line for name in ("baseline", "SaySee") for line in metrics[name])
    assert any("denoising_loss" in line for line in metrics["CMD"])


def test_a_second_call_repeats_no_training_and_trains_two_at_once(
    demo: tuple[Path, DemoResult], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, first = demo
    made = [folder / "runs" / "CMD" / "best", folder / "scenes", *(folder / "features").rglob("*.values")]
    before = [path.stat().st_mtime_ns for path in made]
    train, together, began = demo_module.train_alone, threading.Barrier(2, timeout=60), list[str]()

    def two_at_once(recipe: Any, recipe_file: Path, what: str) -> dict[str, Any]:
        began.append(what)
        if len(began) < 3:
            together.wait()
        return train(recipe, recipe_file, what)

    monkeypatch.setattr(demo_module, "train_alone", two_at_once)
    monkeypatch.setattr(demo_module, "cpu_shares", lambda most: ["cpu", "cpu"])
    second = run_demo(folder, SMALL)
    assert set(began[:2]) == {"CMD", "SaySee"}, "the longest begin first"
    assert list(second.runs) == list(second.results) == list(ROWS)
    assert [path.stat().st_mtime_ns for path in made] == before
    assert second.runs == first.runs
    assert second.others == first.others
    for name, found in first.results.items():
        assert second.results[name].overall == found.overall
    assert json.loads(json.dumps(second.to_dict()))["scores"].keys() == ROWS.keys()
    again = {"scoring baseline", "scoring SaySee", "scoring CMD", "other queries", "scoring other queries", "index"}
    assert {name for name in first.seconds if first.seconds[name] != second.seconds[name]} == again


def test_other_queries_are_scored_on_the_same_gallery(demo: tuple[Path, DemoResult]) -> None:
    folder, result = demo
    ways = {each.way: each for each in result.others}
    assert ways["in writing"].queries == 60
    assert ways["in writing"].back_at_1 is not None
    assert ways["in writing"].recall_at_1 > 80, "clip-nano reads captions; chance is 8"
    assert ways["the same, fast"].queries == 3
    assert ways["the same, fast"].back_at_1 is None, "most images have no query here"
    text = (folder / "report.html").read_text(encoding="utf-8")
    for each in result.others:
        assert str(escape(each.way)) in text
        assert 0 <= each.recall_at_1 <= each.recall_at_10 <= 100


def test_the_test_split_is_indexed_with_examples_of_queries(demo: tuple[Path, DemoResult]) -> None:
    folder, result = demo
    index = Index.open(folder)  # as saysee serve does
    assert index.counts() == {"image": 12, "clip": 60}
    assert index.about.model == str(folder / "runs" / result.best / "best")
    examples = index.examples()
    kinds = [item.kind for item in examples]
    assert (kinds.count("clip"), kinds.count("image")) == (6, 2)
    assert len({item.metadata["image_id"] for item in examples}) == 8, "each of another scene"
    found = result.results[result.best]
    assert found.speech is not None
    row = next(number for number, row in enumerate(result.test.rows) if f"scenes/{row.clip}" == examples[0].path)
    hits = index.search(vectors=found.speech[row : row + 1], k=1, kind="clip")[0]
    assert hits[0].path == str(folder / examples[0].path)


@pytest.mark.parametrize(("right", "expected"), [(0, 0), (36, 4), (60, 6)])
def test_as_many_examples_are_answered_right_as_of_the_whole_split(
    demo: tuple[Path, DemoResult], right: int, expected: int
) -> None:
    test = demo[1].test
    answered = np.arange(len(test)) * 7 % 60 < right  # 7 and 60 have no common factor
    clips, images = choose_examples(test, answered, Random(0))
    place = {row.clip: number for number, row in enumerate(test.rows)}
    assert [bool(answered[place[clip]]) for clip in clips] == [True] * expected + [False] * (6 - expected)
    assert len(images) == 2
    assert (clips, images) == choose_examples(test, answered, Random(0))


def test_a_folder_of_another_seed_is_an_error(demo: tuple[Path, DemoResult]) -> None:
    with pytest.raises(SaySeeError, match="seed 0"):
        run_demo(demo[0], DemoSettings(seed=1))


MORE = {
    "overhead": "--batch-sizes 8 --depths 1 --rounds 1",
    "robustness": "--clips 3 --conditions telephone=8",
    "direct-or-transcribed": "--clips 3 --conditions telephone=8",
    "ablation": "--seeds 1 --rows baseline",
    "learning-curve": "--seeds 1 --sizes 0.5,1 --rows baseline",
    "corpus-of-languages": "--images 24 --val-images 4 --test-images 8",
    "languages": "--seeds 1 --rows 'all languages'",
}
"""What makes a study of ``saysee demo --full`` small; the last of equal flags counts."""


@pytest.mark.nightly
def test_every_study_of_the_full_demo_runs_on_its_corpus_and_models(
    demo: tuple[Path, DemoResult], ctc_folder: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(words: list[str], output: Path, folder: Path) -> int:
        """As ``run_saysee``, in this process, which is faster."""
        monkeypatch.chdir(folder)
        with output.open("w", encoding="utf-8") as file, contextlib.redirect_stdout(file):
            return main(words)

    recognizer = ctc_folder("wav2vec2")

    def small(study: full.Study) -> full.Study:
        words = [study.command.replace(f"cascade:{full.RECOGNIZER}", f"cascade:{recognizer}"), MORE.get(study.name, "")]
        words += SMALL.recipe_overrides if "nano" in study.command else ()
        return study._replace(command=" ".join(words))

    monkeypatch.setattr(full, "run_saysee", run)
    monkeypatch.setattr(localization, "MAX_IMAGES", 2)
    monkeypatch.setattr(ablation, "train_alone", demo_module.train_alone)
    for module in (ablation, overhead):
        monkeypatch.setattr(module, "run_alone", demo_module.run_alone)
    folder = demo[0]
    result = full.run_studies(folder, demo[1].seconds["training CMD"], [small(study) for study in full.STUDIES])
    assert result.failures == []
    assert list(result.records) == [study.name for study in full.STUDIES]
    page = result.page.read_text(encoding="utf-8")
    links = re.findall(r"\]\((.*?)\)", page)
    assert all((folder / "studies" / link).is_file() for link in links)
    for file in ("localization.txt", "ablation/table.md", "ablation/plot-sizes.svg", "languages/table.md"):
        assert file in links
    for name in ("reconstruction", "overhead", "robustness", "direct-or-transcribed"):
        assert {f"{name}/table.md", f"{name}.txt"} <= set(links)
        assert any(link.startswith(f"{name}/") and link.endswith(".png") for link in links)
