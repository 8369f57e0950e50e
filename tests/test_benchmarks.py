"""What the benchmarks make of what servers send, and of what they wrote themselves."""

import argparse
import json
import math
import os
from pathlib import Path

import pytest
from conversation import Conversation
from conversation import row as conversation_row
from load import Arrivals, Figures, Target, line, medians, percentile, row
from plot import draw, read
from run import osaurus, peak

# A server that tells its usage in a chunk of its own, as this one and mlx_lm.server do.
OURS = (
    b'data: {"id":"chatcmpl-1","object":"chat.completion.chunk","choices":[{"index":0,"delta":{"role":"assistant",'
    b'"content":""},"finish_reason":null}],"usage":null}\n\n'
    b'data: {"id":"chatcmpl-1","object":"chat.completion.chunk","choices":[{"index":0,"delta":{"content":"The old"},'
    b'"finish_reason":null}],"usage":null}\n\n'
    b'data: {"id":"chatcmpl-1","object":"chat.completion.chunk","choices":[{"index":0,"delta":{"content":" sailor"},'
    b'"finish_reason":null}],"usage":null}\n\n'
    b'data: {"id":"chatcmpl-1","object":"chat.completion.chunk","choices":[{"index":0,"delta":{},'
    b'"finish_reason":"length"}],"usage":null}\n\n'
    b'data: {"id":"chatcmpl-1","object":"chat.completion.chunk","choices":[],"usage":{"prompt_tokens":63,'
    b'"completion_tokens":3,"total_tokens":66,"prompt_tokens_details":{"cached_tokens":0}}}\n\n'
    b"data: [DONE]\n\n"
)

# llama.cpp's server tells it in the chunk that says why the answer ended.
LLAMA = (
    b'data: {"choices":[{"finish_reason":null,"index":0,"delta":{"content":"The"}}],"created":1795439140,'
    b'"id":"chatcmpl-Y9nI","model":"default","system_fingerprint":"b1-8733e0c","object":"chat.completion.chunk"}\n\n'
    b'data: {"choices":[{"finish_reason":"length","index":0,"delta":{}}],"created":1795439140,"id":"chatcmpl-Y9nI",'
    b'"model":"default","system_fingerprint":"b1-8733e0c","object":"chat.completion.chunk","usage":'
    b'{"completion_tokens":3,"prompt_tokens":63,"total_tokens":66},"timings":{"prompt_n":1,"prompt_ms":98.009}}\n\n'
    b"data: [DONE]\n\n"
)

SERVER = Target("Osaurus", "http://127.0.0.1:1337/v1", "smollm2:135m")


def figures(tokens_per_second: float) -> Figures:
    return Figures(tokens_per_second, tokens_per_answer=48, first_token=0.25, gap_p50=0.07, gap_p99=0.08)


@pytest.mark.parametrize("size", [1, 7, 10_000])
def test_pieces_are_those_with_text_however_the_stream_is_cut(size: int) -> None:
    arrivals = Arrivals()
    for start in range(0, len(OURS), size):
        arrivals.collect(OURS[start : start + size])
    assert arrivals.pieces == ["The old", " sailor"]
    assert len(arrivals.times) == 2
    assert len(arrivals.gaps) == 1


@pytest.mark.parametrize(("stream", "tokens"), [(OURS, 3), (LLAMA, 3), (LLAMA.replace(b'"usage"', b'"use"'), 1)])
def test_tokens_are_those_the_server_tells_else_the_pieces(stream: bytes, tokens: int) -> None:
    arrivals = Arrivals()
    arrivals.collect(stream)
    assert arrivals.tokens == tokens


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("http://127.0.0.1:1337/v1=smollm2:135m", "http://127.0.0.1:1337/v1"),
        ("Osaurus=http://127.0.0.1:1337/v1=smollm2:135m", "Osaurus"),
    ],
)
def test_a_target_may_have_a_name(text: str, name: str) -> None:
    assert Target.parse(text) == Target(name, "http://127.0.0.1:1337/v1", "smollm2:135m")


@pytest.mark.parametrize("text", ["http://127.0.0.1:1337/v1", "Osaurus=smollm2:135m", "http://127.0.0.1:1337/v1="])
def test_what_is_no_target_is_refused(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError):
        Target.parse(text)


def test_percentiles_lie_among_the_values() -> None:
    assert percentile([1, 2], 99) <= 2
    assert percentile(range(101), 50) == 50
    assert percentile([3], 99) == 3
    assert math.isnan(percentile([], 50))


def test_rows_compare_the_medians_with_the_first_server() -> None:
    middle = medians([figures(10), figures(30), figures(20)])
    assert middle.tokens_per_second == 20
    assert "ratio  2.00" in row(4, SERVER, middle, figures(10))
    held = [Conversation(first_tokens=[0.1 * turn for turn in range(1, 11)], total=6, tokens=320, gaps=[0.07, 0.08])]
    said = conversation_row(SERVER, held, [Conversation([1] * 10, 12, 320, [0.1])])
    assert "ratio  0.50" in said
    assert "turns 1, 5, 10: 100, 500, 1000 ms" in said


def test_what_load_writes_is_what_plot_reads_and_the_later_counts() -> None:
    other = Target("mlx_lm.server", "http://127.0.0.1:8080/v1", "default_model")
    lines = [
        line("story", 1, SERVER, figures(10)),
        line("rewrite", 1, SERVER, figures(99)),
        line("story", 4, SERVER, figures(40)),
        line("story", 1, other, figures(9)),
        line("story", 1, SERVER, figures(11)),
    ]
    assert all(text.endswith("\n") and json.loads(text)["first_token"] == 0.25 for text in lines)
    assert read(lines, "story") == {"Osaurus": {1: 11, 4: 40}, "mlx_lm.server": {1: 9}}


def test_the_same_figures_give_the_same_drawing(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    drawings = [tmp_path / "first.svg", tmp_path / "second.svg"]
    for drawing in drawings:
        draw({"Osaurus": {1: 11, 4: 40}, "mlx_lm.server": {1: 9, 4: 30}}, drawing)
    first, second = (drawing.read_text("utf-8") for drawing in drawings)
    assert first == second
    assert "mlx_lm.server" in first
    assert "<dc:date>" not in first


def test_every_osaurus_is_started_with_the_settings_of_all_and_its_own(tmp_path: Path) -> None:
    command, port = osaurus(tmp_path, speculation="off")
    options = command[command.index("osaurus") + 1 :]
    given = dict(zip(options[::2], options[1::2], strict=True))
    assert given["--port"] == str(port)
    assert given["--models-dir"] == str(tmp_path)
    assert given["--speculation"] == "off"


def test_the_memory_of_a_process_is_told() -> None:
    assert peak(os.getpid()) > 2**20
