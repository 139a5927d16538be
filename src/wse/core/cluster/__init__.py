"""Several nodes that act as one."""
