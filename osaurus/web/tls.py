"""A limit of connections that works where TLS is around it.

Twisted's ThrottlingFactory counts connections, but it was made for plain sockets. With TLS around it two things go
wrong that show on no other endpoint: the client's question which protocol is spoken (ALPN; browsers, curl and most SDKs
ask) finds no answer, which ends the handshake; and for a connection beyond the limit there is no protocol where TLS
wants one.
"""

from typing import Any

from twisted.internet.interfaces import IAddress, IProtocolNegotiationFactory
from twisted.internet.protocol import Protocol
from twisted.protocols.policies import ThrottlingFactory
from zope.interface import implementer


class HangUp(Protocol):
    """Ends a connection before anything is said."""

    def connectionMade(self) -> None:
        """End it in order: a reset could reach whoever is still connecting, as an error of the network."""
        assert self.transport is not None
        self.transport.loseConnection()


@implementer(IProtocolNegotiationFactory)
class BoundedFactory(ThrottlingFactory):
    """Speaks HTTP/1.1 over at most `maxConnectionCount` connections; one beyond them is closed at once."""

    def acceptableProtocols(self) -> list[bytes]:
        """Say what is spoken. HTTP/2 is not, even where its package is installed: requests are bounded for 1.1."""
        return [b"http/1.1"]

    def buildProtocol(self, addr: IAddress | None) -> Any:
        """Return what speaks over a new connection."""
        return super().buildProtocol(addr) or HangUp()
