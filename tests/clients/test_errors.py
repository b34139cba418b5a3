"""The error tree: one root, one code each, and the codes that travel."""

from __future__ import annotations

import quorum_client.errors as errors
from quorum_client.errors import ERRORS_BY_CODE, QuorumError

CLASSES = [cls for cls in vars(errors).values() if isinstance(cls, type) and issubclass(cls, QuorumError)]
CLIENT_SIDE = {
    "connection_failed",
    "unexpected_response",
    "missing_extra",
}


def test_every_class_but_the_root_has_a_code_of_its_own() -> None:
    codes = [cls.code for cls in CLASSES if cls is not QuorumError]
    assert len(set(codes)) == len(codes)


def test_codes_on_the_wire_are_those_that_a_server_can_send() -> None:
    assert {cls.code for cls in CLASSES} - CLIENT_SIDE == set(ERRORS_BY_CODE)
    assert all(ERRORS_BY_CODE[code].code == code for code in ERRORS_BY_CODE)


def test_only_what_can_pass_is_retryable() -> None:
    assert {cls.code for cls in CLASSES if cls.retryable} == {
        "overloaded",
        "internal_error",
        "not_ready",
        "connection_failed",
    }


def test_picture_in_the_docstring_is_the_tree() -> None:
    for cls in CLASSES:
        assert cls.__name__ in (errors.__doc__ or "")
        if cls is not QuorumError:
            assert f" {cls.code} " in (errors.__doc__ or "")
