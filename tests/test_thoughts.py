"""Thoughts are told from the answer, however the text comes."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from osaurus.engine.thoughts import ThoughtScanner, ThoughtTags

TAGS = ThoughtTags("<t>", "</t>")
texts = st.lists(st.sampled_from(["<t>", "</t>", "<", "/", "t", ">", " ", "\n", "a", "b c"]), max_size=12).map("".join)


def scan(pieces: list[str], inside: bool = False) -> tuple[str, str]:
    """All that is thought, and all that is answer."""
    scanner = ThoughtScanner(TAGS, inside)
    told = [*map(scanner.feed, pieces), scanner.flush()]
    return "".join(thought for thought, _ in told), "".join(answer for _, answer in told)


@pytest.mark.parametrize(
    ("text", "inside", "thought", "answer"),
    [
        ("<t>\nWhy?\n</t>\n\nSo.", False, "Why?", "So."),
        ("\n <t>Why?</t>So.", False, "Why?", "So."),
        ("Why?\n</t>\n\nSo.", True, "Why?", "So."),
        ("\n\n</t>\nSo.", True, "", "So."),
        ("So.", False, "", "So."),
        (" So. ", False, "", " So. "),
        ("So <t>not</t> it.", False, "", "So <t>not</t> it."),
        ("<t>Why?</t>So </t> it.", False, "Why?", "So </t> it."),
        ("<t>Why? It never", False, "Why? It never", ""),
        ("Why <t> again</t>So.", True, "Why <t> again", "So."),
        ("a </ b", True, "a </ b", ""),
        ("a </t", True, "a </t", ""),
        ("<t", False, "", "<t"),
        ("", True, "", ""),
    ],
)
def test_thoughts_are_what_is_between_the_tags(text: str, inside: bool, thought: str, answer: str) -> None:
    assert scan([text], inside) == (thought, answer)
    assert scan(list(text), inside) == (thought, answer)


@given(text=texts, cuts=st.sets(st.integers(0, 40)), inside=st.booleans())
def test_how_text_is_cut_makes_no_difference(text: str, cuts: set[int], inside: bool) -> None:
    places = sorted({0, len(text), *(cut for cut in cuts if cut < len(text))})
    assert scan([text[start:end] for start, end in pairwise(places)], inside) == scan([text], inside)


@given(text=texts)
def test_of_an_answer_without_thoughts_nothing_is_lost(text: str) -> None:
    if not text.lstrip().startswith("<t>"):
        assert scan(list(text)) == ("", text)


def test_it_is_known_when_thinking_ends() -> None:
    scanner = ThoughtScanner(TAGS, True)
    scanner.feed("Why?")
    assert scanner.thinking
    scanner.feed("</t>")
    assert not scanner.thinking
