"""The log: what a line looks like, and where it goes."""
