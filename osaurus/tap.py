"""`twistd osaurus`: its options, and the one place where everything is put together."""

import os
import re
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from threading import Thread
from typing import Any, ClassVar, TypeVar

from attrs import evolve
from prometheus_client import CollectorRegistry
from twisted.application.service import IService
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import serverFromString
from twisted.internet.protocol import ProcessProtocol
from twisted.internet.threads import deferToThreadPool
from twisted.logger import Logger
from twisted.python import usage
from twisted.python.threadpool import ThreadPool

from . import settings, sources
from .chat import ApiError
from .discovery import Announcement, default_folder
from .engine.backend import private_folder
from .engine.runner import Engine, MLXRunner
from .engine.tally import Tally
from .foundation.runner import NAME as FOUNDATION
from .foundation.runner import FoundationRunner
from .foundation.sdk import installed_sdk
from .greeting import Greeting
from .library.file_digests import FileDigests
from .library.hub_cache import HubCache
from .library.store import ModelStore
from .listening import BadEndpoint, check
from .live import Live, patience, rules
from .logs.output import LogOutput, Wanted, log_output
from .notify import notify
from .reload import Reload
from .service import CannotStart, OsaurusService, Port
from .serving.blocking import AT_ONCE
from .serving.catalogue import Catalogue
from .serving.idleness import Idleness
from .serving.limits import Limits
from .serving.pulls import Pulls
from .serving.residency import Residency
from .serving.runners import Runner, RunnerForEach
from .serving.scheduler import Scheduler
from .signals import Signals
from .web.access import AccessLog
from .web.api import Api
from .web.connections import Connections
from .web.front import Front
from .web.generating import Generating
from .web.guard import Guard
from .web.library import Library
from .web.metrics import Metrics
from .web.page import Page
from .web.pulling import Pulling

log = Logger()

T = TypeVar("T")

# Tokenising, templates, schemas, hashing and the disk; several, so that long ones do not hold up the others: a model
# whose template or schemas take long has half of them.
BLOCKING_THREADS = 2 * AT_ONCE

# Of the machine's memory, unless it is set. The rest is for what cannot be foreseen: copies while caches are put
# together, buffers that MLX keeps for use again, and everybody else.
MEMORY_SHARE = 0.75

# What Twisted says of an option that it does not know.
UNKNOWN_OPTION = re.compile(r"option --(\S+) not recognized")

# One at a time runs an engine; the others are for taking over from one that is stuck.
ENGINE_THREADS = 4


class Options(usage.Options):
    """The settings, as options of the command line."""

    synopsis = "[options]"
    longdesc = "Serve MLX language models over the OpenAI and the Ollama HTTP APIs."

    optParameters: ClassVar[list[list[Any]]] = [
        ["config", None, None, "A TOML file with settings."],
        *(
            [setting.option.removeprefix("--"), None, None, setting.meaning]
            for setting in settings.table()
            if setting.name not in ("listen", *settings.FLAGS)
        ),
    ]
    optFlags: ClassVar[list[list[Any]]] = [
        [setting.option.removeprefix("--"), None, setting.meaning]
        for setting in settings.table()
        if setting.name in settings.FLAGS
    ]

    def __init__(self) -> None:
        super().__init__()
        self._endpoints: list[str] = []
        self.settings = settings.Settings()
        self.sources = sources.Sources({}, {})

    def parseOptions(self, options: Sequence[str] | None = None) -> None:
        """Take the command line apart; of an option that is unknown the nearest is named."""
        try:
            super().parseOptions(options)
        except usage.UsageError as error:
            unknown = UNKNOWN_OPTION.search(str(error))
            if unknown is None:
                raise
            known = [setting.option for setting in settings.table()]
            hint = sources.did_you_mean(f"--{unknown[1]}", known, "--")
            raise usage.UsageError(f"There is no option --{unknown[1]}{hint}") from error

    def opt_listen(self, endpoint: str) -> None:
        """A Twisted server endpoint string to listen on instead of the port on 127.0.0.1; can be given repeatedly."""
        self._endpoints.append(endpoint)

    def postOptions(self) -> None:
        """Gather the settings; bad ones end the process: twistd's usage, a page of it, has nothing to say of them."""
        given = {name.replace("-", "_"): value for name, value in self.items() if value is not None}
        # A flag that is not given says nothing: a variable of the environment may.
        given = {name: value for name, value in given.items() if name not in settings.FLAGS or value}
        if self._endpoints:
            given["listen"] = self._endpoints
        # As it is now: what is read again later is what the server was started with.
        self.sources = sources.Sources(given, dict(os.environ))
        try:
            found = self.sources.gather()
            sources.refuse_without_effect(found)
            _check_endpoints(found)
            sources.refuse_open_doors(found.settings)
        except sources.BadSetting as error:
            raise CannotStart(f"osaurus: {error}") from error
        self.settings = found.settings
        if found.file is not None:
            # It is the same file wherever twistd goes from here (`--rundir`).
            self.sources = evolve(self.sources, options={**given, "config": str(found.file)})


