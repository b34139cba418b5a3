"""API keys: which there are, what each may do, and what a request needs.

    file, QUORUM_API_KEYS  --load_keys-->  ApiKeys
    Authorization header  --ApiKeys.right_of-->  what its key may do      method, path  --right_needed-->  what it needs

Keys are kept as digests and compared in constant time. Knows nothing of answers: `guard` gives them.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import logging
import os
import re
import stat
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from quorum_client.errors import QuorumError

logger = logging.getLogger(__name__)

Right = Literal["score", "admin"]
"""score: ask for scores and read what is loaded and measured. admin: that, and change what is loaded."""

_OPEN_PATHS = frozenset({"/healthz", "/readyz"})
_SCORE_METHODS = frozenset({"GET", "HEAD", "POST", "OPTIONS"})

# What a bearer token may be (RFC 6750, section 2.1). No limit on guesses is kept, so a short key would be no key.
_ENTRY = re.compile(r"(score|admin):([A-Za-z0-9._~+/-]{16,512}=*)")


class InvalidKeys(QuorumError):
    """The server's list of API keys cannot be used; the message holds no key."""

    code = "invalid_keys"


@dataclass(frozen=True, slots=True)
class ApiKeys:
    """The keys that open a server; none means that it is open to all. digests: sha256 of each key, with its right."""

    digests: tuple[tuple[bytes, Right], ...] = field(default=(), repr=False)

    def __bool__(self) -> bool:
        return bool(self.digests)

    def right_of(self, authorization: str) -> Right | None:
        """What the key in an Authorization header may do; None where it holds no key, or one that is not known.

        Args:
            authorization: `Bearer KEY`, or `Basic …` with the key as the password of any user.
        """
        given = hashlib.sha256(_key_in(authorization)).digest()
        found: Right | None = None
        # Every digest is compared, each in constant time: how long it takes tells nothing of which was close.
        for digest, right in self.digests:
            if hmac.compare_digest(digest, given):
                found = right
        return found


def _key_in(authorization: str) -> bytes:
    scheme, _, rest = authorization.partition(" ")
    value = rest.strip().encode("latin-1", "replace")
    if scheme.lower() == "bearer":
        return value
    if scheme.lower() == "basic":
        try:
            return base64.b64decode(value, validate=True).partition(b":")[2]
        except binascii.Error:
            return b""
    return b""


def right_needed(method: str, path: str) -> Right | None:
    """What a request needs; None where everybody may.

    By method, so that a new route is closed until someone opens it: what is loaded changes by PUT and DELETE alone.
    """
    if path in _OPEN_PATHS:
        return None
    return "score" if method in _SCORE_METHODS else "admin"


def load_keys(listed: str | None, file: Path | None) -> ApiKeys:
    """The keys of both sources together.

    Args:
        listed: entries `score:KEY` or `admin:KEY`, separated by spaces, commas or newlines; None for none.
        file: one entry a line; empty lines and lines that begin with # do not count.

    Raises:
        InvalidKeys: the file cannot be read or can be changed by others, or an entry is no key, and which.
    """
    entries: list[tuple[str, str]] = []
    if listed is not None:
        entries += _named("QUORUM_API_KEYS, entry", re.split(r"[\s,]+", listed.strip(" \t\r\n,")))
    if file is not None:
        entries += _named(f"{file}, line", _read_lines(file))
    if not entries and (listed is not None or file is not None):
        raise InvalidKeys("a list of API keys is given, and it is empty: that would leave the server open to all")
    digests: dict[bytes, Right] = {}
    for name, text in entries:
        match = _ENTRY.fullmatch(text)
        if match is None:
            raise InvalidKeys(
                f"{name}: expected score:KEY or admin:KEY, the key of 16 to 512 letters, digits or ._~+/- "
                "(openssl rand -hex 32 makes one)"
            )
        digest = hashlib.sha256(match[2].encode()).digest()
        if digest in digests:
            raise InvalidKeys(f"{name}: this key is listed twice")
        digests[digest] = "admin" if match[1] == "admin" else "score"
    return ApiKeys(tuple(digests.items()))


def _named(source: str, texts: Iterable[str]) -> list[tuple[str, str]]:
    """The entries with the place that an error can name."""
    places = [(f"{source} {number}", text.strip()) for number, text in enumerate(texts, start=1)]
    return [(place, text) for place, text in places if text and not text.startswith("#")]


def _read_lines(file: Path) -> list[str]:
    try:
        with file.open(encoding="utf-8") as stream:
            mode = os.fstat(stream.fileno()).st_mode
            lines = stream.read().splitlines()
    except OSError as error:
        raise InvalidKeys(f"{file}: the keys cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InvalidKeys(f"{file}: the keys are not text") from error
    if mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise InvalidKeys(f"{file}: others could add a key of theirs; chmod 600 it")
    # Not refused: container secrets are mounted readable for all, in a file system that only the container sees.
    if mode & (stat.S_IRGRP | stat.S_IROTH):
        logger.warning("%s can be read by others than its owner; chmod 600 it, unless it is a container's secret", file)
    return lines
