"""From a model folder to a model in memory: what is refused, and what is not done."""

import json
import os
import sys
from contextlib import suppress
from importlib import import_module
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

PHI3_SMALL_CONFIG = {
    "model_type": "phi3small",
    "hidden_size": 64,
    "dense_attention_every_n_layers": 2,
    "ff_intermediate_size": 128,
    "gegelu_limit": 20.0,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "layer_norm_epsilon": 1e-5,
}


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


def changed(folder: Path, tokenizer: Tokenizer, **parts: Any) -> Path:
    """The folder of a tiny model whose tokenizer.json has some parts of its own."""
    write_tiny_model(folder, tokenizer)
    file = folder / "tokenizer.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **parts}))
    return folder


def test_a_tokenizer_that_rust_panics_about_is_damaged_like_any_other(
    desk: Desk, tmp_path: Path, tiny_tokenizer: Tokenizer
) -> None:
    normalizer = {"type": "Precompiled", "precompiled_charsmap": "AAAA"}
    folder = changed(tmp_path / "broken", tiny_tokenizer, normalizer=normalizer)
    with pytest.raises(ModelLoadFailed, match=r"its tokenizer .* is damaged or of no known kind: .*PanicException"):
        desk.engine.load("broken", folder)


@pytest.mark.parametrize("number", [10**6, 2**31])
def test_a_token_with_a_number_far_beyond_the_others_is_refused_before_anything_counts_up_to_it(
    desk: Desk, tmp_path: Path, tiny_tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    model = json.loads(tiny_tokenizer.to_str())["model"]
    model["vocab"]["zzz"] = number
    folder = changed(tmp_path / "holed", tiny_tokenizer, model=model)
    # Else it would take minutes, and the memory of the machine.
    monkeypatch.setattr(import_module("osaurus.engine.loader"), "load_tokenizer", None)
    with pytest.raises(ModelLoadFailed, match=f"one of its tokens has the number {number}; there may be 1000000"):
        desk.engine.load("holed", folder)


def test_a_vocabulary_may_have_a_hole_and_a_token_may_spell_a_large_number(
    desk: Desk, tmp_path: Path, tiny_tokenizer: Tokenizer
) -> None:
    model = json.loads(tiny_tokenizer.to_str())["model"]
    model["vocab"] |= {"zzz": 10**6 - 1, ":5000000": 400}
    folder = changed(tmp_path / "holed", tiny_tokenizer, model=model)
    assert desk.engine.load("holed", folder).tokenizer.token_to_id("zzz") == 10**6 - 1


def test_a_tokenizer_has_a_size_beyond_which_it_is_not_read(
    desk: Desk, tmp_path: Path, tiny_tokenizer: Tokenizer
) -> None:
    write_tiny_model(tmp_path / "huge", tiny_tokenizer)
    os.truncate(tmp_path / "huge" / "tokenizer.json", 2**27 + 1)
    with pytest.raises(ModelLoadFailed, match=r"its tokenizer.json has 134217729 bytes; there may be 134217728"):
        desk.engine.load("huge", tmp_path / "huge")


def test_without_a_tokenizer_a_model_is_refused(desk: Desk, tmp_path: Path, tiny_tokenizer: Tokenizer) -> None:
    write_tiny_model(tmp_path / "mute", tiny_tokenizer)
    (tmp_path / "mute" / "tokenizer.json").unlink()
    with pytest.raises(ModelLoadFailed, match=r"its folder has no tokenizer.json"):
        desk.engine.load("mute", tmp_path / "mute")


def test_a_network_that_writes_to_logits_that_it_has_not_is_refused(
    desk: Desk, tmp_path: Path, tiny_tokenizer: Tokenizer
) -> None:
    """The code for Phi-3 small has the numbers of tokens in it, and MLX does not check where it writes."""
    write_tiny_model(tmp_path / "small", tiny_tokenizer, architecture=PHI3_SMALL_CONFIG)
    with pytest.raises(ModelLoadFailed, match="knows 400 tokens; mlx-lm's code for phi3small needs 100352"):
        desk.engine.load("small", tmp_path / "small")


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
        request = GenerationRequest(
            model="grown", raw=raw, max_tokens=4, max_tokens_may_shrink=True, prompt_field="prompt"
        )
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
    template = of_template(desk, tmp_path / "writing", tiny_tokenizer, chat_template="{{ 'x' * 40000000 }}")
    with pytest.raises(TemplateStopped, match="writes too much"):
        rendered(template)


def test_what_renders_ends_with_the_model(desk: Desk) -> None:
    desk.alone("Hello")
    process = desk.engine.load("tiny", desk.folder("tiny")).prompt._template._renderer._process.popen
    assert process.poll() is None
    desk.engine.unload("tiny")
    assert process.returncode is not None
