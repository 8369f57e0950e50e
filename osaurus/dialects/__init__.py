"""The OpenAI and Ollama wire formats: bytes to vocabulary and back; neither Twisted nor Klein."""
