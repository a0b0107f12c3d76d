"""The events of the hand-written programs."""

from __future__ import annotations

import attrs


@attrs.frozen(kw_only=True)
class CountDown:
    left: int


@attrs.frozen(kw_only=True)
class Turn:
    left: int


@attrs.frozen(kw_only=True)
class Ping:
    left: int


@attrs.frozen(kw_only=True)
class Pong:
    left: int


@attrs.frozen(kw_only=True)
class Progress:
    number: int


@attrs.frozen(kw_only=True)
class Done:
    result: int | None = None


@attrs.frozen(kw_only=True)
class Item:
    number: int


@attrs.frozen(kw_only=True)
class Scored:
    score: int


@attrs.frozen(kw_only=True)
class GroupScored:
    score: int


@attrs.frozen(kw_only=True)
class Question:
    number: int


@attrs.frozen(kw_only=True)
class Answer:
    number: int


@attrs.define(kw_only=True)
class Group:
    first: int
    size: int
    scored: list[Scored] = attrs.Factory(list)
