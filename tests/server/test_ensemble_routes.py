"""PUT and DELETE /v1/ensembles over a fake engine: what a user of the routes sees."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from quorum_client.ensemble_types import EnsembleStatus
from quorum_client.types import EnsembleInfo
from tests.server.conftest import Service, serving
from tests.server.fake_engine import FakeEngine
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


async def test_members_of_a_live_ensemble_are_replaced_added_and_removed(fake_bundle: Path, tmp_path: Path) -> None:
    donor = str(make_fake_bundle(tmp_path / "donor", num_members=2).path)
    async with serving(fake_bundle, FakeEngine(), state=tmp_path / "state.json") as service:
        http = service.http
        first = (await http.get("/v1/ensembles/tiny")).json()
        added = await http.put("/v1/ensembles/tiny/members/m03", json={"source": donor, "member": "m01"})
        assert added.status_code == 200
        assert [member["calibration_mean"] for member in added.json()["members"]] == [0, 1, 2, 1]
        replaced = await http.put(
            "/v1/ensembles/tiny/members/m00",
            json={"source": donor, "member": "m01", "default_mode": "lcb", "default_beta": 0.5, "pair_temperature": 2},
        )
        assert [member["calibration_mean"] for member in replaced.json()["members"]] == [1, 1, 2, 1]
        assert (replaced.json()["default_mode"], replaced.json()["default_beta"]) == ("lcb", 0.5)
        removed = await http.delete("/v1/ensembles/tiny/members/m02?default_mode=min")
        assert [member["name"] for member in removed.json()["members"]] == ["m00", "m01", "m03"]
        assert removed.json()["default_mode"] == "min"
        versions = {reply["version"] for reply in (first, added.json(), replaced.json(), removed.json())}
        assert len(versions) == 4
        scored = (await http.post("/score", json=BODY)).json()
        assert scored["ensemble"]["version"] == removed.json()["version"]
        assert len(scored["results"][0]["members"]) == 3
        for reply, status in (
            (await http.put("/v1/ensembles/tiny/members/m00", json={"source": donor, "member": "m07"}), 422),
            (await http.put("/v1/ensembles/other/members/m00", json={"source": donor}), 404),
            (await http.put("/v1/ensembles/tiny/members/x", json={"source": donor}), 422),
            (await http.delete("/v1/ensembles/tiny/members/m02"), 422),
        ):
            assert reply.status_code == status, reply.text
        assert (await http.get("/v1/ensembles/tiny")).json()["version"] == removed.json()["version"]
        assert len(list((tmp_path / "state.json.bundles").iterdir())) == 3
    async with serving(fake_bundle, FakeEngine(), state=tmp_path / "state.json") as restarted:
        assert restarted.runtime.registry.get("tiny").version == removed.json()["version"]


async def test_without_a_place_for_new_bundles_members_stay(service: Service, second: Path) -> None:
    reply = await service.http.put("/v1/ensembles/tiny/members/m00", json={"source": str(second)})
    assert reply.status_code == 422
    assert "--state" in reply.json()["error"]["message"]
