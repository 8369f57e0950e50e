"""Whether Apple's SDK is here. It is built on a Mac, against macOS 26, and imports nowhere else."""

import sys
from importlib import import_module
from typing import Any

from twisted.logger import Logger

log = Logger()


def installed_sdk() -> Any:
    """Return the package `apple_fm_sdk`, None where it is not; typed as each use needs it, since it has no types."""
    if sys.platform != "darwin":
        return None
    try:
        return import_module("apple_fm_sdk")
    except (ImportError, OSError) as error:
        log.info("Apple's on-device model is not served: {error}", error=error)
        return None
