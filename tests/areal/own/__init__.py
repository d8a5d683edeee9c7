"""AReaL's tests of its controllers, with rolecall's workers where they have a mock of a scheduler."""
