"""Which models exist on this machine, and getting them."""
