"""Keys as text, as files and as headers; what every route makes of them is in test_guard."""

from __future__ import annotations

import base64
import hmac
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from quorum_server.keys import ApiKeys, InvalidKeys, load_keys, right_needed

SCORE_KEY = "s" * 16
ADMIN_KEY = "Admin-key_with~all+of/the.rest=="
LISTED = f"score:{SCORE_KEY},admin:{ADMIN_KEY}"


def basic(password: str, user: str = "x") -> str:
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


@pytest.fixture
def known() -> ApiKeys:
    return load_keys(LISTED, None)


@pytest.mark.parametrize("write", [lambda key: f"Bearer {key}", lambda key: f"bearer  {key} ", basic])
def test_a_key_is_found_in_every_place_where_it_may_stand(known: ApiKeys, write: Callable[[str], str]) -> None:
    assert known.right_of(write(SCORE_KEY)) == "score"
    assert known.right_of(write(ADMIN_KEY)) == "admin"


@pytest.mark.parametrize("user", ["", "x", "Ünder"])
def test_the_user_of_basic_auth_does_not_count(known: ApiKeys, user: str) -> None:
    assert known.right_of(basic(SCORE_KEY, user)) == "score"


@pytest.mark.parametrize(
    "authorization",
    [
        "", "Bearer", "Bearer ", SCORE_KEY, f"Token {SCORE_KEY}", f"Bearer {SCORE_KEY[:-1]}", f"Bearer {SCORE_KEY}s",
        f"Bearer {SCORE_KEY.upper()}", "Bearer \xff\u20ac", basic(""), basic("wrong"), basic(SCORE_KEY, "a:b"),
        f"Basic {SCORE_KEY}", "Basic %%%", f"Basic {base64.b64encode(SCORE_KEY.encode()).decode()}",
        f"Bearer {SCORE_KEY} {ADMIN_KEY}", f"Bearer score:{SCORE_KEY}",
    ],
)  # fmt: skip
def test_everything_else_is_no_key(known: ApiKeys, authorization: str) -> None:
    assert known.right_of(authorization) is None


def test_every_key_is_compared_in_constant_time(known: ApiKeys, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first of two keys is found, and the second is compared all the same."""
    compared = []
    compare = hmac.compare_digest

    def compare_and_note(a: bytes, b: bytes) -> bool:
        compared.append((len(a), len(b)))
        return compare(a, b)

    monkeypatch.setattr(hmac, "compare_digest", compare_and_note)
    for given in (SCORE_KEY, "x"):
        known.right_of(f"Bearer {given}")
    assert compared == [(32, 32)] * 4


def test_keys_show_nowhere(known: ApiKeys) -> None:
    for text in (repr(known), str(known), str(known.digests)):
        assert SCORE_KEY not in text
    assert "digests" not in repr(known)


@pytest.mark.parametrize(
    ("method", "path", "right"),
    [
        ("GET", "/healthz", None), ("GET", "/readyz", None), ("GET", "/healthz/", "score"),
        ("GET", "/metrics", "score"), ("GET", "/docs", "score"), ("GET", "/v1/ensembles", "score"),
        ("POST", "/score", "score"), ("POST", "/vllm/classify", "score"), ("PUT", "/v1/ensembles/a", "admin"),
        ("DELETE", "/v1/ensembles/a/members/m00", "admin"), ("PATCH", "/nowhere", "admin"), ("MADEUP", "/x", "admin"),
    ],
)  # fmt: skip
def test_what_a_request_needs(method: str, path: str, right: str | None) -> None:
    assert right_needed(method, path) == right


def test_no_list_is_no_key_and_an_empty_list_is_an_error(tmp_path: Path) -> None:
    assert not load_keys(None, None)
    empty = tmp_path / "keys"
    empty.write_text("# none yet\n\n")
    empty.chmod(0o600)
    for listed, file in (("", None), (" , ", None), (None, empty)):
        with pytest.raises(InvalidKeys, match="empty"):
            load_keys(listed, file)


def test_a_file_and_the_environment_add_up(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text(f"# Grüße\n\n  admin:{ADMIN_KEY}  \nscore:{'t' * 512}")
    file.chmod(0o600)
    known = load_keys(f"score:{SCORE_KEY}", file)
    rights = [known.right_of(f"Bearer {key}") for key in (SCORE_KEY, ADMIN_KEY, "t" * 512)]
    assert rights == ["score", "admin", "score"]


@pytest.mark.parametrize(
    "entry",
    ["k" * 32, "score:short", "root:" + "k" * 32, "score:" + "k" * 513, "score:key with a space!!", "score:kéy" * 9],
)
def test_what_is_no_key_is_named_by_its_line_and_not_shown(tmp_path: Path, entry: str) -> None:
    file = tmp_path / "keys"
    file.write_text(f"score:{SCORE_KEY}\n\n{entry}\n")
    file.chmod(0o600)
    with pytest.raises(InvalidKeys, match="line 3: expected") as failure:
        load_keys(None, file)
    assert entry not in str(failure.value)


def test_a_key_with_two_rights_is_refused() -> None:
    with pytest.raises(InvalidKeys, match="entry 2: this key is listed twice"):
        load_keys(f"score:{SCORE_KEY} admin:{SCORE_KEY}", None)


@pytest.mark.parametrize(
    ("mode", "outcome"), [(0o600, "ok"), (0o444, "warned"), (0o660, "refused"), (0o606, "refused")]
)
def test_a_file_that_others_may_write_is_refused(
    tmp_path: Path, mode: int, outcome: str, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "keys"
    file.write_text(LISTED.replace(",", "\n"))
    file.chmod(mode)
    if outcome == "refused":
        with pytest.raises(InvalidKeys, match="chmod 600"):
            load_keys(None, file)
    else:
        assert load_keys(None, file)
    assert ("chmod 600" in caplog.text) == (outcome == "warned")


@pytest.mark.parametrize("make", [lambda path: None, lambda path: path.mkdir(), lambda path: path.write_bytes(b"\xff")])
def test_a_file_that_cannot_be_read(tmp_path: Path, make: Callable[[Path], Any]) -> None:
    make(tmp_path / "keys")
    with pytest.raises(InvalidKeys, match=str(tmp_path)):
        load_keys(None, tmp_path / "keys")