def makeService(options: Options) -> IService:
    """Put the server together. Nothing is started, and no thread made to run, before the service is."""
    reactor = _reactor()
    chosen = options.settings
    _make_folders(chosen, options.parent or {})
    for warning in options.sources.unknown_variables():
        log.warn("{warning}", warning=warning)
    engine_pool = ThreadPool(1, ENGINE_THREADS, "engine")
    blocking_pool = ThreadPool(1, BLOCKING_THREADS, "blocking")
    # It takes its time: nobody should wait behind it.
    writing_pool = ThreadPool(1, 1, "writing")
    for pool in (engine_pool, blocking_pool, writing_pool):
        # A thread that is stuck must not keep the process from ending.
        pool.threadFactory = partial(Thread, daemon=True)  # type: ignore[assignment]  # it is only called

    def blocking(function: Callable[..., T], *args: Any) -> Deferred[T]:
        return deferToThreadPool(reactor, blocking_pool, function, *args)

    def elsewhere(function: Callable[[], object]) -> Deferred[None]:
        """Run a function in a thread of its own, which keeps the process from nothing; fires when it is through."""
        through: Deferred[None] = Deferred()

        def run() -> None:
            try:
                function()
            finally:
                reactor.callFromThread(through.callback, None)

        Thread(target=run, name="end", daemon=True).start()
        return through

    tally = Tally()
    make = partial(make_engine, chosen, writing_pool.callInThread, tally)
    runner = MLXRunner(engine_pool.callInThread, reactor.callFromThread, make, reactor)
    store = ModelStore(
        chosen.models_dir,
        HubCache(chosen.hub_cache) if chosen.hub_cache else None,
        digests=FileDigests(chosen.cache_dir / "digests.json"),
    )
    runners: Runner = runner
    sdk = installed_sdk()
    if sdk is not None:
        # A thread in Apple's library that does not come back must not keep the process from ending.
        foundation = FoundationRunner(
            lambda run: Thread(target=run, name=FOUNDATION, daemon=True).start(), reactor.callFromThread, sdk
        )
        runners, store.foundation = RunnerForEach(runner, {FOUNDATION: foundation}), foundation.model
    # Should the engine be gone by then, there is nothing to unload.
    residency = Residency(
        reactor, lambda name: runners.unload(name).addErrback(lambda failure: failure.trap(ApiError)), chosen.keep_alive
    )
    limits = Limits(reactor, chosen.max_concurrent, chosen.requests_per_minute)
    scheduler = Scheduler(store, runners, residency, limits, blocking)
    guard = Guard(**rules(chosen))
    # It begins when the threads do.
    writing_pool.callInThread(store.sweep)
    catalogue = Catalogue(store, blocking)
    library = Library(catalogue, scheduler, blocking, reactor)
    pulls = Pulls(chosen.models_dir, partial(_spawn, reactor), reactor)
    pulling = Pulling(pulls, catalogue, blocking, reactor)
    metrics = Metrics(CollectorRegistry(), scheduler, lambda: runner.figures, tally.counts)
    generating = Generating(scheduler, blocking, guard, reactor, chosen.log_content)
    api = Api(generating, library, pulling, scheduler, metrics, Page.of_package(), reactor)
    idleness = Idleness(reactor, reactor.stop, patience(chosen))
    connections = Connections(
        Front(api.resource(), guard, reactor, metrics, AccessLog()),
        guard,
        reactor,
        idleness,
        most=chosen.max_connections,
        max_body=chosen.max_body,
    )
    output = _log_output(chosen, options.parent or {}, reactor)
    live = Live(guard, limits, residency, connections, idleness, generating, output)
    ports = [Port(endpoint, serverFromString(reactor, endpoint), connections) for endpoint in chosen.endpoints]
    return OsaurusService(
        reactor,
        ports,
        connections,
        scheduler,
        pulls,
        runner,
        engine_pool,
        blocking_pool,
        writing_pool,
        elsewhere,
        chosen.preload,
        Greeting(chosen.models_dir, _url(chosen), catalogue.models).give,
        Announcement(default_folder(), bool(chosen.exposed), chosen.models_dir),
        Reload(chosen, options.sources.find, live.apply, blocking),
        Signals(reactor),
        idleness,
        notify,
        output,
    )


