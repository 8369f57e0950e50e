"""Which architectures there is code for, as mlx-lm itself has it."""

import ast
import inspect
from importlib import import_module

import pytest

from osaurus.engine.backend import Backend
from osaurus.library.architectures import OTHER_NAMES, QUANTIZATION_METHODS, known


@pytest.mark.parametrize("model_type", ["llama", "mistral", "qwen3", "gemma3_text", "lfm2", "smollm3", "phi-msft"])
def test_what_mlx_lm_has_code_for_is_known(model_type: str, backend: Backend) -> None:
    assert known(model_type)
    assert import_module(f"mlx_lm.models.{OTHER_NAMES.get(model_type, model_type)}").Model


@pytest.mark.parametrize("model_type", ["bert", "whisper", "", "../utils", "__init__", "llama.py", "models.llama"])
def test_anything_else_is_not(model_type: str) -> None:
    assert not known(model_type)


def test_the_other_names_are_mlx_lms(backend: Backend) -> None:
    assert import_module("mlx_lm.utils").MODEL_REMAPPING == OTHER_NAMES


def test_the_ways_to_quantise_are_those_that_mlx_lm_asks_for(backend: Backend) -> None:
    source = ast.parse(inspect.getsource(import_module("mlx_lm.utils").load_model))
    compared = {
        constant.value
        for node in ast.walk(source)
        if isinstance(node, ast.Compare) and isinstance(node.left, ast.Name) and node.left.id == "quant_method"
        for constant in ast.walk(node)
        if isinstance(constant, ast.Constant)
    }
    assert compared == set(QUANTIZATION_METHODS)
