"""The lease as a value: when a guard may live on."""

from rolecall.guard.lease import Lease


def connected() -> Lease:
    lease = Lease(lease_s=30, began=0)
    lease.connected(1)
    return lease


def test_a_renewed_lease_holds_and_an_old_one_lapses() -> None:
    """A renewal is good for the lease's length and no longer."""
    lease = connected()
    lease.renew(100)
    assert lease.end_reason(129, controller_dead=False) == ""
    assert "no renewal from the controller for 30 s" in lease.end_reason(130, controller_dead=False)


def test_a_closed_connection_is_the_end() -> None:
    """A connection that the controller closed ends the guard at once."""
    lease = connected()
    lease.disconnected()
    assert "closed the connection" in lease.end_reason(5, controller_dead=False)


def test_a_controller_seen_dead_is_the_end() -> None:
    """On the controller's own host nobody waits for the connection to close."""
    assert connected().end_reason(2, controller_dead=True) == "the controller has died"


def test_a_controller_that_is_never_reached_is_the_end() -> None:
    """A guard that cannot call home ends after one lease, also while the controller's process lives."""
    lease = Lease(lease_s=30, began=0)
    lease.renew(29)
    assert lease.end_reason(29, controller_dead=False) == ""
    assert "could not be reached" in lease.end_reason(30, controller_dead=False)
