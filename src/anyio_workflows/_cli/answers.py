"""Answers to questions: given with the command, or by a person."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Protocol

import attrs

from .problems import CommandError
from .texts import Data
from .values import Field, Record


@attrs.define
class GivenAnswers:
    """Answers from arguments: each for one question, in their order; the last one that fits is used again.

    Attributes:
        answers: Pairs of the name of an answer's class, or `None` for any, and `key=value` texts.
    """

    answers: list[tuple[str | None, list[str]]]
    _used: set[int] = attrs.field(factory=set)

    @classmethod
    def of(cls, given: Sequence[Sequence[str]]) -> GivenAnswers:
        """Return those of the arguments `--answer [TYPE] key=value ...`."""
        answers: list[tuple[str | None, list[str]]] = []
        for words in given:
            name = words[0] if words and "=" not in words[0] else None
            answers.append((name, list(words[name is not None :])))
        return cls(answers)

    async def answer_to(self, question: Data) -> Data | None:
        """Return what was given for a question of this type.

        Raises:
            CommandError: If it does not fit.
        """
        fitting = [
            number
            for number, (name, _) in enumerate(self.answers)
            if name in (None, question["answer_type"])
        ]
        if not fitting:
            return None
        number = next((one for one in fitting if one not in self._used), fitting[-1])
        self._used.add(number)
        record = Record.of(question["schema"])
        data = record.read(self.answers[number][1])
        missing = [name for name, one in record.fields.items() if one.required and name not in data]
        if missing:
            raise CommandError(f"--answer lacks {', '.join(missing)}; {record.usage}")
        return data


class Terminal(Protocol):
    """Where a person sees a prompt and types a line."""

    def note(self, text: str) -> None:
        """Tell the person something."""
        ...

    def ask(self, question: Data) -> None:
        """Show the question that is to be answered now."""
        ...

    async def read_line(self, prompt: str, hint: str = "") -> str | None:
        """Return a line; `None` at the end of the input."""
        ...


@attrs.define
class Person:
    """Asks for the fields of an answer, one after the other."""

    terminal: Terminal

    async def answer_to(self, question: Data) -> Data | None:
        """Return what the person typed; `None` if there is no more input."""
        self.terminal.ask(question)
        record = Record.of(question["schema"])
        if not record.fields:
            line = await self.terminal.read_line(f"{question['answer_type']}: ")
            return None if line is None else _free(line)
        data: Data = {}
        for field in record.fields.values():
            value = await self._value_of(field)
            if value is _NO_INPUT:
                return None
            if value is not _LEFT_OUT:
                data[field.name] = value
        return data

    async def _value_of(self, field: Field) -> Any:
        while True:
            hint = str(field.schema.get("description", ""))
            line = await self.terminal.read_line(f"{field}: ", hint)
            if line is None:
                return _NO_INPUT
            if not line and not field.required:
                return _LEFT_OUT
            if field.types == {"boolean"} and line.lower() in _YES_OR_NO:
                return _YES_OR_NO[line.lower()]
            if line or field.types == {"string"}:
                try:
                    return field.read(line)
                except CommandError as error:
                    self.terminal.note(str(error))


_NO_INPUT = object()
_LEFT_OUT = object()
_YES_OR_NO = {"y": True, "yes": True, "true": True, "n": False, "no": False, "false": False}


def _free(line: str) -> Data:
    """Return the data of an answer that may have any fields: a JSON object, or a text as its `response`."""
    if line.startswith("{"):
        try:
            data = json.loads(line)
        except ValueError:
            data = None
        if isinstance(data, dict):
            return data
    return {"response": line}


@attrs.define
class Both:
    """Arguments first, and a person for the rest."""

    given: GivenAnswers
    person: Person

    async def answer_to(self, question: Data) -> Data | None:
        """Return the first answer that there is."""
        data = await self.given.answer_to(question)
        return data if data is not None else await self.person.answer_to(question)
