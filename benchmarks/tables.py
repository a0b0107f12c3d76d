"""A table as text and as Markdown."""

from __future__ import annotations

import textwrap

import attrs


@attrs.define
class Table:
    """Lines of cells under a title.

    Attributes:
        title: The heading.
        columns: The headings of the columns.
        note: How to read the table.
    """

    title: str
    columns: list[str]
    note: str = ""
    lines: list[tuple[str, ...]] = attrs.Factory(list)

    def add(self, *cells: str) -> None:
        """Append a line."""
        assert len(cells) == len(self.columns)
        self.lines.append(cells)

    def as_text(self) -> str:
        """Return it for a terminal, with aligned columns."""
        widths = [max(map(len, column)) for column in zip(self.columns, *self.lines, strict=True)]
        lines = [self.title, "", _aligned(self.columns, widths), "  ".join("-" * w for w in widths)]
        lines += [_aligned(line, widths) for line in self.lines]
        if self.note:
            lines += ["", textwrap.fill(self.note, 100)]
        return "\n".join(lines) + "\n"

    def as_markdown(self) -> str:
        """Return it for a file: text to the left, figures to the right."""
        rule = [":--" if self._is_text(number) else "--:" for number in range(len(self.columns))]
        rows = [self.columns, rule, *self.lines]
        lines = [f"## {self.title}", "", *("| " + " | ".join(row) + " |" for row in rows)]
        if self.note:
            lines += ["", self.note]
        return "\n".join(lines) + "\n"

    def _is_text(self, column: int) -> bool:
        return any(line[column][:1].isalpha() for line in self.lines)


def _aligned(cells: tuple[str, ...] | list[str], widths: list[int]) -> str:
    return "  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip()
