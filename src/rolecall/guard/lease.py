"""The guard's permission to live. Pure: it is told the time and what was seen, and says whether to end."""

from dataclasses import dataclass


@dataclass(slots=True)
class Lease:
    """When the guard must end.

    Attributes:
        lease_s: It lapses when nothing renews it for so long, and when no first connection comes about within it.
        began: When the guard began.
        renewed: When it was last renewed.
        attached: Whether there has been a connection.
        cut: The connection was closed.
    """

    lease_s: float
    began: float
    renewed: float = 0.0
    attached: bool = False
    cut: bool = False

    def __post_init__(self) -> None:
        self.renewed = self.began

    def renew(self, now: float) -> None:
        """The controller was heard of, or is seen to live on this host."""
        self.renewed = now

    def connected(self, now: float) -> None:
        """A connection was opened."""
        self.cut, self.attached = False, True
        self.renew(now)

    def disconnected(self) -> None:
        """The connection was closed. Nobody else can take the guard over, so this is its end."""
        self.cut = True

    def verdict(self, now: float, controller_dead: bool) -> str:
        """Why the guard must end; empty while it may live.

        Args:
            controller_dead: The controller was on this host and is seen to be gone.
        """
        if controller_dead:
            return "the controller has died"
        if not self.attached and now - self.began >= self.lease_s:
            return f"the controller could not be reached for {self.lease_s:g} s"
        if self.cut:
            return "the controller's connection closed"
        if now - self.renewed >= self.lease_s:
            return f"the controller was not heard of for {self.lease_s:g} s"
        return ""
