"""What a state machine wants to be sent, and how far that got."""

from __future__ import annotations

from rolecall.transport.session.messages import Buffers, Message

UNKNOWN = 1 << 62  # the position of a frame that is just being sent


class Tracked:
    """Something whose last frame is followed on its way to the kernel.

    Attributes:
        sent: Number of the link that the frame was last sent on, and the position behind it; None before that.
            Replaced as one tuple, so that a position is never read with the number of another link.
    """

    __slots__ = ("sent",)

    def __init__(self) -> None:
        self.sent: tuple[int, int] | None = None

    def queued(self, link: int, written: int) -> bool:
        """Whether the frame is still queued on this side; then asking after it or repeating it is of no use."""
        return self.sent is not None and self.sent[0] == link and self.sent[1] > written


Sending = tuple[Message, Buffers, Tracked | None]
