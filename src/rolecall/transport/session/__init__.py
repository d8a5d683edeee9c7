"""At-most-once calls, as two pure state machines."""
