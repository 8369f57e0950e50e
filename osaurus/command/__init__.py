"""The `osaurus` command: a module for each group of subcommands, and what they share."""
