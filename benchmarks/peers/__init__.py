"""One program per runtime, each speaking the same few JSON lines, so that the product depends on none of them."""
