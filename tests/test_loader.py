"""From a model folder to a model in memory: what is refused, and what is not done."""

import json
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer

from osaurus.chat import (
    GenerationRequest,
    InvalidRequest,
    Message,
    ModelLoadFailed,
    Sampling,
    TemplateStopped,
    Text,
    Tokens,
)

from .conftest import write_tiny_model
from .desk import Desk


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("config.json", b'{"model_type": "no-such-architecture"}'),
        ("config.json", b'{"model_type": "llama", "model_file": "evil.py"}'),
        ("model.safetensors", b"not weights"),
        ("tokenizer.json", b"{}"),
    ],
)
def test_a_model_that_cannot_be_loaded_says_why_and_harms_nothing(
    desk: Desk, tmp_path: Path, tiny_tokenizer: Tokenizer, file: str, content: bytes
) -> None:
    alone = desk.alone("Hello")
    write_tiny_model(tmp_path / "broken", tiny_tokenizer)
    (tmp_path / "broken" / file).write_bytes(content)
    with pytest.raises(ModelLoadFailed, match="broken could not be loaded"):
        desk.engine.load("broken", tmp_path / "broken")
    assert desk.alone("Hello") == alone


@pytest.mark.parametrize("content", [b'{"a": 1}', b"{", b"\xff"])
def test_a_damaged_tokenizer_is_told_in_plain_words(
    desk: Desk, tmp_path: Path, tiny_tokenizer: Tokenizer, content: bytes
) -> None:
    write_tiny_model(tmp_path / "broken", tiny_tokenizer)
    (tmp_path / "broken" / "tokenizer.json").write_bytes(content)
    with pytest.raises(ModelLoadFailed, match=r"its tokenizer \(tokenizer.json, .*\) is damaged or of no known kind"):
        desk.engine.load("broken", tmp_path / "broken")


def test_tokens_that_the_network_does_not_know_are_refused(
    desk: Desk, tmp_path: Path, tiny_tokenizer: Tokenizer
) -> None:
    """A tokenizer to which tokens were added behind the network's back: MLX would read beyond its weights."""
    write_tiny_model(tmp_path / "grown", tiny_tokenizer)
    grown = Tokenizer.from_str(tiny_tokenizer.to_str())
    grown.add_special_tokens([AddedToken("<|new|>", special=True)])
    grown.save(str(tmp_path / "grown" / "tokenizer.json"))
    number = grown.token_to_id("<|new|>")
    assert number == tiny_tokenizer.get_vocab_size()
    prompt = desk.engine.load("grown", tmp_path / "grown").prompt
    for raw in (Tokens((5, number)), Text(text="Hello <|new|>")):
        request = GenerationRequest(model="grown", raw=raw, max_tokens=4, max_tokens_may_shrink=True)
        with pytest.raises(
            InvalidRequest, match=f"no token {number}; they are numbered from 0 to {number - 1}"
        ) as caught:
            prompt.encode(request)
        assert caught.value.param == "prompt"
    biased = GenerationRequest(
        model="grown",
        messages=(Message("user", "Hello"),),
        max_tokens=4,
        max_tokens_may_shrink=True,
        sampling=Sampling(bias=((number, 5.0),)),
    )
    with pytest.raises(InvalidRequest, match=f"no token {number}"):
        prompt.encode(biased)


def test_a_base_model_continues_text_and_holds_no_conversation(
    desk: Desk, tmp_path: Path, tiny_tokenizer: Tokenizer
) -> None:
    folder = tmp_path / "tests" / "base"
    write_tiny_model(folder, tiny_tokenizer)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    del config["chat_template"]
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    expected = desk.alone("", raw=Text(text="Hello"))
    desk.models = tmp_path
    assert desk.alone("", name="base", raw=Text(text="Hello")) == expected
    with pytest.raises(InvalidRequest, match=r"has no chat template.*/v1/completions"):
        desk.alone("Hello", name="base")


def test_a_prompt_is_never_cut_whatever_the_tokenizer_file_says(
    desk: Desk, tmp_path: Path, tiny_tokenizer: Tokenizer
) -> None:
    folder = tmp_path / "cut"
    write_tiny_model(folder, tiny_tokenizer)
    cutting = Tokenizer.from_file(str(folder / "tokenizer.json"))
    cutting.enable_truncation(16)
    cutting.save(str(folder / "tokenizer.json"))
    request = GenerationRequest(
        model="cut", messages=(Message("user", "word " * 40),), max_tokens=1, max_tokens_may_shrink=True
    )
    prompt = desk.engine.load("cut", folder).prompt.encode(request).tokens
    assert len(prompt) > 40


