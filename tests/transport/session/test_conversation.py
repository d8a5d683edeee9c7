"""A session keeps its promises through every order of loss, duplication, reordering, reconnection and restart."""

from __future__ import annotations

from hypothesis import HealthCheck, given, settings

from .conversation import Step, conversations, hold


@settings(max_examples=500, deadline=None, suppress_health_check=list(HealthCheck))
@given(conversations)
def test_every_promise_is_kept(conversation: tuple[int | None, list[tuple[Step, int]]]) -> None:
    """No call runs twice, each ends once with its own answer or an honest error, and nothing is remembered for ever.

    The promises are listed where they are checked, in `world.py`.
    """
    hold(conversation)
