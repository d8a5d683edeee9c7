"""What a guard says of itself and its host when it connects to the controller."""

from rolecall.protocol.message import Message
from rolecall.protocol.state import GuardState


class GuardHello(Message, frozen=True, kw_only=True):
    """Who and where a guard is."""

    run_id: str
    guard: GuardState
    kind: str = "guard"
