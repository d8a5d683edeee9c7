"""The documents say what the code says."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

from error_examples import examples
from test_layers import MAY_IMPORT

from rolecall import errors

DOCS = Path(__file__).parent.parent / "docs"


def sections(text: str) -> dict[str, str]:
    """The text under each heading that is the name of an error."""
    parts = re.split(r"^#+ (\w+)$", text, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def test_every_error_has_its_section() -> None:
    ours = {name for name, cls in inspect.getmembers(errors, inspect.isclass) if cls.__module__ == errors.__name__}
    named = {name for name in sections((DOCS / "errors.md").read_text()) if name.endswith("Error")}
    assert named == ours


def test_the_messages_shown_are_those_that_users_see(tmp_path: Path) -> None:
    """Every example is brought about, and its first line stands under the error's heading."""
    shown = sections((DOCS / "errors.md").read_text())
    seen = {name: message.splitlines()[0] for name, message in examples(tmp_path).items()}
    assert {name: line for name, line in seen.items() if line not in shown[name].splitlines()} == {}


def test_the_layers_shown_are_those_that_are_enforced() -> None:
    section = (DOCS / "design.md").read_text().partition("\n## Layers\n")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| `([\w.]+)` \| [^|]* \| ([^|]*) \|$", section, re.MULTILINE)
    said = {part: tuple(re.findall(r"`([\w.]+)`", allowed)) for part, allowed in rows}
    limited = {part: allowed for part, allowed in MAY_IMPORT.items() if allowed != ("*",)}
    assert said == limited
