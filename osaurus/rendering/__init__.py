"""Chat templates, rendered by a process of its own, bounded in time and memory: they are programs of strangers'."""
