"""The guard's permission to live. Pure: it is told the time and what was seen, and says whether to end."""

from dataclasses import dataclass


@dataclass(slots=True)
class Lease:
    """When the guard must end.

    Attributes:
        lease_s: It lapses when nothing renews it for so long.
        reattach_s: Grace of a closed connection.
        renewed: When it was last renewed.
        cut: When the connection closed, None while it is open.
    """

    lease_s: float
    reattach_s: float
    renewed: float
    cut: float | None = None

    def renew(self, now: float) -> None:
        """The controller was heard of, or is seen to live on this host."""
        self.renewed = now

    def connected(self, now: float) -> None:
        """A connection was opened."""
        self.cut = None
        self.renew(now)

    def disconnected(self, now: float) -> None:
        """The connection was closed."""
        self.cut = now if self.cut is None else self.cut

    def verdict(self, now: float, controller_dead: bool) -> str:
        """Why the guard must end; empty while it may live.

        Args:
            controller_dead: The controller was on this host and is seen to be gone.
        """
        if controller_dead:
            return "the controller has died"
        if self.cut is not None and now - self.cut >= self.reattach_s:
            return f"the controller's connection closed and did not come back within {self.reattach_s:g} s"
        if now - self.renewed >= self.lease_s:
            return f"the controller was not heard of for {self.lease_s:g} s"
        return ""
