"""Chat templates, rendered by a process that can do no harm: they are programs of strangers'."""