def make_engine(
    chosen: settings.Settings, run_elsewhere: Callable[[Callable[[], object]], object], tally: Tally
) -> Engine:
    """Import MLX and make an engine; on the engine thread, where it takes its second or two from nobody.

    What writes to the disk is handed to `run_elsewhere`.
    """
    from .engine.backend import prepare

    backend = prepare(chosen.cache_dir, chosen.cpu_threads)
    from .engine.mlx_engine import MLXEngine
    from .engine.prefix_files import PrefixFiles
    from .engine.prefixes import PrefixCache

    files = None
    if chosen.prefix_disk:
        try:
            files = PrefixFiles(chosen.cache_dir / "prefixes", chosen.prefix_disk, run_elsewhere)
        except OSError as error:
            log.warn("Nothing is kept of prefixes on disk: {error}", error=error)
    limit = chosen.memory_limit or int(backend.memory_bytes * MEMORY_SHARE)
    return MLXEngine(backend, PrefixCache(chosen.prefix_cache, files), limit, chosen.speculation, tally)


def _check_endpoints(found: sources.Found) -> None:
    """Raise BadSetting if one of the endpoints cannot be listened on; before it is asked whom it would let in."""
    for endpoint in found.settings.listen:
        try:
            check(_reactor(), endpoint)
        except BadEndpoint as error:
            raise sources.BadSetting(f"{found.given['listen'].spelling} {endpoint!r} will not do: {error}") from error


def _make_folders(chosen: settings.Settings, twistd: Mapping[str, Any]) -> None:
    """Make what the engine cannot be without, while there is a terminal for what is wrong. Raises CannotStart."""
    if not os.access(chosen.models_dir, os.F_OK):
        # It comes with the first model, unless it was misspelt.
        log.warn("There is no folder {folder} yet, in which models are to be", folder=str(chosen.models_dir))
    elif not chosen.models_dir.is_dir():
        raise CannotStart(f"osaurus: models_dir: {chosen.models_dir} is no folder")
    if twistd.get("uid") is not None or twistd.get("chroot"):
        # The engine makes it: here it would be root's, or elsewhere.
        return
    try:
        private_folder(chosen.cache_dir)
    except OSError as error:
        reason = error.strerror or error
        raise CannotStart(f"osaurus: cache_dir: {chosen.cache_dir} cannot be written to: {reason}") from error


def _log_output(chosen: settings.Settings, twistd: Mapping[str, Any], reactor: Any) -> LogOutput | None:
    """Return where the log goes, by the settings and by twistd's own options."""
    wanted = Wanted(
        format=chosen.log_format,
        level=chosen.log_level,
        file=chosen.log_file,
        file_size=chosen.log_file_size,
        files_kept=chosen.log_files_kept,
    )
    try:
        output = log_output(wanted, twistd)
    except OSError as error:
        raise CannotStart(f"osaurus: the log cannot be written: {error}") from error
    if output is not None and output.file is not None:
        # Signals come between two instructions of whatever runs.
        signal.signal(signal.SIGUSR1, lambda *_: reactor.callFromThread(output.reopen))
    return output


def _reactor() -> Any:
    """Return the reactor; imported late, since `twistd --reactor` chooses it. Typed as each use needs it."""
    from twisted.internet import reactor

    return reactor


def _spawn(reactor: Any, protocol: ProcessProtocol, arguments: list[str]) -> Any:
    """Start a process of this program's Python, with what this process has in its environment."""
    return reactor.spawnProcess(protocol, sys.executable, [sys.executable, *arguments], env=None)


def _url(chosen: settings.Settings) -> str | None:
    """Return where this machine's browsers find the server, None where endpoints say otherwise."""
    return None if chosen.listen else f"http://127.0.0.1:{chosen.port}"
