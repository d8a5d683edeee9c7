"""Decides when a guard must end: its lease lapsed, or the controller is gone. Pure: time and events are arguments."""

from dataclasses import dataclass


@dataclass(slots=True)
class Lease:
    """When the guard must end.

    Attributes:
        lease_s: Seconds after the last renewal, or after the start without any connection, at which it lapses.
        began: When the guard began.
        renewed: When it was last renewed.
        connected_once: There has been a connection.
        closed: The connection was closed.
    """

    lease_s: float
    began: float
    renewed: float = 0.0
    connected_once: bool = False
    closed: bool = False

    def __post_init__(self) -> None:
        self.renewed = self.began

    def renew(self, now: float) -> None:
        """The controller sent a renewal, or its process is alive on this host."""
        self.renewed = now

    def connected(self, now: float) -> None:
        """A connection was opened."""
        self.closed, self.connected_once = False, True
        self.renew(now)

    def disconnected(self) -> None:
        """The connection was closed. No other controller can take over, so the guard ends."""
        self.closed = True

    def end_reason(self, now: float, controller_dead: bool) -> str:
        """Why the guard must end; empty while it may live.

        Args:
            controller_dead: The controller's process was on this host and has ended.
        """
        if controller_dead:
            return "the controller has died"
        if not self.connected_once and now - self.began >= self.lease_s:
            return f"the controller could not be reached for {self.lease_s:g} s"
        if self.closed:
            return "the controller closed the connection"
        if now - self.renewed >= self.lease_s:
            return f"no renewal from the controller for {self.lease_s:g} s"
        return ""
