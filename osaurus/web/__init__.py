"""The Klein resource tree and what surrounds every HTTP request."""
