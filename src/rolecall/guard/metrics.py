"""The guard's numbers, and how they are written for a scraper. Pure but for the counters that it holds."""

import time
from collections import Counter
from collections.abc import Iterable

from rolecall.guard.table import Record


class Counts:
    """What has happened since the guard began."""

    def __init__(self) -> None:
        self.began = time.monotonic()
        self.starts = 0
        self.failed_starts = 0
        self.exits = 0
        self.stalls = 0

    def metrics(self, records: Iterable[Record], ports: int, respawns: int, lease_age: float) -> dict[str, float]:
        """All numbers by name."""
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


def exposition(metrics: dict[str, float], guard_id: str) -> str:
    """The text format that Prometheus reads."""
    lines = []
    for name, value in metrics.items():
        lines.append(f"# TYPE rolecall_guard_{name} {'counter' if name.endswith('_total') else 'gauge'}")
        lines.append(f'rolecall_guard_{name}{{guard="{guard_id}"}} {value:g}')
    return "\n".join(lines) + "\n"
