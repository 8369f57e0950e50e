"""The short names under which well-known models can be asked for."""

# Short name, as Ollama spells it → repository.
SHORT_NAMES = {
    "smollm2:135m": "HuggingFaceTB/SmolLM2-135M-Instruct",
}
