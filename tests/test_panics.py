"""What Rust raises is an error like others; what ends a program is not."""

import pytest

from osaurus.engine.panics import Panicked, panics_as_errors


class Panic(BaseException):
    """What Rust raises, of a class that each extension has for itself."""


def test_a_panic_is_an_error_that_says_what_it_was() -> None:
    with pytest.raises(Panicked, match="Panic: at the disco") as caught, panics_as_errors():
        raise Panic("at the disco")
    assert isinstance(caught.value.__cause__, Panic)


@pytest.mark.parametrize("raised", [KeyboardInterrupt, SystemExit, GeneratorExit, ValueError])
def test_all_else_is_passed_on(raised: type[BaseException]) -> None:
    with pytest.raises(raised), panics_as_errors():
        raise raised


def test_a_function_may_be_held_to_it() -> None:
    @panics_as_errors()
    def function(panicking: bool) -> int:
        if panicking:
            raise Panic
        return 1

    for _ in range(2):
        assert function(False) == 1
        with pytest.raises(Panicked):
            function(True)
