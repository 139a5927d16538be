"""Handlers that say what they take: validation from hints, dependencies, middleware, routers, declared messages."""
