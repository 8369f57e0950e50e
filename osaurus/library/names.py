"""What models are called: repositories of the hub, the ids they have here, and short names for well-known ones."""

import re

# As the hub has them; neither part may begin or end with a dot or a hyphen.
_PART = r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9_])?"
REPOSITORY = re.compile(rf"({_PART})/({_PART})")

# Short name, as Ollama spells it → repository. A name without a size is that of the size Ollama means by it.
SHORT_NAMES = {
    "smollm2:135m": "HuggingFaceTB/SmolLM2-135M-Instruct",
}


def repository(name: str) -> str | None:
    """Return the repository that a name stands for; None if it is neither a short name nor `organisation/name`."""
    plain = name.removesuffix(":latest")
    found = SHORT_NAMES.get(plain.lower(), plain)
    # The hub allows neither in a name; its own cache and Git have a use for them.
    sane = REPOSITORY.fullmatch(found) and "--" not in found and ".." not in found and not found.endswith(".git")
    return found if sane else None


def model_id(repository: str) -> str:
    """Return the id of a repository's model: the last part of its name in lower case, with hyphens."""
    return re.sub(r"[\s_]+", "-", repository.rpartition("/")[2].lower())
