"""Start the servers and run the comparisons that docs/performance.md quotes; what `make bench` does.

    python benchmarks/run.py MODELS_FOLDER [[NAME=]URL=MODEL …] [--llama-server PROGRAM --gguf FILE] [--only load …]
    python benchmarks/run.py MODELS_FOLDER --llama-server PROGRAM --gguf FILE --llama-quantize PROGRAM --only formats

Osaurus, the same without speculation, mlx_lm.server with the same BLAS and weights, and llama.cpp's server if it is
given, on ports of their own; other OpenAI-compatible servers that run already can be named. They take turns; nothing
else should run on the machine.

Servers are started anew for each comparison, Osaurus with an empty cache folder. At its end comes the most memory that
each of them had resident (VmHWM, mapped files included; where there is no /proc, what it has then). With `--json FILE`
the figures for plot.py are written to a file, which is begun anew.
"""

import argparse
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import urlopen

from attrs import frozen

HERE = Path(__file__).parent
BIN = Path(sys.executable).parent
STARTER = "HuggingFaceTB/SmolLM2-135M-Instruct"
MODEL = "smollm2:135m"

# What llama.cpp's quantiser makes of weights, for the comparison of formats.
FORMATS = ("Q8_0", "Q4_0", "Q4_K_M")

# The tokens that llama.cpp's server sets aside in all, and for how many answers at a time. A conversation has one
# context to itself.
LLAMA_LOAD = (16384, 16)
LLAMA_CONVERSATION = (8192, 1)


def settings(models: Path, **more: str) -> dict[str, str]:
    """Return the settings of every Osaurus that is measured here, by name.

    What keeps one client from others' share has no place in a comparison: limits on clients are lifted here.
    """
    lifted = {"max_concurrent": "0", "requests_per_minute": "0"}
    return {"models_dir": str(models), "keep_alive": "-1", **lifted, **more}


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for_port(process: subprocess.Popen[bytes], port: int) -> None:
    """Wait until a process listens. Ends this one if that one ends."""
    for _ in range(600):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        if process.poll() is not None:
            raise SystemExit(f"a server ended with status {process.returncode}")
        time.sleep(0.1)
    raise SystemExit("a server does not listen")


def wait_for_health(url: str) -> None:
    """Wait until a server says that it is well; one that listens may still be loading."""
    for _ in range(600):
        try:
            with urlopen(f"{url}/health"):  # noqa: S310 - http
                return
        except HTTPError:
            time.sleep(0.1)
    raise SystemExit("a server does not become well")


def peak(pid: int) -> int:
    """Return the most memory that a process had resident, in bytes; where there is no /proc, what it has now."""
    status = Path(f"/proc/{pid}/status")
    if status.exists():
        [line] = [line for line in status.read_text().splitlines() if line.startswith("VmHWM:")]
        return int(line.split()[1]) * 1024
    told = subprocess.run(["ps", "-o", "rss=", "-p", str(pid)], check=True, capture_output=True)  # noqa: S603, S607
    return int(told.stdout) * 1024


def osaurus(models: Path, **more: str) -> tuple[list[str], int]:
    """Return how Osaurus is started, with what settings more, and its port."""
    port = free_port()
    chosen = settings(models, port=str(port), **more)
    options = [part for name, value in chosen.items() for part in (f"--{name.replace('_', '-')}", value)]
    return [str(BIN / "twistd"), "-n", "--pidfile=", "osaurus", *options], port


def mlx_lm(models: Path) -> tuple[list[str], int]:
    """Return how mlx_lm.server is started, and its port."""
    port = free_port()
    return [sys.executable, str(HERE / "tuned_mlx_lm.py"), str(models / STARTER), "--port", str(port)], port


def llama(program: Path, gguf: Path, context: int, parallel: int) -> tuple[list[str], int]:
    """Return how llama.cpp's server is started, and its port."""
    port, threads = free_port(), str(os.cpu_count() or 1)
    sizes = ["-c", str(context), "-np", str(parallel), "--threads", threads, "--threads-batch", threads]
    return [str(program), "-m", str(gguf), "--host", "127.0.0.1", "--port", str(port), *sizes], port


