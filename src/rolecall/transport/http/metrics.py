"""Writes metrics in Prometheus' text format or as JSON. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any, Literal, NamedTuple

from rolecall.transport.http.messages import JSON, Request, Response, json_response

TEXT = "text/plain; version=0.0.4; charset=utf-8"


class Metric(NamedTuple):
    """Kind and help text of a metric."""

    kind: Literal["counter", "gauge"]
    help: str


counter = partial(Metric, "counter")  # a number that only grows
gauge = partial(Metric, "gauge")  # a number that goes up and down


def metrics_response(
    request: Request,
    prefix: str,
    labels: Mapping[str, str],
    numbers: Mapping[str, Any],
    described: Mapping[str, Metric],
    labelled: Mapping[str, str] | None = None,
) -> Response:
    """The numbers as JSON if the client asked with `?format=json` or `Accept: application/json`, else as text.

    The text is the format that Prometheus reads: each metric once, with HELP, TYPE and all its samples.

    Args:
        numbers: Numbers by name, and further mappings of them.
        described: Kind and help text of each number, by its place in `numbers`, for instance `store.bytes`.
        labelled: Places of mappings whose keys become a label of that name, not a part of the metrics' names.
    """
    if request.query.get("format") == "json" or JSON in request.headers.get("accept", ""):
        return json_response(numbers)
    labelled = labelled or {}
    families: dict[str, list[str]] = {}
    for place, more, value in _flat(numbers, labelled, "", {}):
        metric = described.get(place) or gauge(f"The number {place} of the JSON form.")
        name = _name(prefix, place, metric)
        family = families.setdefault(name, [f"# HELP {name} {metric.help}", f"# TYPE {name} {metric.kind}"])
        shown = ",".join(f'{key}="{_escaped(text)}"' for key, text in {**labels, **more}.items())
        family.append(f"{name}{{{shown}}} {float(value) if isinstance(value, bool) else value!r}")
    text = "".join(f"{line}\n" for lines in families.values() for line in lines)
    return Response(200, {"content-type": TEXT}, text.encode())


def _flat(
    numbers: Mapping[str, Any], labelled: Mapping[str, str], above: str, labels: dict[str, str]
) -> Iterator[tuple[str, dict[str, str], int | float]]:
    """Every number with its place and the labels that its place gives it."""
    for key, value in numbers.items():
        place = f"{above}.{key}" if above else key
        if isinstance(value, Mapping):
            label = labelled.get(above)
            yield from _flat(value, labelled, above if label else place, {**labels, label: key} if label else labels)
        elif isinstance(value, int | float):
            yield place, labels, value


def _name(prefix: str, place: str, metric: Metric) -> str:
    """The metric's name, with its unit written out and, of a counter, `_total` at its end."""
    name = f"{prefix}_{place.replace('.', '_')}"
    if name.endswith("_s"):
        name = f"{name}econds"
    return f"{name}_total" if metric.kind == "counter" and not name.endswith("_total") else name


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
