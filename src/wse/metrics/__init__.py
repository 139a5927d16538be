"""The numbers of a server for monitoring systems: what they are (`families`), and where they come from (`source`)."""
