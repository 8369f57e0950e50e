"""Real clients in front of a real server: what their SDKs make of its answers."""
