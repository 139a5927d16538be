"""A server's connections: who is let in, who is there, and messages to many."""
