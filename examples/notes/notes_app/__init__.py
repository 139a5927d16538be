"""Notes that several people share: a FastAPI application with a typed WebSocket server."""
