"""`osaurus run`: one answer, or a chat in the terminal.

The difficulty is that two libraries want the terminal's events and the process's signals. Twisted runs on asyncio's
loop, where prompt_toolkit reads the keys; while it does, the terminal is raw and Ctrl-C is a key. While an answer
comes, the terminal is as it was, Ctrl-C is a signal, and its handler cancels the answer's Deferred, which hangs up; the
server takes the row out before its next step. Rejected: to read lines in a thread, which cannot be stopped.
"""

import asyncio
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
from attrs import define
from prompt_toolkit import PromptSession
from prompt_toolkit.completion import NestedCompleter
from prompt_toolkit.enums import DEFAULT_BUFFER
from prompt_toolkit.filters import has_focus
from prompt_toolkit.formatted_text import FormattedText
from prompt_toolkit.history import FileHistory
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from rich.text import Text
from twisted.internet.defer import CancelledError, Deferred

from ..library.names import SHORT_NAMES
from .answer import AnswerPrinter, statistics
from .client import Client
from .conversation import BadParameter, Conversation, is_unfinished, unquoted
from .errors import Refused
from .library import served_pull
from .models import description
from .slash import COMPLETIONS, Leave, SlashCommands
from .surroundings import Surroundings, host_option, pass_surroundings
from .terminal import Reporter, examples, print_json, printable

# Of a text that is piped in, in bytes.
MOST_INPUT = 2**25
# The history is cut to its latest half beyond this, in bytes.
MOST_HISTORY = 2**20
ENTRY = b"\n\n#"


@click.command(
    "run",
    epilog=examples(
        "osaurus run smollm2:135m",
        'osaurus run smollm2:135m "Tell me the capital of France."',
        'osaurus run smollm2:135m "Summarise this:" < notes.txt',
        'osaurus run smollm2:135m --option temperature=0 --json "Hello"',
    ),
)
@click.argument("model")
@click.argument("prompt", nargs=-1)
@click.option("--system", default="", help="The system message.")
@click.option(
    "--option", "-o", "options", metavar="NAME=VALUE", multiple=True, help="A parameter such as temperature=0; several."
)
@click.option("--format", "form", metavar="json|SCHEMA", help="What the answer must keep to: JSON, or a JSON Schema.")
@click.option("--think/--no-think", default=None, help="Whether the model is to think, if it can.")
@click.option("--hide-thinking", is_flag=True, help="Do not show what it thinks.")
@click.option("--keep-alive", metavar="DURATION", help="How long the model stays in memory, such as 5m.")
@click.option("--verbose", is_flag=True, help="Tell what answers took.")
@click.option("--json", "as_json", is_flag=True, help="Print the whole answer as JSON, as /api/chat gives it.")
@host_option
@pass_surroundings
def run_model(
    surroundings: Surroundings,
    model: str,
    prompt: tuple[str, ...],
    system: str,
    options: tuple[str, ...],
    form: str | None,
    think: bool | None,
    hide_thinking: bool,
    keep_alive: str | None,
    verbose: bool,
    as_json: bool,
    host: str | None,
) -> None:
    """Chat with MODEL in the terminal, or have it answer PROMPT and leave.

    What is piped in comes before PROMPT. A model that has a short name is installed first if need be. In the chat, /?
    tells what there is.
    """
    conversation = Conversation(model, system, think, keep_alive)
    try:
        for option in options:
            name, _, value = option.partition("=")
            conversation.set_parameter(name, [value] if value else [])
        if form is not None:
            conversation.set_format(form)
    except BadParameter as error:
        raise click.UsageError(str(error)) from error
    text = _given(prompt)
    if text is None and (as_json or not sys.stdout.isatty()):
        raise click.UsageError("A prompt is needed where nobody chats: as an argument, or piped in")

    async def run(reactor: Any) -> None:
        client = surroundings.client(reactor, surroundings.server(host))
        await _ensure_installed(surroundings, client, model)
        if text is None:
            await Chat(surroundings, reactor, client, conversation, hide_thinking).run(verbose)
        elif as_json:
            print_json(await client.post("/api/chat", conversation.request(text, stream=False)))
        else:
            with AnswerPrinter(surroundings.err, hide_thinking) as printer:
                await client.stream("/api/chat", conversation.request(text), printer.take)
            click.echo()
            if verbose:
                click.echo(statistics(printer.last), err=True)

    surroundings.run(run)


def _given(prompt: tuple[str, ...]) -> str | None:
    """Return what was piped in and what the command line says; None if neither says anything."""
    piped = b"" if sys.stdin.isatty() else sys.stdin.buffer.read(MOST_INPUT + 1)
    if len(piped) > MOST_INPUT:
        raise click.UsageError(f"What is piped in is longer than {MOST_INPUT} bytes")
    return "\n".join(part for part in (piped.decode(errors="replace").strip(), " ".join(prompt)) if part) or None


