"""Several models in one table: paired differences in closed form, seeds as one row, MTEB's names, speech and text."""

from __future__ import annotations

import csv
import io
import math
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from saysee.data.manifest import Manifest, Row
from saysee.errors import SaySeeError
from saysee.evaluation.comparison import Comparison, System
from saysee.evaluation.protocols import EvaluationResult, evaluate, evaluate_vectors, mteb_measures
from saysee.evaluation.recall import retrieval_measures, retrieval_ranks
from saysee.evaluation.table import Table, csv_text, number

IMAGES, EACH = 20, 2


def corpus(images: int = IMAGES, each: int = EACH) -> Manifest:
    rows = [Row(f"{i}_{n}.wav", f"{i}.png", f"i{i:02d}", "test") for i in range(images) for n in range(each)]
    return Manifest(rows, "/nowhere")


def result(right: list[bool]) -> EvaluationResult:
    """Of a model that finds exactly these clips at the first place, and puts the others on the next image."""
    rows = corpus()
    eye = np.eye(IMAGES)
    speech = [eye[n // EACH if hit else (n // EACH + 1) % IMAGES] for n, hit in enumerate(right)]
    return evaluate_vectors(np.array(speech), eye, rows, resamples=200)


def facts(seed: int, **settings: Any) -> dict[str, Any]:
    return {"data": {"name": "c"}, "recipe": {"training": {"seed": seed, "steps": 5}, "denoising": settings}}


def test_two_identical_models_differ_by_exactly_nothing() -> None:
    rng = np.random.default_rng(0)
    one = result(list(rng.random(IMAGES * EACH) < 0.5))
    line = Comparison(["c"], [System("a", [one]), System("b", [one])]).lines[1]
    for name in ("mean_R@1", "speech_to_image_R@1", "image_to_speech_R@10", "image_to_speech_nDCG@10"):
        assert [line[f"{name}_difference{end}"] for end in ("", "_low", "_high")] == [0, 0, 0]
    assert line["mean_R@1_low"] < line["mean_R@1"] < line["mean_R@1_high"], "a test without spread would say nothing"


def test_a_model_that_is_better_on_every_query_is_better_in_every_resample() -> None:
    better, worse = result([True] * IMAGES * EACH), result([False] * IMAGES * EACH)
    lines = Comparison(["c"], [System("worse", [worse]), System("better", [better])]).lines
    assert "mean_R@1_difference" not in lines[0]
    for name in ("mean_R@1", "speech_to_image_R@1", "image_to_speech_R@1"):
        assert [lines[1][f"{name}_difference{end}"] for end in ("", "_low", "_high")] == [100, 100, 100]


def test_the_paired_interval_is_that_of_resampling_the_differences_by_image() -> None:
    """By hand: images drawn with replacement, both clips with each, and the mean of the clips' differences."""
    rng = np.random.default_rng(1)
    first, second = (list(rng.random(IMAGES * EACH) < share) for share in (0.4, 0.7))
    line = Comparison(["c"], [System("a", [result(first)]), System("b", [result(second)])]).lines[1]
    difference = 100 * (np.array(second, float) - np.array(first, float)).reshape(IMAGES, EACH).mean(axis=1)
    draws = np.random.default_rng(2).integers(0, IMAGES, (20_000, IMAGES))
    low, high = np.percentile(difference[draws].mean(axis=1), [2.5, 97.5])
    name = "speech_to_image_R@1_difference"
    assert line[name] == pytest.approx(difference.mean())
    assert line[f"{name}_low"] == pytest.approx(low, abs=3)
    assert line[f"{name}_high"] == pytest.approx(high, abs=3)


def test_the_numbers_of_a_fixed_score_matrix() -> None:
    """Three clips against three images; scores are the cosines, as the image vectors are the axes."""
    scores = np.array([[0.8, 0.6, 0.0], [0.6, 0.0, 0.8], [0.0, 0.6, 0.8]])
    found = evaluate_vectors(scores, np.eye(3), corpus(3, 1), resamples=0)
    line = Comparison(["c"], [System("m", [found])], mteb=True).lines[0]
    assert line["speech_to_image_R@1"] == pytest.approx(200 / 3)  # clip 1 has its image last
    assert line["image_to_speech_R@1"] == pytest.approx(
        100 / 3
    )  # image 1: 0 and 2 score above; image 2: a tie is wrong
    assert line["mean_R@1"] == pytest.approx(50)
    assert line["image_to_speech_ndcg_at_10"] == pytest.approx((1 + 1 / 2 + 1 / math.log2(3)) / 3)
    assert (line["clips"], line["images"], line["speech_to_image_R@5"]) == (3, 3, 100)


def test_runs_that_differ_by_seed_alone_are_one_row_with_mean_and_deviation() -> None:
    shares = ([True] * 30 + [False] * 10, [True] * 20 + [False] * 20, [True] * 40)
    results = [result(share) for share in shares]
    systems = [
        System("base", [results[2]]),
        System("cmd-s0", [results[0]], facts=facts(0, share=0.5)),
        System("other", [results[1]], facts=facts(1, share=0.25)),  # another recipe
        System("cmd-s1", [results[1]], facts=facts(1, share=0.5)),
        System("again", [results[0]], facts=facts(0, share=0.5)),  # the same seed again is no further seed
    ]
    comparison = Comparison(["c"], systems)
    assert [line["model"] for line in comparison.lines] == ["base", "cmd-s*", "other", "again"]
    line = comparison.lines[1]
    assert line["seeds"] == 2
    assert line["speech_to_image_R@1"] == pytest.approx(62.5)
    assert line["speech_to_image_R@1_deviation"] == pytest.approx(25 / math.sqrt(2))
    assert line["speech_to_image_R@1_difference"] == pytest.approx(-37.5)
    assert "speech_to_image_R@1_deviation" not in comparison.lines[0]
    assert "62.5 ± 17.7" in comparison.tables()[0].to_markdown()


def test_models_of_other_queries_are_not_compared() -> None:
    other = evaluate_vectors(np.eye(3), np.eye(3), corpus(3, 1))
    with pytest.raises(SaySeeError, match="second"):
        Comparison(["c"], [System("first", [result([True] * 40)]), System("second", [other])]).tables()


def test_mtebs_measures_are_those_of_a_naive_full_matrix() -> None:
    rng = np.random.default_rng(3)
    images, image_of_clip = rng.normal(size=(15, 8)), np.repeat(np.arange(15), 4)
    speech = images[image_of_clip] + 1.5 * rng.normal(size=(60, 8))
    found = mteb_measures(retrieval_measures(retrieval_ranks(speech, images, image_of_clip), resamples=0))
    matrix = (speech / np.linalg.norm(speech, axis=1, keepdims=True)) @ (
        images / np.linalg.norm(images, axis=1, keepdims=True)
    ).T
    relevant = image_of_clip[:, None] == np.arange(15)
    for way, scores, right in (("speech_to_image", matrix, relevant), ("image_to_speech", matrix.T, relevant.T)):
        order = np.argsort(-scores, axis=1)
        hits = np.take_along_axis(right, order, axis=1)
        for k in (1, 5, 10):
            assert found[way][f"hit_rate_at_{k}"] == pytest.approx(hits[:, :k].any(axis=1).mean())
            shares = hits[:, :k].sum(axis=1) / hits.sum(axis=1)
            assert found[way][f"recall_at_{k}"] == pytest.approx(shares.mean())
        gain = 1 / np.log2(np.arange(2, 12))
        best = np.array([gain[: min(10, count)].sum() for count in hits.sum(axis=1)])
        assert found[way]["ndcg_at_10"] == pytest.approx(((hits[:, :10] * gain).sum(axis=1) / best).mean())
    assert found["image_to_speech"]["hit_rate_at_1"] > 2 * found["image_to_speech"]["recall_at_1"]


class Reader:
    """A model with a text encoder whose vectors are laid down by file name and text."""

    def __init__(self, vectors: dict[str, list[float]], has_text: bool = True) -> None:
        self.vectors, self.has_text = vectors, has_text

    def encode(self, items: Any, **options: Any) -> Any:
        return np.array([self.vectors[item.name if isinstance(item, Path) else item] for item in items])

    encode_speech = encode_images = encode_text = encode


def test_speech_and_text_find_each_other_with_each_text_once_and_ties_against_the_system() -> None:
    texts = ["A dog.", "a dog", "two cats", None, "a red square"]
    rows = [Row(f"{n}.wav", f"{n}.png", str(n), "test", text) for n, text in enumerate(texts)]
    x, y, z = np.eye(3).tolist()
    vectors = {f"{n}.png": x for n in range(5)}
    vectors |= {"0.wav": x, "1.wav": y, "2.wav": y, "3.wav": z, "4.wav": z}
    vectors |= {"A dog.": x, "two cats": y, "a red square": y}  # "a dog" is not encoded: it is the same text
    found = evaluate(Reader(vectors), Manifest(rows, "/nowhere"), progress=False, resamples=0).speech_text
    assert found is not None
    assert (found.clips, found.texts, found.clips_without_text) == (4, 3, 1)
    assert found.speech_to_text["R@1"] == 25  # clip 0; clip 1 is nearer to others, 2 is tied with the square, 4 is last
    # Of "a dog", clip 0 is first; of "two cats" clip 1 is tied with the right one.
    assert found.text_to_speech["R@1"] == pytest.approx(100 / 3)
    assert evaluate(Reader(vectors, False), Manifest(rows, "/nowhere"), progress=False).speech_text is None
    constant = Reader(dict.fromkeys(vectors, x))
    flat = evaluate(constant, Manifest(rows, "/nowhere"), progress=False, resamples=0).speech_text
    assert flat is not None
    assert flat.speech_to_text["R@1"] == flat.text_to_speech["R@1"] == 0
    table = Comparison(["c"], [System("m", [evaluate(Reader(vectors), Manifest(rows, "/n"), progress=False)])]).tables()
    assert "S→T R@1" in table[1].headings
    assert any("1 clips" in note for note in table[1].notes)


def test_a_table_in_latex_and_markdown_escapes_names() -> None:
    name = r"a_b & 50% $x$ #1 {y} ~^\z|w <v> [0]"
    table = Table("100 %\nof it", ["model", "R@1 (95 %)"], [[name, number(-1.25, 2, interval=(-2, 0.5))], ["*", "–"]])
    latex = table.to_latex().splitlines()
    assert latex[0] == "% 100 % of it"
    assert latex[2:4] == [r"\begin{tabular}{lr}", r"\toprule"]
    assert latex[4] == r"model & R@1 (95 \%) \\"
    cells = latex[6].removesuffix(r" \\").split(" & ")
    assert cells[0].startswith(r"a\_b \& 50\% \$x\$ \#1 \{y\} \textasciitilde{}\textasciicircum{}\textbackslash{}z")
    assert cells[-1] == r"$-$1.25 ($-$2.00 to 0.50)"
    assert latex[7] == r"{*} & -- \\"
    assert latex[-2:] == [r"\bottomrule", r"\end{tabular}"]
    for line in latex[4:8]:  # one separator that is not escaped, and braces that close
        bare = line.replace(r"\&", "")
        assert bare.count("&") == 1 or not bare.endswith(r"\\")
        assert line.replace(r"\{", "").count("{") == line.replace(r"\}", "").count("}")
    assert table.to_markdown().splitlines()[2].count(" | ") == 1
    assert r"\z\|w" in table.to_markdown()


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="pdflatex is not installed")
def test_the_latex_compiles(tmp_path: Path) -> None:
    every = "".join(chr(code) for code in range(32, 127)) + "é ü ß ± → – − · …"
    rows = [[every, number(-1.25, interval=(-2, 0.5))], ["[0]", "–"], ["*", number(3, spread=0.1)]]
    table = Table(every, ["model", "R@1 (95 %)"], rows, notes=[every], sections=[1])
    (tmp_path / "t.tex").write_text(
        r"\documentclass{article}\usepackage{booktabs}\begin{document}" + f"\n{table.to_latex()}\n" + r"\end{document}"
    )
    words = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "t.tex"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, errors="replace")
    assert done.returncode == 0, done.stdout[-2000:]


def test_csv_has_numbers_as_they_are_and_no_column_that_is_empty() -> None:
    text = csv_text([{"a": 'x,"y"', "b": 1 / 3, "c": None}, {"a": "z", "d": 2}])
    assert list(csv.DictReader(io.StringIO(text))) == [
        {"a": 'x,"y"', "b": repr(1 / 3), "d": ""},
        {"a": "z", "b": "", "d": "2"},
    ]
