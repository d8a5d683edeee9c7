"""A sidecar for the tests: it does what it is told."""

from __future__ import annotations

import os
import signal
import sys
import time

from rolecall.schedulers.sidecar import Post


def main() -> None:
    post = Post(int(sys.argv[1]))
    for order in post.orders():
        match order:
            case {"do": "echo", "reply": reply, "value": value}:
                post.say(reply, value)
            case {"do": "say", "key": key, "value": value}:
                post.say(key, value)
            case {"do": "crash", "words": words}:
                print(words, flush=True)
                os._exit(3)
            case {"do": "pause", "seconds": seconds}:
                time.sleep(seconds)
            case {"do": "half a line"}:
                os.write(int(sys.argv[1]), b'["half", ')
                os._exit(3)
            case {"do": "hang"}:
                signal.signal(signal.SIGTERM, signal.SIG_IGN)
                time.sleep(600)
    post.say("over", None)  # to nobody
    print("ended well", flush=True)


if __name__ == "__main__":
    main()
