"""The run's secret. It never shows itself: not in a repr, a log or a traceback."""

from __future__ import annotations

import hmac

HIDDEN = "***"


class Token:
    """A secret that is compared in constant time and whose text must be asked for by name."""

    __slots__ = ("_secret",)

    def __init__(self, secret: str | bytes | Token) -> None:
        if isinstance(secret, Token):
            secret = secret.reveal()
        self._secret: bytes = secret.encode() if isinstance(secret, str) else bytes(secret)
        if not self._secret:
            raise ValueError("an empty token protects nothing")

    def matches(self, presented: bytes) -> bool:
        """Whether `presented` is the secret, in a time that does not depend on where they differ."""
        return hmac.compare_digest(self._secret, presented)

    def reveal(self) -> bytes:
        """The secret itself, for the one place that sends it."""
        return self._secret

    def scrub(self, text: str) -> str:
        """`text` without the secret."""
        return text.replace(self._secret.decode(errors="replace"), HIDDEN)

    def __repr__(self) -> str:
        return f"Token({HIDDEN})"

    def __reduce__(self) -> tuple[object, ...]:
        raise TypeError("a token is not pickled; pass it by a file or an inherited descriptor")
