"""HTTP/1.1 on the listeners that serve frames, so that `curl` works. It knows nothing of workers."""
