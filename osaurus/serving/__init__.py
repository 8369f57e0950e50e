"""Between the two worlds: from a request on the reactor to a row on the engine thread, and back."""
