"""Makes `twistd osaurus` appear. Nothing else: an import error here would break every `twistd` on the machine."""

from twisted.application.service import ServiceMaker

osaurus = ServiceMaker(
    "osaurus",
    "osaurus.tap",
    "Serve MLX language models over the OpenAI and the Ollama HTTP APIs.",
    "osaurus",
)
