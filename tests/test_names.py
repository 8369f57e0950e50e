"""What models are called."""

import pytest

from osaurus.library.names import SHORT_NAMES, USUAL_SIZES, in_full, model_id, repository


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("llama3.2:3b", "mlx-community/Llama-3.2-3B-Instruct-4bit"),
        ("Qwen3:4B", "mlx-community/Qwen3-4B-4bit"),
        ("llama3.2", "mlx-community/Llama-3.2-3B-Instruct-4bit"),
        ("llama3.2:latest", "mlx-community/Llama-3.2-3B-Instruct-4bit"),
        ("llama3.2:1b:latest", "mlx-community/Llama-3.2-1B-Instruct-4bit"),
        ("Org/Name", "Org/Name"),
        ("Org/Name:LATEST", "Org/Name"),
    ],
)
def test_a_name_stands_for_a_repository(name: str, meant: str) -> None:
    assert repository(name) == meant


@pytest.mark.parametrize(
    "name", ["llama3.2:99b", "tiny", "", ":latest", "org/name:4b", "org/-name", "org/name.", "a/b/c"]
)
def test_any_other_name_is_none(name: str) -> None:
    assert repository(name) is None


def test_a_name_that_is_not_short_is_what_it_is() -> None:
    assert in_full("My-Model:latest") == "My-Model"


def test_every_short_name_has_a_family_and_a_size_and_a_repository_that_there_can_be() -> None:
    for name, meant in SHORT_NAMES.items():
        family, _, size = name.partition(":")
        assert name == name.lower()
        assert size
        assert family in USUAL_SIZES
        assert repository(meant) == meant


def test_the_usual_size_of_a_family_is_one_that_there_is() -> None:
    for family, size in USUAL_SIZES.items():
        assert f"{family}:{size}" in SHORT_NAMES


@pytest.mark.parametrize(
    ("name", "expected"),
    [("org/Llama-3.2-3B", "llama-3.2-3b"), ("org/My_Model V2", "my-model-v2"), ("gpt2", "gpt2")],
)
def test_an_id_is_in_lower_case_with_hyphens(name: str, expected: str) -> None:
    assert model_id(name) == expected
