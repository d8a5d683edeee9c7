"""What `rolecall doctor` looks at, one noun per file. A check changes nothing and yields findings."""

from rolecall.placement.outside import Finding, Severity

__all__ = ["Finding", "Severity"]
