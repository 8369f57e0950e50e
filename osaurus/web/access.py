"""A line in the log for every exchange.

It says who asked for what, how that ended and how long it took, and of answers that were generated how many tokens were
read and written and what the time went to. What prompts and answers say is in it only if the operator has asked for
that (`log_content`), and what a request's headers say never is.
"""

from attrs import define
from twisted.logger import Logger, LogLevel

from ..serving.account import Value
from .exchange import OTHER, Exchange

log = Logger()

# How it goes where all is well: of those who watch the server that is a line for debugging.
WELL = (200, 304)

# Of what a client said, in characters.
MOST_PATH = 200
MOST_METHOD = 20


@define
class AccessLog:
    """Writes them."""

    def ended(self, exchange: Exchange) -> None:
        """Write the line of an exchange."""
        told: dict[str, Value] = {
            "method": exchange.method[:MOST_METHOD],
            # A path may have a name in it: it is told only where it is no route's.
            "route": exchange.path[:MOST_PATH] if exchange.route == OTHER else exchange.route,
            "status": exchange.status,
            "seconds": round(exchange.seconds, 6),
            "client": exchange.client,
            "request_id": exchange.id,
        }
        if exchange.gone:
            told["gone"] = True
        if exchange.error:
            told["error"] = exchange.error
        if exchange.account is not None:
            told |= exchange.account.told()
        well = exchange.status in WELL and exchange.watching
        level = LogLevel.debug if well else LogLevel.info
        log.emit(level, "{method} {route} {status}", log_words=("method", "route"), **told)
