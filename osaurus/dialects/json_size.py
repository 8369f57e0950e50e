"""How much JSON a text holds, told before it is parsed.

The difficulty is that Python's parser lets nobody else go on until it is through, and that few bytes can keep it busy
for long: 32 MiB of `{},` are eleven million objects and several seconds. So what it would have to make is bounded
before. Values are counted by the marks between them, which is a matter of milliseconds. Within strings the same marks
are punctuation, so where there seem to be too many, strings are taken out and the rest is counted again; what is no
JSON at all is counted right up to where the parser gives up. What is outside of strings is bounded in bytes as well:
whole numbers of thousands of digits take longer than their size says.

A quarter of a second is what parsing may take on a slow machine; both bounds were measured against that. A limit of
bytes alone would refuse long texts, which are parsed in no time, or not keep what is meant to be kept out. A parser
that gives way to others is another dependency, and several times as slow.
"""

MOST_VALUES = 500_000
MOST_BARE = 8 * 2**20
"""How many bytes there may be outside of strings."""

_MARKS = b",:[{"


def check_size(text: bytes) -> None:
    """Raise ValueError for JSON that would take too long to parse."""
    if len(text) <= MOST_BARE and _marks(text) <= MOST_VALUES:
        return
    bare = _without_strings(text)
    if bare is None or _marks(bare) > MOST_VALUES:
        raise ValueError(
            f"has more than {MOST_VALUES:,} values; commas, colons and opening brackets outside of strings are counted"
        )
    if len(bare) > MOST_BARE:
        raise ValueError(f"has more than {MOST_BARE // 2**20} MiB of numbers and white space outside of strings")


def _marks(text: bytes) -> int:
    return len(text) - len(text.translate(None, _MARKS))


def _without_strings(text: bytes) -> bytes | None:
    """Return what is outside of strings; None where there are more strings than there may be values."""
    text = text.replace(b"\\\\", b"").replace(b'\\"', b"")
    if text.count(b'"') > 2 * (MOST_VALUES + 1):
        return None
    return b"".join(text.split(b'"')[::2])
