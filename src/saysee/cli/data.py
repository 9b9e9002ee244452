"""``saysee data``: make or check a manifest. The verbs of corpora are the functions that read them."""

import functools
import inspect
import re
from collections.abc import Callable
from importlib import import_module
from inspect import Parameter
from pathlib import Path
from typing import Any

from saysee.cli.printing import Result, print_message


class Reader:
    """The verb of ``prepare_NAME`` in ``saysee.data.corpora.NAME``, loaded when it is called: ``--help`` stays quick.

    ``summary`` is the docstring until then, ``positional`` the parameter that is no flag, ``flags`` have another name.
    """

    def __init__(self, name: str, summary: str, positional: str = "", **flags: str) -> None:
        self.__doc__ = summary
        self.name, self._positional, self._flags = name, positional, flags

    def load(self) -> Callable[..., Result]:
        """The verb: all parameters of the function are flags, except for the positional one."""
        prepare = getattr(import_module(f"saysee.data.corpora.{self.name}"), f"prepare_{self.name}")
        given = inspect.signature(prepare).parameters
        names = {self._flags.get(name, name): name for name in given}

        @functools.wraps(prepare)
        def verb(**values: Any) -> Result:
            prepared = prepare(**{names[name]: value for name, value in values.items()})
            for note in prepared.notes:
                print_message(note)
            return Result(prepared.to_dict(), [prepared.to_line()])

        for flag, name in names.items():
            verb.__doc__ = re.sub(rf"^( +){name}:", rf"\1{flag}:", verb.__doc__ or "", flags=re.MULTILINE)
        hints = verb.__annotations__
        verb.__annotations__ = {flag: hints[name] for flag, name in names.items()}
        kinds = dict.fromkeys(given, Parameter.KEYWORD_ONLY) | {self._positional: Parameter.POSITIONAL_OR_KEYWORD}
        parameters = [given[name].replace(name=flag, kind=kinds[name]) for flag, name in names.items()]
        verb.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        return verb


READERS = [
    Reader("flickr8k", "Prepare Flickr8k with its spoken captions, in English or another language."),
    Reader("spokencoco", "Prepare SpokenCOCO, in its own split or in Karpathy's."),
    Reader("places", "Prepare the Places audio captions."),
    Reader("folder", "Prepare a folder of your own clips and images.", "folder", table="csv"),
    Reader("hub", "Prepare a data set of the Hugging Face hub, or WebDataset tars.", "sources", splits="split"),
]


def scenes(
    *,
    to: Path,
    images: int = 3000,
    val_images: int | None = None,
    test_images: int | None = None,
    languages: str = "en",
    seed: int = 0,
    workers: int | None = None,
) -> Result:
    """Make the embedded corpus: drawn scenes with synthesized speech.

    Args:
        to: folder of the corpus
        images: number of images, with five clips each in each language
        val_images: how many of them are for validation (default: one in twenty)
        test_images: how many of them are for testing (default: three in twenty)
        languages: of the captions, separated by commas: en, de, es, tr
        seed: the same seed gives the same corpus
        workers: number of processes (default: one per CPU core)
    """
    from saysee.data.scenes.corpus import build_scenes

    sizes: dict[str, Any] = {"images": images, "val_images": val_images, "test_images": test_images}
    spoken = [name.strip() for name in languages.split(",")]
    manifest = build_scenes(to, **sizes, seed=seed, languages=spoken, workers=workers)
    return Result({"manifest": str(manifest)}, [str(manifest)])


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
    failure = f"{len(problems)} of its files cannot be used; fix them, or write a manifest without them by --to"
    return Result(values, table, failures=[f"{manifest}: {failure}"])