def test_no_code_of_a_models_own_is_run(desk: Desk, tmp_path: Path, tiny_tokenizer: Tokenizer) -> None:
    folder = tmp_path / "evil"
    write_tiny_model(folder, tiny_tokenizer)
    config = (folder / "config.json").read_text().replace("{", '{"model_file": "evil.py", ', 1)
    (folder / "config.json").write_text(config)
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    with pytest.raises(ModelLoadFailed):
        desk.engine.load("evil", folder)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("answer", [b"y\n", b""], ids=["somebody says yes", "nobody is there"])
def test_no_class_of_a_models_own_is_imported(
    desk: Desk, tmp_path: Path, tiny_tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch, answer: bytes
) -> None:
    # Left to itself, Transformers asks whoever sits at the terminal.
    (tmp_path / "answer").write_bytes(answer)
    folder = tmp_path / "evil"
    write_tiny_model(folder, tiny_tokenizer)
    for name, classes in (
        ("config.json", {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}),
        ("tokenizer_config.json", {"AutoTokenizer": ["evil.Tokenizer", "evil.Tokenizer"]}),
    ):
        content = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps({**content, "auto_map": classes, "tokenizer_class": "Evil"}))
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    with (tmp_path / "answer").open() as terminal:
        monkeypatch.setattr(sys, "stdin", terminal)
        with suppress(ModelLoadFailed):
            desk.engine.load("evil", folder)
    assert not (tmp_path / "ran").exists()


def of_template(desk: Desk, folder: Path, tokenizer: Tokenizer, **settings: Any) -> Any:
    """What renders the conversations of a model with these settings of its tokenizer."""
    write_tiny_model(folder, tokenizer)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(config | settings))
    return desk.engine.load(folder.name, folder).prompt._template


def rendered(template: Any, **variables: Any) -> str:
    """What becomes of a conversation, up to where the assistant is to speak."""
    conversation = [{"role": "user", "content": "Hello"}]
    text = template.apply_chat_template(conversation, tokenize=False, add_generation_prompt=True, **variables)
    assert isinstance(text, str)
    return text


def test_a_template_is_given_what_transformers_gives_it(desk: Desk, tmp_path: Path, tiny_tokenizer: Tokenizer) -> None:
    source = (
        "{{ bos_token }}{{ eos_token }}{{ tools is none }}{{ documents is none }}{{ messages[0].content }}"
        "{{ add_generation_prompt }}{{ enable_thinking }}{{ thinking }}{{ reasoning_effort }}"
    )
    template = of_template(desk, tmp_path / "given", tiny_tokenizer, chat_template=source, bos_token="<|im_start|>")
    expected = "<|im_start|><|im_end|>TrueTrueHelloTrue"
    assert rendered(template) == expected
    assert rendered(template, enable_thinking=False, reasoning_effort="low") == expected + "FalseFalselow"
    assert rendered(template, bos_token="<s>").startswith("<s>")


def test_of_several_templates_one_is_for_conversations_with_tools(
    desk: Desk, tmp_path: Path, tiny_tokenizer: Tokenizer
) -> None:
    several = [{"name": "default", "template": "none"}, {"name": "tool_use", "template": "{{ tools | length }}"}]
    template = of_template(desk, tmp_path / "several", tiny_tokenizer, chat_template=several)
    assert rendered(template) == "none"
    assert rendered(template, tools=[{}, {}]) == "2"
    assert rendered(template, tools=None) == "none"


def test_a_template_that_mlx_lm_has_in_python_is_no_strangers_and_needs_no_process(
    desk: Desk, tmp_path: Path, tiny_tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    template = of_template(desk, tmp_path / "python", tiny_tokenizer, chat_template_type="deepseek_v32")
    assert "Hello" in rendered(template)


def test_a_template_may_write_no_more_than_the_context_holds(
    desk: Desk, tmp_path: Path, tiny_tokenizer: Tokenizer
) -> None:
    template = of_template(desk, tmp_path / "writing", tiny_tokenizer, chat_template="{{ 'x' * 200000000 }}")
    with pytest.raises(TemplateStopped, match="writes too much"):
        rendered(template)


def test_what_renders_ends_with_the_model(desk: Desk) -> None:
    desk.alone("Hello")
    process = desk.engine.load("tiny", desk.folder("tiny")).prompt._template._renderer._process.popen
    assert process.poll() is None
    desk.engine.unload("tiny")
    assert process.returncode is not None
