"""How it goes, in numbers that Prometheus reads.

Exchanges are counted as they end. Everything else is counted where it happens, on the engine thread, and read when
somebody asks: nothing here is on the way of a token. Every label has few values: routes as the table has them, and
models that are installed.
"""

import platform
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from importlib.metadata import PackageNotFoundError, version
from itertools import accumulate

from attrs import define, field
from prometheus_client import CollectorRegistry, Info, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString
from twisted.web.http import Request

from .. import __version__
from ..figures import BETWEEN_TOKENS, TO_FIRST_TOKEN, Durations, Figures, ModelCounts
from ..serving.scheduler import Scheduler
from .answers import header
from .exchange import Exchange


@define(eq=False)
class Metrics(Collector):
    """Counts exchanges, and tells all there is in the registry: the engine's figures and counts, of the moment."""

    _registry: CollectorRegistry
    _scheduler: Scheduler
    _figures: Callable[[], Figures]
    _counts: Callable[[], Sequence[ModelCounts]]
    _ended: Counter[tuple[str, str]] = field(factory=Counter, init=False)

    def __attrs_post_init__(self) -> None:
        Info("osaurus_build", "Versions of what is running.", registry=self._registry).info(
            {"version": __version__, "python": platform.python_version(), "mlx": _version("mlx")}
        )
        ProcessCollector(registry=self._registry)
        self._registry.register(self)

    def ended(self, exchange: Exchange) -> None:
        """Count an exchange."""
        self._ended[exchange.route, str(exchange.status)] += 1

    def metrics(self, request: Request) -> bytes:
        """Tell how it goes, for Prometheus."""
        try:
            encode, content_type = choose_encoder(header(request, b"Accept"))
        except (TypeError, ValueError):
            # It asks for a version that is none.
            encode, content_type = choose_encoder("")
        request.setHeader("Content-Type", content_type)
        return encode(self._registry)

    def collect(self) -> Iterable[Metric]:
        """Return what is known here, for the registry."""
        requests = CounterMetricFamily(
            "osaurus_requests",
            "Requests that were answered, by route and status; 499: the client had gone by then.",
            labels=["endpoint", "status"],
        )
        for labels, times in self._ended.items():
            requests.add_metric(labels, times)
        yield requests
        figures = self._figures()
        yield GaugeMetricFamily(
            "osaurus_engine_up", "1 while answers can be generated, else 0.", float(self._scheduler.problem is None)
        )
        yield GaugeMetricFamily(
            "osaurus_queue_depth",
            "Requests that wait for a model or for memory, and answers that wait for their turn to read.",
            self._scheduler.waiting + figures.waiting,
        )
        yield _gauges(
            "osaurus_rows",
            "Answers that the engine has, by what they do.",
            "state",
            {
                "waiting": figures.waiting,
                "reading": figures.reading,
                "writing": figures.writing,
                "parked": figures.parked,
            },
        )
        yield _gauges(
            "osaurus_memory_bytes",
            "Memory by what it is for; rows: what they may grow to; limit: what there is for all three.",
            "kind",
            {
                "models": sum(figures.models_nbytes.values()),
                "rows": figures.rows_nbytes,
                "prefixes": figures.prefixes_nbytes,
                "limit": figures.memory_limit,
            },
        )
        yield _gauges("osaurus_model_bytes", "What each model in memory takes.", "model", figures.models_nbytes)
        yield _gauges(
            "osaurus_prefix_cache_bytes",
            "What is kept of prompts and answers that were read already.",
            "tier",
            {"memory": figures.prefixes_nbytes, "disk": figures.prefix_files_nbytes},
        )
        yield from _counted(self._counts())


def _counted(models: Sequence[ModelCounts]) -> Iterable[Metric]:
    yield CounterMetricFamily(
        "osaurus_prefix_cache_hits",
        "Answers of whose prompt something had been read before.",
        sum(model.prefix_hits for model in models),
    )
    yield CounterMetricFamily(
        "osaurus_prefix_cache_misses",
        "Answers of whose prompt nothing had been read before.",
        sum(model.prefix_misses for model in models),
    )
    prompt = CounterMetricFamily("osaurus_prompt_tokens", "Tokens of prompts.", labels=["model"])
    cached = CounterMetricFamily(
        "osaurus_cached_tokens", "Those of them that had been read before and were not read again.", labels=["model"]
    )
    completion = CounterMetricFamily(
        "osaurus_completion_tokens", "Tokens of answers, counted as they are written.", labels=["model"]
    )
    first = HistogramMetricFamily(
        "osaurus_time_to_first_token_seconds",
        "From a request to the first token of its answer, everything that it waits for included.",
        labels=["model"],
    )
    between = HistogramMetricFamily(
        "osaurus_inter_token_seconds",
        "Between the tokens of an answer; those that come at once share the time that they took.",
        labels=["model"],
    )
    for model in models:
        prompt.add_metric([model.name], model.prompt_tokens)
        cached.add_metric([model.name], model.cached_tokens)
        completion.add_metric([model.name], model.completion_tokens)
        first.add_metric([model.name], *_buckets(TO_FIRST_TOKEN, model.to_first_token))
        between.add_metric([model.name], *_buckets(BETWEEN_TOKENS, model.between_tokens))
    yield from (prompt, cached, completion, first, between)


def _gauges(name: str, meaning: str, label: str, values: dict[str, int]) -> Metric:
    family = GaugeMetricFamily(name, meaning, labels=[label])
    for of, value in values.items():
        family.add_metric([of], value)
    return family


def _buckets(bounds: tuple[float, ...], durations: Durations) -> tuple[list[tuple[str, float]], float]:
    """Return a histogram's buckets, each with all below its bound, and its sum."""
    ends = map(floatToGoString, (*bounds, float("inf")))
    return list(zip(ends, map(float, accumulate(durations.counts)), strict=True)), durations.total


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""
