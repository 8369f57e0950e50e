"""What can be said to the chat itself, on lines that begin with a slash: the words of Ollama's chat.

Of those `/save` is left out: it makes a model of a conversation, which is not served. A line that begins with a space
and then a slash is for the model.
"""

import json
import shlex
from collections.abc import Callable
from typing import Any

from attrs import define

from .client import Client
from .conversation import PARAMETERS, BadParameter, Conversation, unquoted

HELP = '''/set            Set a parameter, the system message and more
/show           Show the model and what is set
/load MODEL     Go on with another model, from the beginning
/clear          Forget what was said
/bye            Leave, as Ctrl-D does
/? [shortcuts]  This help, and the keys

""" begins and ends a message of several lines; Alt-Enter begins a new line.'''

KEYS = """Ctrl-C   stops the answer; at the prompt it clears the line
Ctrl-D   leaves
Ctrl-A, Ctrl-E   to the beginning or the end of the line
Ctrl-K, Ctrl-U   delete to the end or the beginning of the line
Ctrl-R   searches what was said before; Up and Down step through it
Alt-Enter   begins a new line"""

SET = f"""/set parameter NAME VALUE     {", ".join(PARAMETERS)}
/set system TEXT              the system message
/set think [low|medium|high]  have the model think; /set nothink: not
/set format json              answers are JSON, or keep to a JSON Schema; /set noformat: they need not
/set verbose                  tell what each answer took; /set quiet: do not
/set nohistory                do not keep what you write; /set history: do"""

SHOW = """/show info         what is known of the model
/show parameters   what is set
/show system       the system message
/show template     the chat template
/show license      the licence"""

COMPLETIONS: dict[str, Any] = {
    "/set": {
        "parameter": dict.fromkeys(PARAMETERS),
        **dict.fromkeys(
            ("system", "think", "nothink", "format", "noformat", "verbose", "quiet", "history", "nohistory")
        ),
    },
    "/show": dict.fromkeys(("info", "parameters", "system", "template", "license")),
    "/load": None,
    "/clear": None,
    "/help": None,
    "/bye": None,
}


class Leave(Exception):
    """The chat is over."""


@define
class SlashCommands:
    """Carries out such lines. `keep_history` is told whether to keep what is written."""

    _conversation: Conversation
    _client: Client
    _describe: Callable[[dict[str, Any]], list[str]]
    _keep_history: Callable[[bool], None]
    verbose: bool = False

    async def run(self, line: str) -> str:
        """Carry out a line and return what there is to say. Raises Leave, click.ClickException."""
        word, _, rest = line.strip().partition(" ")
        match word, rest.strip():
            case ("/bye" | "/exit" | "/quit", _):
                raise Leave
            case ("/?" | "/help", topic):
                return {"shortcuts": KEYS, "set": SET, "/set": SET, "show": SHOW, "/show": SHOW}.get(topic, HELP)
            case ("/clear", _):
                self._conversation.clear()
                return "What was said is forgotten"
            case ("/load", model):
                return await self._load(model) if model else "/load MODEL: say which"
            case ("/set", rest):
                return self._set(*rest.split(maxsplit=1)) if rest else SET
            case ("/show", topic):
                return await self._show(topic) if topic else SHOW
        return f"There is no {word}; /? tells what there is"

    async def _load(self, model: str) -> str:
        await self._client.post("/api/show", {"model": model})
        self._conversation.model = model
        self._conversation.clear()
        return f"Now with {model}"

    def _set(self, what: str, rest: str = "") -> str:
        match what:
            case "parameter":
                return self._set_parameter(rest)
            case "system":
                self._conversation.system = unquoted(rest)
                return "The system message is set" if rest else "There is no system message any more"
            case "think":
                self._conversation.think = rest or True
                return "The model is to think"
            case "nothink":
                self._conversation.think = False
                return "The model is not to think"
            case "format":
                return self._set_format(rest)
            case "noformat":
                self._conversation.format = None
                return "Answers need not keep to a format"
            case "verbose" | "quiet":
                self.verbose = what == "verbose"
                return "What answers take is told" if self.verbose else "What answers take is not told"
            case "history" | "nohistory":
                self._keep_history(what == "history")
                return "What you write is kept" if what == "history" else "What you write is not kept"
        return SET

    def _set_parameter(self, rest: str) -> str:
        try:
            name, *texts = shlex.split(rest) or [""]
            self._conversation.set_parameter(name, texts)
        except (ValueError, BadParameter) as error:
            return str(error)
        return f"{name} is {json.dumps(self._conversation.options[name], ensure_ascii=False)}"

    def _set_format(self, text: str) -> str:
        try:
            self._conversation.set_format(text)
        except BadParameter as error:
            return str(error)
        return "Answers keep to the format"

    async def _show(self, topic: str) -> str:
        if topic == "parameters":
            options = self._conversation.options
            return "\n".join(f"{name} {json.dumps(value)}" for name, value in options.items()) or "Nothing is set"
        if topic == "system":
            return self._conversation.system or "There is no system message"
        if topic not in ("info", "template", "license"):
            return SHOW
        known = await self._client.post("/api/show", {"model": self._conversation.model})
        return "\n".join(self._describe(known)) if topic == "info" else str(known[topic]) or "None is known"
