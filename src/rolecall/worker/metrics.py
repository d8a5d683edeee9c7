"""Kind and help text of a worker's metrics, by their path in the JSON form of `/metrics`."""

from __future__ import annotations

from collections.abc import Mapping

from rolecall.transport.http.metrics import Metric, counter, gauge

LABELS: Mapping[str, str] = {"store.backends": "backend"}  # the label that holds the name of each member

METRICS: Mapping[str, Metric] = {
    "uptime_s": gauge("Seconds since the worker began to listen."),
    "cpu_s": counter("Seconds of CPU time used, user and system."),
    "rss_bytes": gauge("Resident memory."),
    "open_fds": gauge("Open file descriptors."),
    "threads": gauge("Threads of the process."),
    "calls_begun": counter("Engine calls that began to run."),
    "calls_ended": counter("Engine calls that ended, however."),
    "calls_waiting": gauge("Calls that wait for their engine thread."),
    "store.shards": gauge("Shards stored here."),
    "store.bytes": gauge("Bytes of the shards stored here."),
    "store.put": counter("Shards stored so far."),
    "store.put_bytes": counter("Bytes stored so far."),
    "store.freed": counter("Shards freed so far."),
    "store.freed_bytes": counter("Bytes freed so far."),
    "store.served": counter("Shards read by request so far."),
    "store.served_bytes": counter("Bytes read by request so far."),
    "fetch.fetches": counter("Fetches planned, each of any number of handles."),
    "fetch.own_bytes": counter("Bytes of fetched shards that this worker stores itself."),
    "fetch.cached_bytes": counter("Bytes that came from the cache."),
    "fetch.mapped_bytes": counter("Bytes of fetched shards that were reached without a request to their owner."),
    "fetch.wire_bytes": counter("Bytes that came over connections."),
    "fetch.cache.shards": gauge("Shards of which the cache holds a part."),
    "fetch.cache.bytes": gauge("Bytes in the cache."),
    "fetch.cache.budget": gauge("Bytes that the cache may hold."),
    "fetch.cache.hits": counter("Ranges found in the cache."),
    "fetch.cache.misses": counter("Ranges not found in the cache."),
    "fetch.cache.evicted_bytes": counter("Bytes that the cache gave up for others."),
}
