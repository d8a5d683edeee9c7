"""A request to a worker: over frames and over HTTP it has the same methods.

It is answered once, by `finish` or `fail`, from any thread; the first answer counts.
"""

from rolecall.transport.incoming import Incoming
from rolecall.worker.http_request import HttpRequest

Request = Incoming | HttpRequest
