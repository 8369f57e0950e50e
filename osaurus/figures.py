"""What the engine has counted, and what it holds at the moment: plain values, for any thread."""

from attrs import field, frozen

# Ends of the intervals that durations are counted in, in seconds; the last interval has no end.
TO_FIRST_TOKEN = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
BETWEEN_TOKENS = (
    *(0.005, 0.01, 0.015, 0.02, 0.03, 0.04, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5),
    *(1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0),
)


@frozen
class Durations:
    """How long something took, many times: how often within each interval, and in seconds altogether."""

    counts: tuple[int, ...]
    total: float


@frozen(kw_only=True)
class ModelCounts:
    """What was counted of one model since the server was started; it only grows.

    Cached tokens are those of prompts that had been read before. A row of whose prompt there were some is a hit of the
    prefix cache, any other a miss.
    """

    name: str
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    prefix_hits: int
    prefix_misses: int
    to_first_token: Durations
    between_tokens: Durations


@frozen(kw_only=True)
class Figures:
    """How it stands: rows by what they do, and memory in bytes.

    `rows_nbytes` is what the caches of rows may grow to, `models_nbytes` what the weights of each model take.
    """

    waiting: int = 0
    reading: int = 0
    writing: int = 0
    parked: int = 0
    models_nbytes: dict[str, int] = field(factory=dict)
    rows_nbytes: int = 0
    prefixes_nbytes: int = 0
    prefix_files_nbytes: int = 0
    memory_limit: int = 0
