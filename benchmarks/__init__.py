"""Programs that measure. They run the peers beside us; none is a test and none asserts a time."""
