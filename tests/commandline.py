"""The `osaurus` command in memory: click's runner, and the real resource tree behind treq's StubTreq as its server."""

import json
import sys
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any

from attrs import define, field
from click.testing import CliRunner, Result
from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from osaurus.boot.manager import ManagerFailed
from osaurus.command.main import main
from osaurus.command.surroundings import Surroundings
from osaurus.discovery import Announcement

from .test_api import Client

PORT = 1337
# The command as a process, from these sources, whatever is installed.
PROGRAM = [sys.executable, "-c", "from osaurus.command.main import main; main(prog_name='osaurus')"]


def no_program(command: Sequence[str]) -> Any:
    """Fail as a program does that is not there."""
    raise ManagerFailed(f"{command[0]} cannot be run: No such file or directory")


@define
class CommandLine:
    """Runs the command. `server` is there once it is started, with the models in `models`."""

    home: Path
    models: Path
    environ: dict[str, str] = field(factory=dict)
    server: Any = None
    asked: list[str] = field(factory=list)
    bodies: list[Any] = field(factory=list)
    platform: str = "linux"
    programs: Any = no_program
    """What is run in the place of launchctl and systemctl; there is none unless a test has one."""

    def start_server(self, models: Path | None = None, **options: Any) -> Client:
        """Have a server run, and tell of itself."""
        server = self.server = Client(models or self.models, **options)
        Announcement(self.home / "runtime", False, models or self.models).publish(("127.0.0.1", PORT))
        return server

    def run(self, *arguments: str, said: str | None = None) -> Result:
        """Run it with what is piped in; OSU_MODELS_DIR is `models`, unless `environ` says otherwise."""
        surroundings = Surroundings(
            environ={"OSU_MODELS_DIR": str(self.models), "OSU_HUB_CACHE": "off", **self.environ},
            runtime=self.home / "runtime",
            history=self.home / "history",
            run=self._drive,
            platform=self.platform,
            root=self.home / "root",
            run_program=self.programs,
            http=lambda _: self,  # type: ignore[arg-type,return-value]  # of an HTTP client it has what is used
        )
        return CliRunner().invoke(main, arguments, obj=surroundings, input=said, prog_name="osaurus")

    def json(self, *arguments: str, said: str | None = None) -> Any:
        """Run it and return what it printed, which is JSON."""
        result = self.run(*arguments, said=said)
        assert result.exit_code == 0, result.output
        return json.loads(result.stdout)

    def request(self, method: str, url: str, **given: Any) -> Deferred[Any]:
        """Send a request to the server, as treq does."""
        self.asked.append(f"{method} {url}")
        self.bodies.append(given.get("json"))
        assert self.server is not None, f"nobody is there, but {method} {url} was asked for"
        sent: Deferred[Any] = self.server.stub.request(method, url, **given)
        return sent

    def _drive(self, task: Callable[[Any], Coroutine[Any, Any, Any]]) -> Any:
        results: list[Any] = []
        Deferred.fromCoroutine(task(None)).addBoth(results.append)
        for _ in range(100):
            if results or self.server is None:
                break
            self.server.worker.turn()
            self.server.stub.flush()
        [result] = results
        if isinstance(result, Failure):
            result.raiseException()
        return result
