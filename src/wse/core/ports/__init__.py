"""The interfaces between the core and what surrounds it, with the guarantees that each side gives."""
