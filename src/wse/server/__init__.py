"""The server: the core put together with its transports, its broker and its life cycle."""
