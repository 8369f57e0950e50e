"""An answer on its way to a consumer that sets the pace."""

from twisted.internet.defer import CancelledError
from twisted.internet.interfaces import IConsumer
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from zope.interface import implementer

from osaurus.chat import Event, Failed, InternalError, Piece, Started
from osaurus.serving.generation import Generation
from osaurus.serving.stream import LONGEST_PAUSE, LONGEST_QUIET, MOST_WAITING, TokenStream

from .doubles import finished
from .test_generation import outcome


@implementer(IConsumer)
class Consumer(StringTransport):
    """A consumer that remembers what was written, as a transport does."""


def encode(event: Event) -> bytes:
    match event:
        case Piece(text):
            return text.encode()
        case Failed(error):
            return f"[{error}]".encode()
        case _:
            return b"."


def filler() -> bytes:
    return b"~"


def stream() -> tuple[Generation, Consumer, TokenStream, list[Generation]]:
    cancelled: list[Generation] = []
    generation, consumer = Generation(cancelled.append, lambda *_: None), Consumer()
    generation.deliver(Started(3))
    return generation, consumer, TokenStream(generation, encode, consumer, Clock(), lambda: None, filler), cancelled


def test_events_are_written_as_they_come_and_the_producer_leaves_at_the_end() -> None:
    generation, consumer, tokens, _ = stream()
    done = tokens.run()
    generation.deliver(Piece("a"))
    assert consumer.value() == b"a"
    generation.deliver(finished())
    assert consumer.value() == b"a."
    assert done.called
    assert consumer.producer is None


def test_an_error_is_written_and_ends_the_stream() -> None:
    generation, consumer, tokens, _ = stream()
    done = tokens.run()
    generation.deliver(Failed(InternalError("broken")))
    assert consumer.value() == b"[broken]"
    assert done.called


def test_a_paused_client_gets_nothing_until_it_resumes_and_then_everything_in_order() -> None:
    generation, consumer, tokens, _ = stream()
    done = tokens.run()
    tokens.pauseProducing()
    for text in "abc":
        generation.deliver(Piece(text))
    generation.deliver(finished())
    assert consumer.value() == b""
    assert not done.called
    tokens.resumeProducing()
    assert consumer.value() == b"abc."
    assert done.called


def test_a_consumer_that_pauses_in_the_middle_of_a_write_is_obeyed() -> None:
    generation, consumer, tokens, _ = stream()
    tokens.run()
    write = consumer.write

    def write_and_pause(data: bytes) -> None:
        write(data)
        tokens.pauseProducing()

    consumer.write = write_and_pause  # type: ignore[method-assign]
    generation.deliver(Piece("a"))
    generation.deliver(Piece("b"))
    assert consumer.value() == b"a"


def test_a_consumer_that_goes_away_ends_the_answer_and_nothing_more_is_written() -> None:
    generation, consumer, tokens, cancelled = stream()
    done = tokens.run()
    failures = outcome(done)
    tokens.stopProducing()
    # The request tells the route that it is gone; were it told here, the route would try to answer.
    assert failures == []
    generation.deliver(Piece("late"))
    done.cancel()
    assert cancelled == [generation]
    assert [type(failure) for failure in failures] == [CancelledError]
    assert consumer.value() == b""


def test_a_row_is_parked_while_too_much_waits_and_goes_on_when_the_client_does() -> None:
    parked: list[bool] = []
    generation = Generation(lambda _: None, lambda _, now: parked.append(now))
    generation.deliver(Started(3))
    consumer = Consumer()
    tokens = TokenStream(generation, encode, consumer, Clock(), lambda: None, filler)
    tokens.run()
    tokens.pauseProducing()
    generation.deliver(Piece("a" * MOST_WAITING))
    assert parked == []
    for _ in range(3):
        generation.deliver(Piece("b"))
    # Each time anew: it may not have been writing yet.
    assert parked == [True] * 3
    tokens.resumeProducing()
    assert parked == [True] * 3 + [False]
    assert consumer.value() == b"a" * MOST_WAITING + b"bbb"


def test_a_client_that_takes_nothing_for_too_long_is_dropped() -> None:
    clock, dropped = Clock(), []
    generation = Generation(lambda _: None, lambda *_: None)
    generation.deliver(Started(3))
    tokens = TokenStream(generation, encode, Consumer(), clock, lambda: dropped.append(clock.seconds()), filler)
    tokens.run()
    tokens.pauseProducing()
    clock.advance(LONGEST_PAUSE - 1)
    tokens.resumeProducing()
    clock.advance(LONGEST_PAUSE)
    assert dropped == []
    tokens.pauseProducing()
    clock.advance(LONGEST_PAUSE)
    assert len(dropped) == 1


def test_a_client_that_has_left_is_not_waited_for() -> None:
    clock = Clock()
    generation = Generation(lambda _: None, lambda *_: None)
    generation.deliver(Started(3))
    tokens = TokenStream(generation, encode, Consumer(), clock, lambda: None, filler)
    tokens.run()
    tokens.pauseProducing()
    tokens.stopProducing()
    tokens.pauseProducing()
    assert clock.getDelayedCalls() == []


def test_where_nothing_is_said_for_long_something_is_said_nevertheless() -> None:
    clock, consumer = Clock(), Consumer()
    generation = Generation(lambda _: None, lambda *_: None)
    generation.deliver(Started(3))
    TokenStream(generation, encode, consumer, clock, lambda: None, filler).run()
    clock.advance(LONGEST_QUIET)
    assert consumer.value() == b"~"
    clock.advance(1)
    generation.deliver(Piece("a"))
    clock.advance(LONGEST_QUIET - 1)
    assert consumer.value() == b"~a"
    clock.advance(1)
    assert consumer.value() == b"~a~"
    generation.deliver(finished())
    clock.advance(2 * LONGEST_QUIET)
    assert consumer.value() == b"~a~."
    assert clock.getDelayedCalls() == []


def test_what_is_heard_and_not_told_does_not_count() -> None:
    clock, consumer = Clock(), Consumer()
    generation = Generation(lambda _: None, lambda *_: None)
    generation.deliver(Started(3))
    TokenStream(generation, encode, consumer, clock, lambda: None, filler).run()
    # A call in Ollama's dialect, say, which is told when it is complete.
    generation.deliver(Piece(""))
    clock.advance(LONGEST_QUIET)
    assert consumer.value() == b"~"


def test_a_client_that_does_not_read_is_told_nothing() -> None:
    clock, consumer = Clock(), Consumer()
    generation = Generation(lambda _: None, lambda *_: None)
    generation.deliver(Started(3))
    tokens = TokenStream(generation, encode, consumer, clock, lambda: None, filler)
    tokens.run()
    tokens.pauseProducing()
    clock.advance(LONGEST_QUIET)
    assert consumer.value() == b""


def test_one_that_is_cancelled_leaves_nothing_to_wait_for() -> None:
    clock, consumer, cancelled = Clock(), Consumer(), list[Generation]()
    generation = Generation(cancelled.append, lambda *_: None)
    generation.deliver(Started(3))
    tokens = TokenStream(generation, encode, consumer, clock, lambda: None, filler)
    done = tokens.run()
    outcome(done)
    tokens.pauseProducing()
    done.cancel()
    assert cancelled == [generation]
    assert clock.getDelayedCalls() == []
    assert consumer.value() == b""
