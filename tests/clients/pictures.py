"""Take the pictures of docs/page.md: `python -m tests.clients.pictures FOLDER`, which `make pictures` does.

The page is a real server's with the starter model, after a few minutes at work, in the Chromium that the tests use.
What comes out depends on the machine's fonts and speed, so that no test compares pictures.
"""

import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from PIL import Image

from osaurus.library.pull import pull

from ..conftest import CACHE
from ..server import serving
from .conftest import HERE, found_browser

# What a page of documentation may weigh, in bytes, for each.
LARGEST = 150_000


def main(folder: Path) -> None:
    """Take them and make them small."""
    models = Path(os.environ.get("OSU_TEST_MODELS", CACHE / "models"))
    pull("smollm2:135m", models, print)
    browser = found_browser()
    if browser is None:
        raise SystemExit("There is no Chromium: run `make clients`, or set CHROME to its path.")
    folder.mkdir(parents=True, exist_ok=True)
    with (
        TemporaryDirectory() as home,
        serving(Path(home), models, "--requests-per-minute=0", "--memory-limit=1GiB") as server,
    ):
        subprocess.run(
            [Path(sys.executable).with_name("node"), HERE / "pictures.mjs", folder.resolve()],
            env={**os.environ, "OSU_TEST_URL": server.url, "CHROME": browser},
            check=True,
        )
    for path in sorted(folder.glob("page*.png")):
        # Text on plain ground needs few colours.
        with Image.open(path) as picture:
            few = picture.convert("RGB").quantize(256, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
            few.save(path, optimize=True)
        size = path.stat().st_size
        print(path.name, size, "bytes")  # noqa: T201 - it is a program
        if size > LARGEST:
            raise SystemExit(f"{path} is larger than {LARGEST} bytes")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
