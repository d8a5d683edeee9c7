"""A session keeps its promises through every order of loss, duplication, reordering, reconnection and restart."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

from .conversation import Conversation

TestConversation = Conversation.TestCase
TestConversation.settings = settings(
    max_examples=400,
    stateful_step_count=60,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
