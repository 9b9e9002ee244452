"""What the demo leaves for a first visit: an index of its test split, with examples of queries to click."""

import random
from dataclasses import replace
from itertools import islice
from typing import Any

from saysee.data.manifest import Manifest, Row
from saysee.encoding.encoder import Encoder
from saysee.evaluation.protocols import numbered_images
from saysee.evaluation.recall import retrieval_ranks
from saysee.search.index.about import INDEX_FOLDER, IndexReport
from saysee.search.index.sources import find_source
from saysee.search.index.updating import update_index
from saysee.studies.report import DemoResult

CLIPS, IMAGES = 6, 2
WORDS = 9  # most words of an example: longer ones do not fit beside each other


def index_test_split(demo: DemoResult) -> IndexReport:
    """Makes the index ``index`` in the demo's folder, or brings it up to date, with the vectors of the evaluation.

    Its examples are six clips and two images of as many scenes, drawn at random by the demo's seed: where there are
    enough, clips of at most nine words whose first object has a shape and a color that no other example's has. Of the
    clips, the share whose own image ranks first is that of the whole split; those come first.
    """
    test, result, images = demo.test, demo.results[demo.best], demo.test.images()
    assert result.speech is not None
    assert result.images is not None
    ranks = retrieval_ranks(result.speech, result.images, numbered_images(test)[1]).speech_to_image
    clips, shown = choose_examples(test, ranks == 1, random.Random(demo.seed))
    marks = {row.clip: "image" for row in test if row.image_id in shown} | dict.fromkeys(clips, "clip")
    # The page marks the words of examples; no other row needs its lists, which are most of the metadata.
    lists = {row.clip: {"objects": None, "words": row.extra["words"] if row.clip in clips else None} for row in test}
    rows = [replace(row, extra={**row.extra, **lists[row.clip], "example": marks.get(row.clip)}) for row in test]
    rows.sort(key=lambda row: clips.index(row.clip) if row.clip in clips else CLIPS)  # examples keep this order
    scenes, manifest = test.root.name, demo.folder / "test.parquet"
    moved = [replace(row, clip=f"{scenes}/{row.clip}", image=f"{scenes}/{row.image}") for row in rows]
    Manifest(moved, demo.folder).write(manifest)
    vectors: Any = {
        ("image", f"{scenes}/{row.image}"): vector for row, vector in zip(images, result.images, strict=True)
    }
    vectors |= {("clip", f"{scenes}/{row.clip}"): vector for row, vector in zip(test, result.speech, strict=True)}
    encoder = Encoder(demo.folder / "runs" / demo.best / "best", device="cpu")
    source = replace(find_source(manifest), vectors=vectors)
    return update_index(encoder, source, demo.folder / INDEX_FOLDER, batch_size=1000)


def choose_examples(test: Manifest, right: Any, draw: random.Random) -> tuple[list[str], set[str]]:
    """The paths of six clips, and the ids of two images; :func:`index_test_split` has the rule.

    ``right`` [N] is whether the own image of each row's clip ranks first.
    """
    order = draw.sample(range(len(test)), len(test))
    wanted = {True: round(CLIPS * float(right.mean()))}
    wanted[False] = CLIPS - wanted[True]
    chosen: dict[bool, list[Row]] = {True: [], False: []}
    seen: set[str] = set()
    for number, varied in [(number, varied) for varied in (True, False) for number in order]:
        row, found = test.rows[number], bool(right[number])
        new = {row.image_id, *(_first_object(row) if varied else ())}
        fits = not varied or len((row.text or "").split()) <= WORDS
        if len(chosen[found]) < wanted[found] and fits and not new & seen:
            chosen[found].append(row)
            seen |= new
    others = (row.image_id for number in order if (row := test.rows[number]).image_id not in seen)
    return [row.clip for row in chosen[True] + chosen[False]], set(islice(dict.fromkeys(others), IMAGES))


def _first_object(row: Row) -> list[str]:
    """Shape and color of the object that is named first."""
    named = next(word["objects"][0] for word in row.extra["words"] if word["objects"])
    return [row.extra["objects"][named][key] for key in ("shape", "color")]
