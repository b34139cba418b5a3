"""What Ray's proxies ask: it reads a request, finds what it belongs to, and has one replica answer it.

    HTTP --> body --affinity_key--> session --consistent hash--> replica, or another one where it is full or has died

No request is lost with a replica: scoring changes nothing, so that another one is asked, within what is left of the
client's deadline. Reads no key and no score.
"""

from __future__ import annotations

import asyncio
import logging
import time
import uuid

from ray.exceptions import RayActorError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle
from starlette.requests import Request as HTTPRequest
from starlette.responses import Response

from quorum_client.errors import DeadlineExceeded, NotReady, QuorumError, RequestTooLarge
from quorum_ray.affinity import affinity_key
from quorum_ray.messages import Answer, Request
from quorum_server.errors import error_response

logger = logging.getLogger(__name__)

_RETRY_S = 60.0
"""How long another replica is sought: as long as a cluster may take to start one."""
_LONGEST_PAUSE_S = 1.0


class Ingress:
    """Passes requests on.

    Args:
        scorer: the replicas.
        max_body_bytes: what is read of a body before it is refused; the scorer's own setting.
    """

    def __init__(self, scorer: DeploymentHandle, max_body_bytes: int) -> None:
        self._scorer = scorer
        self._max_body_bytes = max_body_bytes

    async def __call__(self, http: HTTPRequest) -> Response:
        """Answer a client."""
        arrived_s = time.monotonic()
        try:
            answer = await self._pass_on(await self._read(http), arrived_s)
        except QuorumError as error:
            return error_response(error, uuid.uuid4().hex)
        response = Response(answer.body, answer.status)
        response.raw_headers[:] = [
            *((name, value) for name, value in response.raw_headers if name == b"content-length"),
            *answer.headers,
        ]
        return response

    async def _read(self, http: HTTPRequest) -> Request:
        body = bytearray()
        async for chunk in http.stream():
            body += chunk
            if len(body) > self._max_body_bytes:
                raise RequestTooLarge(f"a request's body may have {self._max_body_bytes} bytes")
        target = http.url.path + (f"?{http.url.query}" if http.url.query else "")
        return Request(http.method, target, tuple(http.headers.raw), bytes(body))

    async def _pass_on(self, request: Request, arrived_s: float) -> Answer:
        replicas = self._scorer.options(session_id=affinity_key(request.body))
        ends, pause_s = time.monotonic() + _RETRY_S, 0.05
        asked = request
        while True:
            try:
                answer: Answer = await replicas.handle.remote(asked)
                return answer
            except (RayActorError, DeploymentUnavailableError, BackPressureError) as error:
                if not request.may_be_repeated or time.monotonic() + pause_s > ends:
                    raise NotReady("no replica could answer this; try again", retry_after_s=1.0) from error
                logger.warning("a replica was lost: %s; its request is asked again", type(error).__name__)
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
            asked = _still_wanted(request, time.monotonic() - arrived_s)


def _still_wanted(request: Request, waited_s: float) -> Request:
    """What to ask the next replica.

    Raises:
        DeadlineExceeded: its client waits no longer.
    """
    if request.timeout_ms is None:
        return request
    left_ms = int(request.timeout_ms - 1000 * waited_s)
    if left_ms <= 0:
        raise DeadlineExceeded("the deadline of this request passed before a replica could score it")
    return request.asked_later(left_ms)
