"""Osaurus: MLX language models from your own machine, over the OpenAI and the Ollama HTTP APIs."""

__version__ = "0.1.0"
