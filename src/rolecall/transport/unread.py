"""What arrives for a call that was given up: nobody will read it, but what it hands over has to be taken and let go.

Handles are the case: whoever decodes one answers for the tensor behind it, and lets go of it by dropping the handle.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from rolecall.transport import codec
from rolecall.transport.call import Body


def let_go(bodies: Sequence[Body], loop: asyncio.AbstractEventLoop, context: Any) -> None:
    """Decodes and drops them, on a thread that may take its time. On the loop's thread."""
    if bodies and context is not None:
        loop.run_in_executor(None, _decode, bodies, context)


def _decode(bodies: Sequence[Body], context: Any) -> None:
    for header, buffers in bodies:
        with suppress(Exception):  # a value whose type cannot be had here, say; nobody wanted it
            codec.decode(header, buffers, context=context)
