"""Whether the rows of a network may be computed together, on networks of mlx_lm's that are right and that are not."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer
from twisted.logger import LogEvent, capturedLogs

from osaurus.engine.backend import Backend

from .conftest import ARCHITECTURES, write_tiny_model
from .desk import PROMPTS, another

# One position for all rows.
SAME_POSITION_CONFIG = {
    "model_type": "gpt_bigcode",
    "n_embd": 64,
    "n_layer": 2,
    "n_inner": 128,
    "n_head": 4,
    "n_positions": 512,
    "layer_norm_epsilon": 1e-5,
    "num_key_value_heads": 1,
}
# The last layers look at keys of one before them from where padding begins.
PADDED_POSITIONS_CONFIG = {
    "model_type": "afm7",
    "hidden_dim": 64,
    "num_layers": 4,
    "num_kv_reuse_layers": 2,
    "num_heads": 4,
    "num_kv_heads": 2,
    "rope_theta": 100.0,
    "max_position_embeddings": 1024,
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: Tokenizer, backend: Backend) -> Path:
    folder = tmp_path_factory.mktemp("networks")
    wrong = {"raising": SAME_POSITION_CONFIG, "off": PADDED_POSITIONS_CONFIG}
    for name, config in (ARCHITECTURES | wrong).items():
        write_tiny_model(folder / "tests" / name, tiny_tokenizer, architecture=config)
    return folder


def reasons(events: Sequence[LogEvent]) -> list[str]:
    """Why models answer one request at a time, as the log was told."""
    return [str(event["reason"]) for event in events if "one request at a time" in (event.get("log_format") or "")]


def loaded(backend: Backend, models: Path, name: str) -> Any:
    desk = another(backend, models)
    return desk.engine.load(name, desk.folder(name))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_rows_of_a_network_that_is_right_are_computed_together(backend: Backend, models: Path, name: str) -> None:
    with capturedLogs() as events:
        assert loaded(backend, models, name).batchable
    assert reasons(events) == []


@pytest.mark.parametrize(
    ("name", "reason"), [("raising", "together they fail with"), ("off", "together they are off by")]
)
def test_rows_of_a_network_that_is_wrong_say_what_each_says_alone(
    backend: Backend, models: Path, name: str, reason: str
) -> None:
    desk = another(backend, models)
    with capturedLogs() as events:
        alone = [desk.alone(prompt, name=name) for prompt in PROMPTS]
    assert [reason in told for told in reasons(events)] == [True]
    for number, prompt in enumerate(PROMPTS):
        desk.add(number, prompt, name=name)
    together = desk.finish()
    assert [together.get(number, "") for number in range(len(PROMPTS))] == alone


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_rows_that_are_not_computed_together_are_kept_and_found_again(
    backend: Backend, models: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Whatever their caches are: none is in a batch that it would have to be taken out of."""
    usual = another(backend, models)
    expected = [usual.alone(prompt, name=name, max_tokens=48) for prompt in PROMPTS]
    monkeypatch.setattr("osaurus.engine.batchable.MOST_OFF", -1)
    desk = another(backend, models)
    for _ in range(2):
        for number, prompt in enumerate(PROMPTS):
            desk.add(number, prompt, name=name, max_tokens=48)
        texts = desk.finish()
        assert [texts.pop(number, "") for number in range(len(PROMPTS))] == expected
    assert not loaded(backend, models, name).batchable


@pytest.mark.parametrize(("off", "right"), [([0.01], True), ([0.6, 0.4, 0.01], True), ([0.6, 0.4, 0.5], False)])
def test_a_network_is_wrong_only_if_it_is_wrong_each_time(
    backend: Backend, models: Path, monkeypatch: pytest.MonkeyPatch, off: list[float], right: bool
) -> None:
    """A mixture of experts may choose others by chance."""
    monkeypatch.setattr("osaurus.engine.batchable._off", lambda *_: off.pop(0))
    assert loaded(backend, models, "tiny").batchable == right
    assert off == []


def test_tokens_that_are_never_written_are_not_compared_and_those_that_become_so_are_wrong(
    backend: Backend, models: Path
) -> None:
    import mlx.core as mx

    from osaurus.engine.batchable import batchable

    class Masked:
        """A network some of whose logits are no numbers: the first, or that of any row that has company."""

        def __init__(self, *, in_company: bool) -> None:
            self.network = loaded(backend, models, "tiny").network
            self.layers = self.network.layers
            self.in_company = in_company

        def __call__(self, tokens: mx.array, cache: Any) -> mx.array:
            logits: mx.array = self.network(tokens, cache=cache)
            place = 1 if self.in_company and tokens.shape[0] > 1 else 0
            logits[..., place] = float("-inf")
            return logits

    assert batchable("masked", Masked(in_company=False), 300)
    assert not batchable("masked", Masked(in_company=True), 300)


def test_trying_disturbs_nothing_that_is_drawn(backend: Backend, models: Path) -> None:
    import mlx.core as mx

    from osaurus.engine.batchable import batchable

    network = loaded(backend, models, "tiny").network
    drawn = []
    for tried in (False, True):
        mx.random.seed(7)
        assert not tried or batchable("tiny", network, 300)
        drawn.append(mx.random.uniform(shape=(4,)).tolist())
    assert drawn[0] == drawn[1]
