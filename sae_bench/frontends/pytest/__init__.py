"""The pytest plugin: options, one item per SAE and property, workers, and how a session ends."""