@frozen
class Server:
    """A server, and how it is started."""

    name: str
    command: list[str]
    port: int
    model: str = MODEL

    @property
    def url(self) -> str:
        """Where it is."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def target(self) -> str:
        """What load.py and conversation.py call it."""
        return f"{self.name}={self.url}/v1={self.model}"


@contextmanager
def running(*servers: Server) -> Iterator[None]:
    """Run servers, their logs going nowhere; tell at the end what memory they took."""
    with ExitStack() as stack:
        processes = [stack.enter_context(process(server)) for server in servers]
        yield
        for server, started in zip(servers, processes, strict=True):
            print(f"peak memory  {server.name:<32} {peak(started.pid) / 2**20:7.0f} MiB", flush=True)


@contextmanager
def process(server: Server) -> Iterator[subprocess.Popen[bytes]]:
    """Run a server until the end."""
    started = subprocess.Popen(server.command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # noqa: S603 - ours
    try:
        wait_for_port(started, server.port)
        wait_for_health(server.url)
        yield started
    finally:
        started.terminate()
        started.wait(30)


def run(script: str, *arguments: str) -> None:
    """Run a benchmark, its output being ours."""
    print(f"\n$ {script} {' '.join(arguments)}", flush=True)
    subprocess.run([sys.executable, HERE / script, *arguments], check=True)  # noqa: S603 - our own


@frozen
class Comparisons:
    """The comparisons. Those in `ORDER` are run, by their names."""

    options: argparse.Namespace
    cache: str

    def ours(self) -> Server:
        """Osaurus as it comes."""
        return Server("Osaurus", *self._osaurus())

    def plain(self) -> Server:
        """Osaurus without drafts, which neither of the others has."""
        return Server("Osaurus without drafts", *self._osaurus(speculation="off"))

    def peers(self, context: int, parallel: int) -> list[Server]:
        """Return the other servers that are started here."""
        peers = [Server("mlx_lm.server", *mlx_lm(self.options.models), "default_model")]
        if self.options.llama_server:
            started = llama(self.options.llama_server, self.options.gguf, context, parallel)
            peers.append(Server("llama-server", *started, "default"))
        return peers

    def load(self) -> None:
        """Stories for many clients, against the others."""
        servers = [*self.peers(*LLAMA_LOAD), self.plain()]
        json = ["--json", str(self.options.json)] if self.options.json else []
        with running(*servers):
            self._run("load.py", *self._targets(servers), "--clients", self.options.clients, *self._rounds(), *json)

    def reading(self) -> None:
        """A long prompt, against the others: when the first token comes."""
        servers = [*self.peers(*LLAMA_LOAD), self.plain()]
        with running(*servers):
            targets = self._targets(servers)
            run("load.py", *targets, "--task", "reading", "--clients", "1", "--tokens", "4", *self._rounds())

    def formats(self) -> None:
        """Weights of other formats, and of another architecture, against llama.cpp's server on the same file."""
        if self.options.llama_quantize is None:
            print("\nformats: left out, --llama-quantize names no program")
            return
        folder = Path(self.cache) / "formats"
        folder.mkdir()
        other = folder / "synthetic.gguf"
        run("synthetic.py", str(self.options.gguf), str(other))
        for source in (self.options.gguf, other):
            for kind in FORMATS:
                self._format(folder, source, kind)

    def _format(self, folder: Path, source: Path, kind: str) -> None:
        """Compare one kind of weights, made from a file."""
        gguf, model = folder / f"{source.stem}.{kind}.gguf", f"{source.stem}-{kind}".replace(".", "-").lower()
        quantise = [str(self.options.llama_quantize), "--allow-requantize", str(source), str(gguf), kind]
        subprocess.run(quantise, check=True, capture_output=True)  # noqa: S603 - named by the user
        bring = [str(BIN / "osaurus"), "import", str(gguf), "--name", f"formats/{model}"]
        bring += ["--models-dir", str(folder / "models")]
        subprocess.run(bring, check=True, stdout=subprocess.DEVNULL)  # noqa: S603 - our own
        print(f"\n{source.stem} as {kind}, {gguf.stat().st_size / 2**20:.0f} MiB")
        command, port = osaurus(
            folder / "models", cache_dir=tempfile.mkdtemp(dir=self.cache), speculation="off", hub_cache="off"
        )
        servers = [
            Server("llama-server", *llama(self.options.llama_server, gguf, *LLAMA_LOAD), "default"),
            Server("Osaurus", command, port, model),
        ]
        with running(*servers):
            targets = self._targets(servers)
            # What random weights say is so improbable that sampling it would be measured.
            self._run("load.py", *targets, "--task", "greedy", "--clients", self.options.clients, *self._rounds())
            run("load.py", *targets, "--task", "reading", "--clients", "1", "--tokens", "4", *self._rounds())

    def conversation(self) -> None:
        """A conversation of many turns, against the others."""
        servers = [*self.peers(*LLAMA_CONVERSATION), self.plain(), self.ours()]
        turns = ["--turns", str(self.options.turns)]
        with running(*servers):
            self._run("conversation.py", *self._targets(servers), *turns, *self._rounds())

    def drafts(self) -> None:
        """With drafts against without: texts to correct, which are as long as the answers, and stories."""
        servers = [self.plain(), self.ours()]
        with running(*servers):
            targets = [server.target for server in servers]
            rewriting = ["--task", "rewrite", "--tokens", "210"]
            self._run("load.py", *targets, *rewriting, "--clients", "1,2,4,8", *self._rounds())
            self._run("load.py", *targets, "--task", "story", "--clients", "1,4", *self._rounds())

    def latency(self) -> None:
        """/health while many clients are served."""
        self._alone("latency.py")

    def lateness(self) -> None:
        """The reactor's own timers meanwhile."""
        self._run("lateness.py", str(self.options.models))

    def prefix(self) -> None:
        """A prompt that was read before."""
        self._alone("prefix.py", *self._rounds())

    def constrained(self) -> None:
        """Answers held to a schema, against free ones."""
        server = self.plain()
        with running(server):
            self._run("constrained.py", server.url, server.model, *self._rounds())

    def interference(self) -> None:
        """Somebody else's long prompt."""
        self._alone("interference.py", "--words", "500", *self._rounds())

    def restart(self) -> None:
        """A prompt that was read before a restart."""
        self._run("restart.py", str(self.options.models), *self._rounds())

    def _osaurus(self, **more: str) -> tuple[list[str], int]:
        return osaurus(self.options.models, cache_dir=tempfile.mkdtemp(dir=self.cache), **more)

    def _targets(self, servers: list[Server]) -> list[str]:
        return [*(server.target for server in servers), *self.options.others]

    def _rounds(self) -> list[str]:
        return ["--rounds", str(self.options.rounds)]

    def _alone(self, script: str, *arguments: str) -> None:
        server = self.ours()
        with running(server):
            self._run(script, server.url, server.model, *arguments)

    def _run(self, script: str, *arguments: str) -> None:
        tokens = ["--tokens", str(self.options.tokens)] if self.options.tokens and script in WITH_TOKENS else []
        run(script, *arguments, *tokens)


