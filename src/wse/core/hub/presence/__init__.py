"""Presence in rooms: what the members of a room show each other, such as cursors, or that they are typing."""
