"""The one error tree of Quorum: each class knows its code, its HTTP status and whether trying again can help.

    QuorumError
    ├── InvalidRequest      422  invalid_request       the request is well-formed JSON but cannot be served
    │   └── MalformedJSON   400  malformed_json        the body is not JSON
    ├── Unauthorized        401  unauthorized          no key, or an unknown one
    ├── Forbidden           403  forbidden             a valid key without the right to do this
    ├── EnsembleNotFound    404  ensemble_not_found    no such ensemble, member or version
    ├── RequestTooLarge     413  request_too_large     body, item count or text beyond a limit
    ├── Overloaded          429  overloaded            queue full; retry after the given time
    ├── InternalError       500  internal_error        a defect; the message is hidden from clients
    ├── NotReady            503  not_ready             no engine can answer now
    ├── DeadlineExceeded    504  deadline_exceeded     the caller's deadline passed
    ├── ConnectionFailed    -    connection_failed     client side: the server could not be reached
    ├── UnexpectedResponse  -    unexpected_response   client side: the answer is not Quorum's
    ├── GeneratorError      502  generator_failed      the generator cannot be reached or failed
    │   ├── GeneratorRefused   422  generator_refused  the generator does not take this request
    │   ├── ModelNotFound      404  model_not_found    the generator has no such model, or no such route
    │   └── GenerationInvalid  502  generation_invalid the generator's answer is not one
    └── MissingExtra        -    missing_extra         client side: a package of an optional extra is not installed

The same `code` is the field on the wire, the metric label, and what the client maps back to a class.
This module knows neither HTTP frameworks nor torch.
"""

from __future__ import annotations


class QuorumError(Exception):
    """Base of every error that Quorum raises on purpose.

    Args:
        message: what went wrong and, where possible, what would be right; never holds user text.
        request_id: the request it belongs to, where there is one.
        retry_after_s: seconds after which a retry is sensible, where known.
    """

    code: str = "internal_error"
    status: int = 500
    retryable: bool = False

    def __init__(self, message: str, *, request_id: str | None = None, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.request_id = request_id
        self.retry_after_s = retry_after_s


class InvalidRequest(QuorumError):
    """The request can be parsed but not served: a wrong type, value or combination."""

    code = "invalid_request"
    status = 422


class MalformedJSON(InvalidRequest):
    """The body is not valid JSON."""

    code = "malformed_json"
    status = 400


class Unauthorized(QuorumError):
    """No API key, or one that is not known."""

    code = "unauthorized"
    status = 401


class Forbidden(QuorumError):
    """A known API key that may not do this."""

    code = "forbidden"
    status = 403


class EnsembleNotFound(QuorumError):
    """The named ensemble, version or member is not loaded here."""

    code = "ensemble_not_found"
    status = 404


class RequestTooLarge(QuorumError):
    """The body, the number of items or a text is beyond the server's limit."""

    code = "request_too_large"
    status = 413


class Overloaded(QuorumError):
    """The queue is full; `retry_after_s` says when to come back."""

    code = "overloaded"
    status = 429
    retryable = True


class InternalError(QuorumError):
    """A defect of the server; details are in its log under the request id."""

    code = "internal_error"
    status = 500
    retryable = True


class NotReady(QuorumError):
    """No engine can answer now: starting, restarting or draining."""

    code = "not_ready"
    status = 503
    retryable = True


class DeadlineExceeded(QuorumError):
    """The deadline passed before there was an answer."""

    code = "deadline_exceeded"
    status = 504


class ConnectionFailed(QuorumError):
    """Client side: the server could not be reached, or closed the connection."""

    code = "connection_failed"
    status = 503
    retryable = True


class UnexpectedResponse(QuorumError):
    """Client side: the answer is not one that Quorum gives (a proxy's page, another server)."""

    code = "unexpected_response"
    status = 502


class GeneratorError(QuorumError):
    """The generator cannot be reached, failed, or knows no such model, key or route; retryable where that may pass."""

    code = "generator_failed"
    status = 502


class GeneratorRefused(GeneratorError):
    """The generator does not take this request: a prompt that is too long, an option that it does not have."""

    code = "generator_refused"
    status = 422


class ModelNotFound(GeneratorError):
    """The generator has no model of this name; or its address is another server's."""

    code = "model_not_found"
    status = 404


class GenerationInvalid(GeneratorError):
    """The generator's answer is not one: unreadable, or with another number of completions than were asked for."""

    code = "generation_invalid"


class MissingExtra(QuorumError):
    """Client side: what was asked needs an extra of the distribution that is not installed here."""

    code = "missing_extra"


_WIRE_ERRORS: tuple[type[QuorumError], ...] = (
    InvalidRequest,
    MalformedJSON,
    Unauthorized,
    Forbidden,
    EnsembleNotFound,
    RequestTooLarge,
    Overloaded,
    InternalError,
    NotReady,
    DeadlineExceeded,
    GeneratorError,
    GeneratorRefused,
    ModelNotFound,
    GenerationInvalid,
)
ERRORS_BY_CODE: dict[str, type[QuorumError]] = {cls.code: cls for cls in _WIRE_ERRORS}
