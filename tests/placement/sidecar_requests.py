"""What the sidecar of the tests is asked, and what it tells of by itself."""

from __future__ import annotations

from types import NoneType

from rolecall.protocol.guard import Method, NoArguments
from rolecall.protocol.message import Message


class Text(Message, frozen=True, kw_only=True):
    """A text."""

    text: str = ""


class Said(Message, frozen=True, kw_only=True):
    """What is to be told, and under which name."""

    name: str
    text: str


ECHO = Method("echo", Text, Text)
SAY = Method("say", Said, Text)
CRASH = Method("crash", Text, NoneType)
NOTHING = Method("nothing", NoArguments, NoneType)
FAIL = Method("fail", NoArguments, NoneType)
HANG = Method("hang", NoArguments, Text)
UNKNOWN = Method("unknown", NoArguments, NoneType)