async def _ensure_installed(surroundings: Surroundings, client: Client, model: str) -> None:
    """Have the server install a model that it does not have, if it has a short name."""
    try:
        await client.post("/api/show", {"model": model})
    except Refused as error:
        if error.status != 404:
            raise
        if model.lower().removesuffix(":latest") not in SHORT_NAMES:
            raise Refused(f"{error.message}. `osaurus list` tells what is installed.", 404) from error
        click.echo(f"{model} is not installed yet", err=True)
        with Reporter(surroundings.err) as reporter:
            await served_pull(client, model, None, reporter.tell)


class LineCleared(Exception):
    """Ctrl-C at the prompt."""


@define
class Chat:
    """A chat in the terminal."""

    _surroundings: Surroundings
    _reactor: Any
    _client: Client
    _conversation: Conversation
    _hide_thinking: bool

    async def run(self, verbose: bool) -> None:
        """Chat until the user leaves. Raises click.ClickException."""
        with self._surroundings.err.status(Text(f"Loading {printable(self._conversation.model)}")):
            await self._client.post("/api/chat", self._conversation.load_request())
        history = History(self._surroundings.history)
        session: PromptSession[str] = PromptSession(
            ">>> ",
            history=history,
            multiline=True,
            key_bindings=_keys(),
            prompt_continuation="... ",
            completer=NestedCompleter.from_nested_dict(COMPLETIONS),
            complete_while_typing=False,
            # A KeyboardInterrupt would end asyncio's loop, and not only the task that raises it.
            interrupt_exception=LineCleared,
            placeholder=FormattedText([("fg:ansibrightblack", "Send a message (/? for help)")]),
        )
        commands = SlashCommands(self._conversation, self._client, description, history.keep, verbose)
        while True:
            try:
                line = await Deferred.fromFuture(asyncio.ensure_future(session.prompt_async(handle_sigint=False)))
                if line.startswith("/"):
                    click.echo(printable(await commands.run(line)) + "\n")
                elif line.strip():
                    await self._answer(unquoted(line), commands)
            except LineCleared:
                click.echo("Ctrl-D or /bye leaves.\n")
            except (EOFError, Leave):
                return
            except click.ClickException as error:
                click.echo(printable(error.message) + "\n", err=True)

    async def _answer(self, text: str, commands: SlashCommands) -> None:
        """Print the answer to a text, until it ends or Ctrl-C."""
        with AnswerPrinter(self._surroundings.err, self._hide_thinking) as printer:
            asked = Deferred.fromCoroutine(
                self._client.stream("/api/chat", self._conversation.request(text), printer.take)
            )
            try:
                with _on_interrupt(self._reactor, asked.cancel):
                    await asked
            except CancelledError:
                click.secho("\n(stopped)", dim=True, nl=False)
            finally:
                self._conversation.heard(text, printer.text)
                click.echo("\n")
        if commands.verbose and printer.last:
            click.secho(statistics(printer.last) + "\n", dim=True)


@contextmanager
def _on_interrupt(reactor: Any, act: Callable[[], None]) -> Iterator[None]:
    """Have Ctrl-C do this and nothing else."""
    before = signal.signal(signal.SIGINT, lambda *_: reactor.callFromThread(act))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


class History(FileHistory):
    """What was written in earlier chats, in a file that only its user can read."""

    def __init__(self, path: Path) -> None:
        try:
            _prepare_history(path)
        except OSError as error:
            click.echo(f"What you write is not kept: {error}", err=True)
            path = Path(os.devnull)
        self._kept = True
        super().__init__(path)

    def keep(self, kept: bool) -> None:
        """Say whether what is written from now on is kept."""
        self._kept = kept

    def store_string(self, string: str) -> None:
        """Keep an entry, if they are kept."""
        if self._kept:
            super().store_string(string)


def _prepare_history(path: Path) -> None:
    """Make the file if need be, for its user only, and cut it if it is too long. Raises OSError."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o600), "r+b") as file:
        os.fchmod(file.fileno(), 0o600)
        content = file.read()
        if len(content) > MOST_HISTORY:
            # Each entry begins with an empty line and a comment. The latter half may be one alone.
            start = content.find(ENTRY, len(content) // 2)
            latest = content[start if start >= 0 else max(0, content.rfind(ENTRY)) :]
            file.seek(0)
            file.truncate()
            file.write(latest)


def _keys() -> KeyBindings:
    keys = KeyBindings()
    # While the history is searched, they are the search's.
    writing = has_focus(DEFAULT_BUFFER)

    @keys.add("enter", filter=writing)
    def _enter(event: KeyPressEvent) -> None:
        if is_unfinished(event.current_buffer.text):
            event.current_buffer.insert_text("\n")
        else:
            event.current_buffer.validate_and_handle()

    @keys.add("escape", "enter", filter=writing)
    def _new_line(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    return keys
