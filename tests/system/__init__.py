"""The server among programs of the system: proxies in front of it."""
