"""Message protocols: how one message becomes bytes, and back (WIRE.md section 2)."""
