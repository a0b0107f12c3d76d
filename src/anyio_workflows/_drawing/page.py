"""Pictures for people: a part of a notebook, and a page by itself. Both need no script and no network."""

from __future__ import annotations

import html
from collections.abc import Sequence

from .summary import Row
from .svg import COLOURS

_PAGE = """\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark; }}
body {{ margin: 2rem; font: 15px/1.5 system-ui, sans-serif; background: {light}; }}
h1 {{ font-size: 1.3rem; }}
@media (prefers-color-scheme: dark) {{ body {{ background: {dark}; }} }}
</style>
</head>
<body>
{heading}{body}
</body>
</html>
"""

_CELL = "text-align: left; vertical-align: top; padding: 0.1em 1em 0.1em 0"
_THEMES = (
    ':is([data-jp-theme-light="true"], .vscode-light, html[theme="light"])',
    ':is([data-jp-theme-light="false"], .vscode-dark, html[theme="dark"])',
)
"""Where JupyterLab, VS Code and Colab say whether they are light or dark: they may differ from the system."""


def notebook_part(svg: str, rows: Sequence[Row] = ()) -> str:
    """Return a picture and a table of what is said about it, as an element for notebooks."""
    themes = (
        f"{place} .aw-picture {{{''.join(f'--aw-{name}:{pair[n]};' for name, pair in COLOURS.items())}}}"
        for n, place in enumerate(_THEMES)
    )
    return f"<div><style>{''.join(themes)}</style>{_body(svg, rows)}</div>"


def page(title: str, svg: str, rows: Sequence[Row] = ()) -> str:
    """Return a page with a title, a picture, and a table of what is said about it."""
    light, dark = COLOURS["background"]
    title = _escaped(title)
    heading = "" if rows else f"<h1>{title}</h1>\n"  # the picture of a run has it as its heading
    return _PAGE.format(title=title, heading=heading, body=_body(svg, rows), light=light, dark=dark)


def _body(svg: str, rows: Sequence[Row]) -> str:
    cells = (
        f'<tr><th scope="row" style="{_CELL}; white-space: nowrap">{_escaped(heading)}</th>'
        f'<td style="{_CELL}; white-space: pre-wrap">{_escaped(text)}</td></tr>'
        for heading, text in rows
    )
    table = f'<table style="margin: 0.5em 0">{"".join(cells)}</table>' if rows else ""
    return f'<div style="overflow-x: auto">{svg}</div>{table}'


def _escaped(text: str) -> str:
    """Return a text for HTML; what HTML or UTF-8 has no character for is shown as in Python."""
    shown = (c if c.isprintable() or c in "\n\t" else ascii(c)[1:-1] for c in text)
    return html.escape("".join(shown))
