"""The command line: each verb is a typed function that returns a :class:`~saysee.cli.printing.Result`.

Exit codes: 0 done; 2 an error of the user, explained in one line; 130 interrupted. A verb imports what it needs when
it is called, so that ``saysee --help`` is quick.
"""

import os
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from saysee.cli import data, evaluate, explain, printing, search, serve, studies, train
from saysee.cli.printing import Result
from saysee.errors import ConfigError, SaySeeError, did_you_mean
from saysee.log import configure_command_line
from saysee.signals import EXIT_INTERRUPTED
from saysee.version import __version__

VERBS: dict[str, Callable[..., Result | Iterator[Result] | None] | data.Reader] = {
    "data scenes": data.scenes,
    **{f"data {reader.name}": reader for reader in data.READERS},
    "data verify": data.verify,
    "train": train.train,
    "evaluate": evaluate.evaluate,
    "ablate": studies.ablate,
    "overhead": studies.overhead,
    "reconstruction": studies.reconstruction,
    "robustness": studies.robustness,
    "card": train.card,
    "convert speechclip": train.speechclip,
    "index": search.index,
    "index-check": search.index_check,
    "index-compact": search.index_compact,
    "search": search.search,
    "explain": explain.explain,
    "serve": serve.serve,
    "demo": studies.demo,
}
_OLD_NAMES = {"data hf": "data hub"}


class Call(NamedTuple):
    """A verb's function and its arguments."""

    function: Callable[..., Result | Iterator[Result] | None]
    arguments: dict[str, Any]
    json: bool


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command line, the words after ``saysee`` (None: of this process), and returns the exit code."""
    # By default OpenMP's threads spin while they wait. Beside the process of a loader on few cores that made a training
    # step two to ten times slower; sleeping threads cost nothing measurable. Read when torch is loaded.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # oneDNN keeps its compiled kernels of the last 1,024 shapes. Batches of speech hardly ever have the same shape, so
    # these only filled memory: half a gigabyte in sixteen steps of a small HuBERT.
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "32")
    configure_command_line()
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        call = parse([word for word in words if word != "--debug"])
        if call is None:
            return printing.EXIT_DONE
        if call.function is not train.train and int(os.environ.get("WORLD_SIZE") or 1) > 1:
            raise ConfigError("only 'saysee train' runs in several processes; start other verbs without torchrun")
        result = call.function(**call.arguments)
        results = [result] if isinstance(result, Result) else result or ()
        return max((printing.print_result(each, call.json) for each in results), default=printing.EXIT_DONE)
    except (SaySeeError, OSError) as error:
        if "--debug" in words:
            raise
        printing.print_message(_message(error))
        return printing.EXIT_MISTAKE
    except KeyboardInterrupt:
        printing.print_message("interrupted; what is finished is kept")
        return EXIT_INTERRUPTED


def parse(words: Sequence[str]) -> Call | None:
    """The call that a command line asks for; None if it asks for help or the version, which are printed.

    Raises ConfigError if the verb is unknown, or its arguments are wrong.
    """
    rest = deque(words)
    group = rest.popleft() if rest and any(name.startswith(f"{rest[0]} ") for name in VERBS) else ""
    word = rest.popleft() if rest else ""
    name = f"{group} {word}".strip()
    name = _OLD_NAMES.get(name, name)
    if name in VERBS:
        from saysee.cli.parsing import Verb

        found = VERBS[name]
        function = found.load() if isinstance(found, data.Reader) else found
        verb = Verb(name, function)
        if not {"-h", "--help"} & set(rest):
            return Call(function, *verb.parse(rest))
        print(verb.help())
        return None
    if name == "--version":
        print(f"saysee {__version__}")
        return None
    if word in ("-h", "--help"):
        print(_help(group))
        return None
    if not word:
        raise ConfigError(f"give a verb; '{f'saysee {group}'.strip()} --help' lists them")
    raise ConfigError(f"unknown verb {name!r}{did_you_mean(name, VERBS)}; see 'saysee --help'")


def _help(group: str) -> str:
    """The list of all verbs, or of those of a group."""
    verbs = {name: function.__doc__ or "" for name, function in VERBS.items() if name.startswith(group)}
    listed = "\n".join(f"  {name:<19}{text.splitlines()[0]}" for name, text in verbs.items())
    return f"""usage: {f"saysee {group}".strip()} VERB ...

Say what you want to see, and find the image; show an image, and find the speech.

{listed}

'saysee VERB --help' describes a verb. Every verb takes --json, which prints the result as JSON, and --debug, which
shows the traceback of an error."""


def _message(error: SaySeeError | OSError) -> str:
    if isinstance(error, SaySeeError):
        return str(error)
    return f"{error.filename}: {error.strerror}" if error.filename else str(error.strerror or error)
