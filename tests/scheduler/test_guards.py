"""Guards elsewhere, as the controller sees them: over TCP, answering or silent, and never taken back once given up."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from rolecall.errors import AuthenticationError, GuardLostError, ProtocolError, RPCError
from rolecall.placement.base import ExpectedGuard
from rolecall.protocol.events import Event, GuardLost
from rolecall.protocol.guard import TABLE, NoArguments
from rolecall.protocol.state import GuardState
from rolecall.scheduler.guards import GuardProxy
from rolecall.scheduler.keywords import RunOptions
from rolecall.scheduler.listener import GuardListener
from rolecall.scheduler.run import Run
from rolecall.transport.address import this_host
from rolecall.transport.client import Client
from rolecall.transport.handshake import Hello
from rolecall.transport.incoming import Incoming
from rolecall.transport.loop import IOThread
from rolecall.transport.peer import Peer

LEASE_S = 0.4  # renewed four times as often
Notified = Callable[[Incoming], None]


class Controller:
    """A listener and what it was told."""

    def __init__(self, fileroot: Path) -> None:
        self.run = Run("listener", "t", fileroot)
        self.run.open()
        self.io = IOThread("rolecall-listener-test")
        self.lost: list[str] = []
        self.told = threading.Event()
        self.listener = GuardListener(self.run, self.io, RunOptions(preload=(), start_timeout=10, lease_s=LEASE_S))
        self.listener.open(self._on_event)
        self.listener.listen("127.0.0.1")
        self.dialled: list[Client] = []

    def _on_event(self, guard: GuardProxy, event: Event) -> None:
        if isinstance(event, GuardLost):
            self.lost.append(event.reason)
            self.told.set()

    def call_home(
        self, guard_id: str, *, host: str, answers: bool = True, token: str = "", notified: Notified | None = None
    ) -> Client:
        """Dials as a guard does, over TCP."""

        def on_notify(incoming: Incoming) -> None:
            if incoming.method == "lease" and answers:
                client.peer.notify("alive")

        hello = Hello(
            name=guard_id, guard=GuardState(id=guard_id, host_id=host, pid=1, host="h"), run_id=self.run.run_id
        )
        peer = Peer("controller", loop=self.io.loop, on_notify=notified or on_notify)
        client = Client(peer, self.listener.addresses[1:], token or self.run.token, hello)
        self.dialled.append(client)
        return client

    def close(self) -> None:
        for client in self.dialled:
            client.close()
        self.listener.close()
        self.io.close()
        self.run.close()


@pytest.fixture
def controller(tmp_path: Path) -> Iterator[Controller]:
    made = Controller(tmp_path)
    yield made
    made.close()


def test_a_guard_elsewhere_that_answers_stays(controller: Controller) -> None:
    """Ten renewals and more: nothing is lost."""
    renewed: list[str] = []
    enough = threading.Event()

    def answer(incoming: Incoming) -> None:
        renewed.append(incoming.method)
        client.peer.notify("alive")
        if len(renewed) > 10:
            enough.set()

    guard = controller.listener.expect("g1-0")
    client = controller.call_home("g1-0", host="elsewhere", notified=answer)
    assert guard.wait(5) and not guard.here
    assert enough.wait(10)
    assert controller.lost == [] and set(renewed) == {"lease"}


def test_a_silent_guard_elsewhere_is_given_up_and_not_taken_back(controller: Controller) -> None:
    """Its host may have failed, or the cable; what it says later belongs to the past."""
    guard = controller.listener.expect("g1-0")
    first = controller.call_home("g1-0", host="elsewhere", answers=False)
    assert guard.wait(5)
    assert controller.told.wait(5)
    assert "nothing was heard of it" in controller.lost[0]
    with pytest.raises(GuardLostError):
        guard.ask(TABLE, NoArguments())
    first.close()
    again = controller.call_home("g1-0", host="elsewhere")
    with pytest.raises(RPCError, match="it is not taken back"):
        again.peer.request("anything", {}, timeout=5).result()
    assert isinstance(again.peer.failure, ProtocolError)


def test_a_silent_guard_of_this_host_is_not_given_up(controller: Controller) -> None:
    """A stopped one is seen in /proc, and a dead one by its connection: silence says nothing here."""
    guard = controller.listener.expect("g1-0")
    renewals = threading.Semaphore(0)
    controller.call_home("g1-0", host=this_host(), notified=lambda incoming: renewals.release())
    assert guard.wait(5) and guard.here
    for _ in range(10):
        assert renewals.acquire(timeout=5)
    assert controller.lost == []


def test_what_the_manager_says_is_in_the_error(controller: Controller) -> None:
    """It is asked before anybody is told."""

    def explain(guard: ExpectedGuard, then: Callable[[str], None], *, patient: bool, limit_s: float) -> None:
        then(f"CANCELLED, patient={patient} for {limit_s:g} s")

    guard = controller.listener.expect("g1-0", explain)
    client = controller.call_home("g1-0", host="elsewhere")
    assert guard.wait(5)
    client.close()
    assert controller.told.wait(5)
    assert "CANCELLED, patient=True for 10 s (its connection closed)" in controller.lost[0]


def test_nobody_gets_in_without_the_token(controller: Controller) -> None:
    """Nor a guard that nobody expects, nor one of another run."""
    controller.listener.expect("g1-0")
    for stranger in (
        controller.call_home("g1-0", host="elsewhere", token="0" * 64),
        controller.call_home("g9-9", host="elsewhere"),
    ):
        with pytest.raises(AuthenticationError):
            stranger.peer.request("anything", {}, timeout=5).result()
