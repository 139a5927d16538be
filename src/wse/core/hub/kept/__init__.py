"""Messages that are kept in a store: for users, whose devices each have a cursor, and for rooms."""
