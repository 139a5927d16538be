"""The connections of a server: authentication, presence on this node, and messages to many."""
