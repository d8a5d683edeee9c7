"""Where the bytes of shards lie."""
