"""The operations page: `WseServer(admin=identify)`.

    console     the procedures that the page calls; it asks the other nodes of a cluster as well
    directory   what one node knows of its users, rooms and devices, in bounded pieces
    journal     the last failures, and where they come from
    page        serves the page: on the built-in listener, in ASGI applications and in aiohttp
    static/     the page itself, a WSE client

The page has a server of its own, without a port, so operators are no users of the application and their connections
are not counted as its connections.
"""