ORDER = [
    "load",
    "reading",
    "formats",
    "conversation",
    "drafts",
    "latency",
    "lateness",
    "prefix",
    "constrained",
    "interference",
    "restart",
]
WITH_TOKENS = ("load.py", "conversation.py", "latency.py", "lateness.py")


def main() -> None:
    """Run what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", type=Path)
    parser.add_argument("others", nargs="*", metavar="[NAME=]URL=MODEL")
    parser.add_argument("--llama-server", type=Path, metavar="PROGRAM")
    parser.add_argument("--gguf", type=Path, metavar="FILE")
    parser.add_argument("--llama-quantize", type=Path, metavar="PROGRAM", help="of llama.cpp, for --only formats")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--only", nargs="+", choices=ORDER, default=ORDER)
    parser.add_argument("--clients", default="1,4,8,16")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--turns", type=int, default=20)
    parser.add_argument("--tokens", type=int, help="of an answer, instead of what each benchmark asks for itself")
    options = parser.parse_args(sys.argv[1:])
    if (options.llama_server is None) != (options.gguf is None):
        parser.error("--llama-server and --gguf belong together")
    if options.llama_quantize is not None and options.llama_server is None:
        parser.error("--llama-quantize goes with --llama-server")
    if options.json:
        options.json.unlink(missing_ok=True)
    os.environ["PYTHONUNBUFFERED"] = "1"
    with tempfile.TemporaryDirectory() as cache:
        comparisons = Comparisons(options, cache)
        for name in options.only:
            getattr(comparisons, name)()


if __name__ == "__main__":
    main()
