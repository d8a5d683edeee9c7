"""At-most-once conversations as state."""
