"""The process that converts one file: `python -m osaurus.library.gguf FILE FOLDER`.

Files come from anywhere, and what takes them apart is partly native code. So this is a process of its own, which may
take so much memory and time and no more; if it dies, only it does. It says how far it is on its output, one JSON value
a line, and last, if so, why it failed.
"""

import json
import sys
from pathlib import Path

from . import UnsupportedGGUF, convert

# The vocabularies of 256,000 tokens take most of it.
MOST_MEMORY = 3 * 2**30

# A slow machine converts some 10 MiB in a second of its processor.
LEAST_SECONDS, BYTES_PER_SECOND = 600, 2**20


def main(file: Path, folder: Path) -> int:
    """Convert `file`, within limits."""
    limit(sum(part.stat().st_size for part in file.parent.glob("*.gguf") if part.is_file()))
    told = -1

    def progress(done: int, total: int) -> None:
        nonlocal told
        if done * 100 // total != told:
            told = done * 100 // total
            say({"done": done, "total": total})

    try:
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


def limit(nbytes: int) -> None:
    """Bound what this process may take to convert so many bytes, where the system can."""
    try:
        import resource
    except ImportError:
        return
    seconds = LEAST_SECONDS + nbytes // BYTES_PER_SECOND
    # On Linux this is memory that is written to: files that are only read do not count. macOS does not enforce it.
    for what, most in ((resource.RLIMIT_DATA, MOST_MEMORY), (resource.RLIMIT_CPU, seconds), (resource.RLIMIT_CORE, 0)):
        _, hard = resource.getrlimit(what)
        if hard == resource.RLIM_INFINITY or hard > most:
            resource.setrlimit(what, (most, hard))


def say(what: dict[str, object]) -> None:
    """Tell the process that waits."""
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2])))
