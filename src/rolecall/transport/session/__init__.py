"""At most once, as two pure state machines."""
