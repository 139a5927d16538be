"""One connection at either side: messages, calls, and the queue for a slow receiver."""
