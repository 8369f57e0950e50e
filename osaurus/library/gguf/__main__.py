"""The process that converts one file: `python -m osaurus.library.gguf FILE FOLDER`.

Files come from anywhere, and what takes them apart is partly native code. So this is a process of its own, which may
take so much memory and time and no more; if it dies, only it does. It says how far it is on its output, one JSON value
a line, and last, if so, why it failed.
"""

import json
import sys
from pathlib import Path

from ...confinement import confine
from . import UnsupportedGGUF, convert

# The vocabularies of 256,000 tokens take most of it.
MOST_MEMORY = 3 * 2**30

# A slow machine converts some 10 MiB in a second of its processor.
LEAST_SECONDS, BYTES_PER_SECOND = 600, 2**20


def main(file: Path, folder: Path) -> int:
    """Convert `file`, within limits."""
    told = -1

    def progress(done: int, total: int) -> None:
        nonlocal told
        if done * 100 // total != told:
            told = done * 100 // total
            say({"done": done, "total": total})

    try:
        confine(memory=MOST_MEMORY, seconds=seconds(file))
        convert(file, folder, progress)
    except UnsupportedGGUF as error:
        say({"failed": " ".join(str(error).split())})
    except MemoryError:
        say({"failed": f"it takes more than the {MOST_MEMORY / 2**30:.0f} GiB of memory that a conversion may take"})
    except OSError as error:
        say({"failed": f"{error.strerror or error}: {error.filename or folder}"})
    else:
        return 0
    return 1


def seconds(file: Path) -> int:
    """Return how long a file's conversion may take, its other parts included, which are beside it. Raises OSError."""
    # Ollama's files have no suffix.
    parts = sum(part.stat().st_size for part in file.parent.glob("*.gguf") if part.is_file())
    return LEAST_SECONDS + max(file.stat().st_size, parts) // BYTES_PER_SECOND


def say(what: dict[str, object]) -> None:
    """Tell the process that waits."""
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2])))
