"""What messages are written with: hints, and values in few words (rule P4)."""

from __future__ import annotations

from anyio_workflows._messages import nearest, short_repr, shortened

from .hostile import HUGE, LONG


def test_nearest_names_the_closest_or_all_or_none():
    assert nearest("rnak", ["rank", "url"]) == "did you mean 'rank'?"
    assert nearest("zzz", ["url", "rank"]) == "known: rank, url"
    assert nearest("zzz", []) == "there are none"


def test_p4_hints_compare_nothing_long_and_list_no_multitude() -> None:
    assert nearest(LONG, ["first", "second"]) == "known: first, second"
    assert nearest("frist", ["first", LONG]) == "did you mean 'first'?"
    assert len(nearest("x", (f"name{n}" for n in range(100_000)))) < 1000
    assert nearest("x", [LONG]) == "there are none"


def test_p4_a_short_text_of_anything() -> None:
    class Talks:
        def __repr__(self) -> str:
            return LONG

    class Fails:
        def __repr__(self) -> str:
            raise RecursionError

    for value in [
        HUGE,
        -HUGE,
        LONG,
        [HUGE] * 1000,
        {LONG: HUGE},
        {HUGE},
        Talks(),
        Fails(),
        b"x" * 10**6,
    ]:
        assert len(short_repr(value)) < 600
    assert short_repr(HUGE) == "<int of 24001 bits>"
    assert short_repr(12) == "12"
    assert shortened("abcdefghijkl", 9) == "abc...jkl"
