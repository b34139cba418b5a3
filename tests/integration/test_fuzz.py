"""Whatever fits or does not fit the OpenAPI document: no 500, and every answer as the document says."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import hypothesis
import pytest
import schemathesis
from schemathesis import GenerationMode
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from quorum_server.app import create_app
from quorum_server.settings import Settings
from tests.integration.server_process import FAKE_ENGINE, ServerProcess, server
from tests.server.fake_engine import FakeEngine
from tests.server.test_keys import ADMIN_KEY, LISTED
from tests.server.tiny_bundle import make_fake_bundle

CHECKS = [
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    bundle = make_fake_bundle(tmp_path_factory.mktemp("bundles") / "tiny").path
    with server(FAKE_ENGINE, bundle, api_keys=LISTED) as process:
        yield process


OPERATIONS = [
    f"{method} {path}"
    for path, methods in create_app(Settings(), FakeEngine).openapi()["paths"].items()
    for method in methods
]


CASES = [
    *((operation, GenerationMode.POSITIVE) for operation in OPERATIONS),
    # What cannot be asked wrongly has no such requests.
    *((operation, GenerationMode.NEGATIVE) for operation in OPERATIONS if "post" in operation or "{" in operation),
]


@pytest.mark.parametrize(("operation", "mode"), CASES)
def test_every_answer_is_as_documented(running: ServerProcess, operation: str, mode: GenerationMode) -> None:
    headers = {"authorization": f"Bearer {ADMIN_KEY}"}
    document = schemathesis.openapi.from_url(f"{running.url}/openapi.json", headers=headers)
    method, path = operation.split()

    # Not its pytest plugin, which does not know this pytest.
    @hypothesis.settings(max_examples=40, deadline=None, suppress_health_check=list(hypothesis.HealthCheck))
    @hypothesis.given(case=document[path][method].as_strategy(generation_mode=mode))
    def ask(case: Any) -> None:
        response = case.call_and_validate(checks=CHECKS, headers=headers)
        assert response.status_code not in (500, 503)

    ask()
