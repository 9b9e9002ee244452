"""Tables of results as text for the terminal, Markdown and LaTeX; and CSV of plain numbers."""

import csv
import io
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table as RichTable
from rich.text import Text

from saysee.files import write_text

NONE = "–"
_LATEX = {character: f"\\{character}" for character in "&%$#_{}"} | {
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}",
    ">": r"\textgreater{}", "|": r"\textbar{}", '"': "''", "[": "{[}", "]": "{]}", "*": "{*}",
    "±": r"$\pm$", "→": r"$\to$", "–": "--", "−": "$-$", "·": r"$\cdot$", "…": r"\dots{}",
}  # fmt: skip
"""Characters that LaTeX reads as commands, or does not have; "[" and "*" only after the end of a row."""


@dataclass(frozen=True)
class Table:
    """Rows of text; rich prints it."""

    title: str  # what it shows
    headings: Sequence[str]  # of the columns
    rows: Sequence[Sequence[str]]  # a cell for each column
    labels: int = 1  # number of first columns that hold words; the others hold numbers
    notes: Sequence[str] = ()  # sentences below it
    sections: Sequence[int] = ()  # numbers of the rows that begin a new section

    def __rich__(self) -> RichTable:
        table = RichTable(title=self.title, caption="\n".join(self.notes) or None, caption_justify="left")
        for number, heading in enumerate(self.headings):
            table.add_column(Text(heading), justify="left" if number < self.labels else "right")
        for number, row in enumerate(self.rows):
            if number in self.sections:
                table.add_section()
            table.add_row(*(Text(cell) for cell in row))  # Text: a name may contain rich's markup
        return table

    def to_markdown(self) -> str:
        """A pipe table without title and notes."""
        lines = [self.headings, ["---" if n < self.labels else "---:" for n in range(len(self.headings))], *self.rows]
        return "\n".join(
            "| " + " | ".join(_one_line(cell).replace("|", "\\|") for cell in line) + " |" for line in lines
        )

    def to_latex(self) -> str:
        """A ``tabular`` of the package booktabs; title and notes are comments."""
        columns = "l" * self.labels + "r" * (len(self.headings) - self.labels)
        lines = [f"% {_one_line(text)}" for text in (self.title, *self.notes, r"needs \usepackage{booktabs}")]
        lines += [rf"\begin{{tabular}}{{{columns}}}", r"\toprule", _latex_row(self.headings), r"\midrule"]
        for number, row in enumerate(self.rows):
            lines += [r"\midrule"] * (number in self.sections) + [_latex_row(row)]
        return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"])


def number(
    value: float | None,
    decimals: int = 1,
    *,
    spread: float | None = None,
    interval: Sequence[float] | None = None,
    sign: bool = False,
) -> str:
    """A cell: ``48.8 ± 0.3 (47.1 to 50.2)``, with the parts that there are; a dash for None."""
    if value is None:
        return NONE
    text = f"{value:{'+' if sign else ''},.{decimals}f}"
    text += "" if spread is None else f" ± {spread:.{decimals}f}"
    return text + ("" if interval is None else f" ({interval[0]:.{decimals}f} to {interval[1]:.{decimals}f})")


def write_tables(
    folder: Path, title: str, tables: Sequence[Table], values: Mapping[str, Any], lines: Sequence[str] = ()
) -> None:
    """Writes ``table.md``, with ``lines`` below the tables, and ``results.json``; the folder need not exist."""
    folder.mkdir(parents=True, exist_ok=True)
    parts = [f"# {title}"]
    for table in tables:
        parts += [f"{table.title}:", table.to_markdown(), *table.notes]
    write_text(folder / "table.md", "\n\n".join([*parts, *lines]) + "\n")
    write_text(folder / "results.json", json.dumps(values, indent=1) + "\n")


def csv_text(lines: Iterable[Mapping[str, Any]]) -> str:
    """CSV with a column for each key that has a value in some line; None is an empty field."""
    lines = list(lines)
    columns = [key for key in dict.fromkeys(key for line in lines for key in line) if any(
        line.get(key) is not None for line in lines
    )]  # fmt: skip
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, columns, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return buffer.getvalue()


def _latex_row(cells: Sequence[str]) -> str:
    minus = [re.sub(r"(?<!\w)-(?=\d)", "−", _one_line(cell)) for cell in cells]
    return " & ".join("".join(_LATEX.get(letter, letter) for letter in cell) for cell in minus) + r" \\"


def _one_line(text: str) -> str:
    """The text without line breaks and other characters that are not printable."""
    return "".join(letter for letter in re.sub(r"\s+", " ", text) if letter.isprintable())
