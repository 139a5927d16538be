"""One connection at either side: messages, calls, and what waits for a slow receiver."""
