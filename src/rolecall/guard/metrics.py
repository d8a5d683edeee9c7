"""The guard's metrics, and the counters behind them."""

import time
from collections import Counter
from collections.abc import Iterable, Mapping

from rolecall.guard.table import Record
from rolecall.transport.http.metrics import Metric, counter, gauge


class Counts:
    """What has happened since the guard started."""

    def __init__(self) -> None:
        self.began = time.monotonic()
        self.starts = 0
        self.failed_starts = 0
        self.exits = 0
        self.stalls = 0

    def metrics(self, records: Iterable[Record], ports: int, respawns: int, lease_age: float) -> dict[str, float]:
        """All metrics by name."""
        records = list(records)
        states = Counter(str(record.state) for record in records)
        return {
            "uptime_seconds": time.monotonic() - self.began,
            "workers": len(records),
            **{f"workers_{state}": states[state] for state in ("starting", "ready", "ending")},
            "processes": sum(len(record.tracked) for record in records),
            "resident_bytes": sum(record.rss for record in records),
            "ports_leased": ports,
            "starts_total": self.starts,
            "failed_starts_total": self.failed_starts,
            "unexpected_exits_total": self.exits,
            "stalls_total": self.stalls,
            "template_respawns_total": respawns,
            "lease_age_seconds": lease_age,
        }


METRICS: Mapping[str, Metric] = {
    "uptime_seconds": gauge("Seconds since the guard started."),
    "workers": gauge("Workers that the guard owns."),
    "workers_starting": gauge("Workers that are not ready yet."),
    "workers_ready": gauge("Workers that are ready."),
    "workers_ending": gauge("Workers that are being ended."),
    "processes": gauge("Processes of all workers, their descendants included."),
    "resident_bytes": gauge("Resident memory of all workers."),
    "ports_leased": gauge("Ports that the guard holds leases of."),
    "starts_total": counter("Workers that were started."),
    "failed_starts_total": counter("Starts that failed."),
    "unexpected_exits_total": counter("Workers that ended without being asked to."),
    "stalls_total": counter("Workers that were found stalled."),
    "template_respawns_total": counter("Times that the template process was started again."),
    "lease_age_seconds": gauge("Seconds since the controller renewed the lease."),
}
