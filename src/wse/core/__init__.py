"""Identities, connections, messages and calls, without sockets and without an event loop.

Whole messages come in through `Session.receive`, whole messages go out through a `Link`. Time, futures and tasks
come from the `Scheduler` that is handed in. Everything that touches the outside is an adapter around this package.
"""
