"""From words to arguments: what a function's signature promises is what the command line takes."""

from __future__ import annotations

import inspect
import re
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal

import pytest

from saysee.cli import VERBS, main, parse
from saysee.cli.data import Reader
from saysee.cli.parsing import Verb
from saysee.errors import ConfigError
from saysee.search.service.settings import Limits, ServiceSettings


def sample(
    model: str,
    file: Sequence[str] = (),
    *,
    to: Path,
    count: int = 3,
    share: float | None = None,
    name: str | None = None,
    how: Literal["fast", "good"] | None = None,
    k: int = 1,
    for_: str = "",
    tag: Sequence[str] = (),
    part: Sequence[Path] = (),
    metadata: tuple[Path, ...] = (),
    record: float | bool = False,
    write: bool = False,
    overrides: tuple[str, ...] = (),
    command: str = "",
) -> None:
    """Do it.

    With care.

    Args:
        model: the model
        file: files
        to: the output
        count: how many
        share: the share of 50%
        name: the name
        how: the way
        k: hits
        for_: purpose
        tag: a tag
        part: a file
        metadata: files
        record: seconds
        write: whether to write
    """


def strict(model: str, *, rate: float = 1.0) -> None:
    """Take no overrides.

    Args:
        model: the model
        rate: the rate
    """


def given(*words: str, function: Any = sample) -> dict[str, Any]:
    """The arguments that differ from the defaults."""
    parsed = Verb("sample", function).parse(words)
    defaults = {name: parameter.default for name, parameter in inspect.signature(function).parameters.items()}
    return {
        name: value for name, value in parsed[0].items() if name != "command" and value not in ([], (), defaults[name])
    }


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("", {}),
        ("--count 5 -k 2 --for x", {"count": 5, "k": 2, "for_": "x"}),
        ("--count=5 -k2", {"count": 5, "k": 2}),
        ("--count -3 --share -0.5", {"count": -3, "share": -0.5}),
        ("--name -x --share 1e3", {"name": "-x", "share": 1000.0}),
        ("--name [a] --for null --tag {b} --tag 3", {"name": "[a]", "for_": "null", "tag": ["{b}", "3"]}),
        ("--name null", {"name": "null"}),
        ("--name= --for a=b", {"name": "", "for_": "a=b"}),
        ("--how good", {"how": "good"}),
        ("a b", {"file": ["a", "b"]}),
        ("a --tag x b --write c", {"file": ["a", "b", "c"], "tag": ["x"], "write": True}),
        ("null [a] {b:c} 1 *", {"file": ["null", "[a]", "{b:c}", "1", "*"]}),
        ("--part null --metadata [a] null", {"part": [Path("null")], "metadata": (Path("[a]"), Path("null"))}),
        ("a -- -b --write", {"file": ["a", "-b", "--write"]}),
        ("-", {"file": ["-"]}),
        ("--metadata a -b --write", {"metadata": (Path("a"), Path("-b")), "write": True}),
        ("--part a --part b c", {"file": ["c"], "part": [Path("a"), Path("b")]}),
        ("--metadata a --metadata b", {"metadata": (Path("a"), Path("b"))}),
        ("--record", {"record": True}),
        ("--record 4 --write", {"record": 4.0, "write": True}),
        ("--record --write", {"record": True, "write": True}),
        ("--a.b 3 x --c=4 --d -1", {"file": ["x"], "overrides": ("--a.b=3", "--c=4", "--d=-1")}),
        ("--count 1 --count 2", {"count": 2}),
    ],
)
def test_words_become_arguments(words: str, expected: dict[str, Any]) -> None:
    assert given("m", "--to", "out", *words.split()) == {"model": "m", "to": Path("out"), **expected}


def test_a_file_whose_name_begins_with_a_dash_is_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("-song.wav").touch()
    assert given("m", "-song.wav", "--to", "-out") == {"model": "m", "file": ["-song.wav"], "to": Path("-out")}


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ("--to x", ["MODEL"]),
        ("", ["MODEL", "--to"]),
        ("m --to", ["--to"]),
        ("m --to --count 3", ["--to"]),
        ("m --to x --count y", ["--count", "'y'"]),
        ("m --to x --count 1.5", ["--count", "1.5"]),
        ("m --to x --count null", ["--count"]),
        ("m --to x --share null", ["--share", "'null'"]),
        ("m --to x --share much", ["--share", "'much'"]),
        ("m --to x --record y", ["--record", "'y'"]),
        ("m --to x --how bad", ["--how", "'bad'", "fast", "good"]),
        ("m --to x --write=yes", ["--write"]),
        ("m --to x --metadata", ["--metadata"]),
    ],
)
def test_a_wrong_argument_is_named_in_one_line(words: str, named: list[str]) -> None:
    with pytest.raises(ConfigError) as raised:
        given(*words.split())
    message = str(raised.value)
    assert "\n" not in message
    assert "saysee sample --help" in message
    assert all(name in message for name in named), message


def test_an_unknown_flag_is_named_with_the_closest_one_and_the_verb_s_help() -> None:
    for words in (["m", "--rat", "3"], ["m", "--rate", "1", "--rat=3"]):
        with pytest.raises(ConfigError, match=r"'--rat'.*'--rate'.*saysee sample --help"):
            given(*words, function=strict)
    with pytest.raises(ConfigError, match="extra"):
        given("m", "extra", function=strict)


def test_the_command_line_itself_is_an_argument() -> None:
    parsed = Verb("sample", sample).parse(["m", "--to", "a b"])
    assert parsed[0]["command"] == "saysee sample m --to 'a b'"


def test_help_shows_each_flag_with_its_default() -> None:
    text = " ".join(Verb("sample", sample).help().split())
    for part in ("MODEL --to PATH [FILE ...]", "--count N how many (default: 3)", "50%", "{fast,good}", "With care."):
        assert part in text, part
    assert "--overrides" not in text


@pytest.mark.parametrize("name", VERBS)
def test_every_verb_has_help_for_every_flag(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*name.split(), "--help"]) == 0
    text = capsys.readouterr().out
    verb = VERBS[name]
    parameters = inspect.signature(verb.load() if isinstance(verb, Reader) else verb).parameters
    flags = {
        ("-" if len(flag) == 1 else "--") + flag.rstrip("_").replace("_", "-")
        for flag, parameter in parameters.items()
        if parameter.kind is parameter.KEYWORD_ONLY
    }
    hidden = {"--overrides", "--command"} & flags
    for flag in (flags - hidden) | {"--json", "--debug"}:
        (described,) = re.findall(rf"^  {flag}(?![\w-]).*(?:\n? {{22,}}.*)?", text, re.MULTILINE)
        assert len(described.split()) > 2, flag


def test_the_defaults_of_serve_are_those_of_the_service() -> None:
    flags = {name: parameter.default for name, parameter in inspect.signature(VERBS["serve"]).parameters.items()}
    limits = Limits(**{field.name: flags[f"max_{field.name}"] for field in fields(Limits)})
    names = {"places": "queue", "wait_ms": "wait"}
    for field in fields(ServiceSettings)[:-2]:  # the last two are not flags
        default = limits if field.name == "limits" else flags[names.get(field.name, field.name)]
        assert default == getattr(ServiceSettings(), field.name), field.name


def test_what_each_verb_needs_is_enough_to_call_it() -> None:
    call = parse(["search", "idx", "--text", "a", "b.wav", "--text", "c", "-k3", "--json"])
    assert call is not None
    assert call.json
    assert {"index": "idx", "query": ["b.wav"], "text": ["a", "c"], "k": 3}.items() <= call.arguments.items()
