"""How many connections there may be, and what they are told of protocols."""

from typing import Any

import pytest
from twisted.internet.interfaces import IProtocolNegotiationFactory
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure
from zope.interface.verify import verifyObject

from osaurus.web.tls import BoundedFactory


@pytest.fixture
def factory() -> BoundedFactory:
    return BoundedFactory(Factory.forProtocol(Protocol), maxConnectionCount=2)


def connected(factory: BoundedFactory) -> tuple[Any, StringTransport]:
    protocol, transport = factory.buildProtocol(None), StringTransport()
    protocol.makeConnection(transport)
    return protocol, transport


def test_one_beyond_the_limit_is_hung_up_on(factory: BoundedFactory) -> None:
    assert [connected(factory)[1].disconnecting for _ in range(3)] == [False, False, True]


def test_one_that_ends_makes_room(factory: BoundedFactory) -> None:
    (first, _), _ = connected(factory), connected(factory)
    first.connectionLost(Failure(ConnectionError()))
    assert not connected(factory)[1].disconnecting


def test_what_is_spoken_can_be_asked_through_tls(factory: BoundedFactory) -> None:
    assert verifyObject(IProtocolNegotiationFactory, factory)
    assert factory.acceptableProtocols() == [b"http/1.1"]
