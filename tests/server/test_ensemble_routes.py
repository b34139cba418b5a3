"""PUT and DELETE /v1/ensembles over a fake engine: what a user of the routes sees."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from quorum_client.ensemble_types import EnsembleStatus
from quorum_client.types import EnsembleInfo
from tests.server.conftest import Service
from tests.server.tiny_bundle import make_fake_bundle

BODY = {"inputs": [{"prompt": "Hi", "response": "Hello"}]}


@pytest.fixture
def second(tmp_path: Path) -> Path:
    return make_fake_bundle(tmp_path / "second", num_members=2).path


async def test_put_swaps_and_answers_what_serves(service: Service, second: Path) -> None:
    old = (await service.http.get("/v1/ensembles/tiny")).json()["version"]
    reply = await service.http.put("/v1/ensembles/tiny", json={"source": str(second)})
    assert reply.status_code == 200
    info = EnsembleInfo.model_validate(reply.json())
    assert info.version != old
    assert len(info.members) == 2
    scored = (await service.http.post("/score", json=BODY)).json()
    assert scored["ensemble"] == {"name": "tiny", "version": info.version}
    assert len(scored["results"][0]["members"]) == 2
    pinned = await service.http.post("/score", json=BODY | {"ensemble": f"tiny@{old}"})
    assert pinned.status_code == 404
    assert info.version in pinned.json()["error"]["message"]


async def test_a_request_under_way_ends_on_the_version_where_it_began(service: Service, second: Path) -> None:
    service.engine.gate.clear()
    old = service.runtime.registry.get(None).version
    running = asyncio.create_task(service.http.post("/score", json=BODY))
    await service.engine.has_begun.wait()
    assert (await service.http.put("/v1/ensembles/tiny", json={"source": str(second)})).status_code == 200
    later = asyncio.create_task(service.http.post("/score", json=BODY))
    service.engine.gate.set()
    assert (await running).json()["ensemble"]["version"] == old
    assert len((await running).json()["results"][0]["members"]) == 3
    assert (await later).json()["ensemble"]["version"] != old
    while old in service.engine.members:  # noqa: ASYNC110 - until it is freed
        await asyncio.sleep(0)


async def test_without_waiting_put_answers_202_and_the_list_shows_the_rest(service: Service, second: Path) -> None:
    reply = await service.http.put("/v1/ensembles/tiny?wait=false", json={"source": str(second)})
    assert reply.status_code == 202
    status = EnsembleStatus.model_validate(reply.json())
    assert (status.state, status.source) == ("loading", str(second))
    while (await service.http.get("/v1/ensembles")).json()["desired"][0]["state"] == "loading":
        pass
    listed = (await service.http.get("/v1/ensembles")).json()
    assert listed["desired"][0]["state"] == "serving"
    assert listed["desired"][0]["version"] == listed["ensembles"][0]["version"] != status.version


async def test_a_bad_bundle_is_422_and_the_old_one_serves(service: Service, tmp_path: Path) -> None:
    reply = await service.http.put("/v1/ensembles/tiny", json={"source": str(tmp_path / "nowhere")})
    assert reply.status_code == 422
    assert "no such folder" in reply.json()["error"]["message"]
    listed = (await service.http.get("/v1/ensembles")).json()
    assert listed["desired"][0]["state"] == "failed"
    assert listed["desired"][0]["error"]["code"] == "invalid_bundle"
    assert (await service.http.post("/score", json=BODY)).status_code == 200


async def test_a_second_ensemble_is_asked_for_by_name(service: Service, second: Path) -> None:
    assert (await service.http.put("/v1/ensembles/other", json={"source": str(second)})).status_code == 200
    assert (await service.http.post("/score", json=BODY)).status_code == 422
    for name, num_members in (("tiny", 3), ("other", 2)):
        scored = (await service.http.post("/score", json=BODY | {"ensemble": name})).json()
        assert scored["ensemble"]["name"] == name
        assert len(scored["results"][0]["members"]) == num_members


async def test_delete_ends_a_name(service: Service) -> None:
    assert (await service.http.delete("/v1/ensembles/tiny")).status_code == 204
    assert (await service.http.delete("/v1/ensembles/tiny")).status_code == 404
    assert (await service.http.post("/score", json=BODY)).status_code == 503
    assert (await service.http.get("/readyz")).status_code == 503


@pytest.mark.parametrize(
    ("name", "body"),
    [("a%20b", {"source": "default"}), ("tiny", {}), ("tiny", {"source": ""}), ("tiny", {"source": "x", "extra": 1})],
)
async def test_a_put_that_cannot_be_is_422(service: Service, name: str, body: dict[str, object]) -> None:
    reply = await service.http.put(f"/v1/ensembles/{name}", json=body)
    assert reply.status_code == 422
    assert set(reply.json()) == {"error"}
