"""The page about drawing says what is true: its programs run, and its pictures are what they draw.

`python -m tests.drawn` draws them again.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from .drawn import PAGE, PAGE_PICTURES, draw_page
from .running import on_each_backend


@on_each_backend
def test_the_programs_draw_the_pictures_of_the_page(
    backend: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    monkeypatch.chdir(tmp_path)
    draw_page(backend)
    for path in PAGE_PICTURES:
        drawn = (tmp_path / path.name).read_text("utf-8")
        assert drawn == path.read_text("utf-8"), "look at it after 'python -m tests.drawn'"
    [text] = re.findall(r"```text\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)
    printed, legend = capsys.readouterr().out.split("\nLegend: ")
    assert printed == text
    assert "▣ join" in legend


def test_the_page_shows_every_picture_that_is_kept_for_it():
    shown = re.findall(r"!\[.*?\]\((.*?)\)", PAGE.read_text("utf-8"))
    assert [PAGE.parent / one for one in shown] == PAGE_PICTURES
    assert set(PAGE_PICTURES) == set((PAGE.parent / "pictures").iterdir())
