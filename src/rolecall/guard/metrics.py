"""The guard's metrics, and the counters behind them."""

from collections import Counter
from collections.abc import Collection, Mapping

from rolecall.guard.table import Record, State
from rolecall.transport.http.metrics import Metric, counter, gauge

Counts = Counter[str]  # what has happened since the guard started, by the metric's name


def metrics(counts: Counts, records: Collection[Record]) -> dict[str, float]:
    """What is counted, and what the workers are and use now, by name."""
    states = Counter(str(record.state) for record in records)
    return {
        "workers": len(records),
        **{f"workers_{state}": states[state] for state in State},
        "processes": sum(len(record.tracked) for record in records),
        "resident_bytes": sum(record.rss for record in records),
        **{name: counts[name] for name, metric in METRICS.items() if metric.kind == "counter"},
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
