"""Dockerfile, compose file and Kubernetes: lint and schemas, and that what they name is there."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from quorum_server.command import _CLOSE_S
from quorum_server.settings import Settings
from tests.deploy.test_prometheus import exposed_names

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
KUBECTL = shutil.which("kubectl") or shutil.which(str(ROOT / ".cache/bin/kubectl"))
PROMTOOL = shutil.which("promtool")


def check(*command: str | Path, **options: Any) -> str:
    done = subprocess.run([str(one) for one in command], capture_output=True, text=True, check=False, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def tool(name: str) -> Path:
    path = BIN / name
    if not path.exists():
        pytest.skip(f"{name} is not installed (group dev)")
    return path


def settings_named(variables: set[str]) -> set[str]:
    return {name.removeprefix("QUORUM_").lower() for name in variables if name.startswith("QUORUM_")}


# The image


def environment_of_image() -> dict[str, str]:
    """What the last stage of the Dockerfile sets, its build arguments at their defaults."""
    text = (ROOT / "Dockerfile").read_text().split("\nFROM ")[-1]
    (block,) = re.findall(r"^ENV ((?:.*\\\n)*.*)$", text, re.MULTILINE)
    arguments = dict(re.findall(r"^ARG (\w+)=(.*)$", text, re.MULTILINE))
    found = dict(part.split("=", 1) for part in block.replace("\\\n", " ").split())
    return {name: re.sub(r"\$\{(\w+)\}", lambda one: arguments[one[1]], value) for name, value in found.items()}


def test_hadolint_agrees() -> None:
    check(tool("hadolint"), ROOT / "Dockerfile")


def test_the_image_runs_as_nobody_and_has_no_weights() -> None:
    text = (ROOT / "Dockerfile").read_text()
    assert re.search(r"^USER 10001:10001$", text, re.MULTILINE)
    assert "demo" not in text  # the extra that brings a backbone
    assert settings_named(set(environment_of_image())) <= set(Settings.model_fields)
    copied = set(re.findall(r"^COPY (?!--from)(.+) \S+$", text, re.MULTILINE))
    wanted = {name for line in copied for name in line.split()}
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert wanted == allowed
    assert all((ROOT / name).exists() for name in wanted)


# Compose


@pytest.fixture
def compose() -> dict[str, Any]:
    return dict(yaml.safe_load((ROOT / "docker-compose.yml").read_text()))


def test_compose_follows_its_schema() -> None:
    check(tool("check-jsonschema"), "--builtin-schema", "vendor.compose-spec", ROOT / "docker-compose.yml")


def test_compose_names_what_there_is_and_opens_nothing_beyond_loopback(compose: dict[str, Any]) -> None:
    assert set(compose["services"]) == {"scorer", "generator", "prometheus", "grafana", "trainer"}
    volumes, secrets = set(), set()
    for service in compose["services"].values():
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))
        secrets |= set(service.get("secrets", []))
        for volume in service["volumes"]:
            source = volume.split(":")[0]
            if source.startswith("./deploy"):
                assert (ROOT / source).exists(), source
            elif not source.startswith("."):
                volumes.add(source)
        variables = set(service.get("environment", {}))
        assert settings_named(variables) <= set(Settings.model_fields)
    assert volumes == set(compose["volumes"])
    assert secrets == set(compose["secrets"])
    assert all(set(secret) == {"file"} for secret in compose["secrets"].values())
    assert "profiles" in compose["services"]["trainer"]
    scorer = compose["services"]["scorer"]
    assert scorer["read_only"] is True
    assert scorer["cap_drop"] == ["ALL"]
    assert int(scorer["stop_grace_period"][:-1]) > Settings.model_fields["drain_s"].default + _CLOSE_S


@pytest.mark.skipif(PROMTOOL is None, reason="promtool is not installed (Debian: prometheus)")
def test_composes_prometheus_has_the_rules(tmp_path: Path) -> None:
    assert PROMTOOL is not None
    ours = yaml.safe_load((ROOT / "deploy/compose/prometheus.yml").read_text())
    local = yaml.safe_load((ROOT / "deploy/prometheus/prometheus.yml").read_text())
    job = ours["scrape_configs"][0]
    key = Path(job["authorization"].pop("credentials_file"))
    assert key.name == "score_key"
    assert ours["global"] == local["global"]
    assert job["job_name"] == local["scrape_configs"][0]["job_name"]  # the alert QuorumDown asks for it
    for name in ("prometheus.yml", "rules.yml"):
        folder = "compose" if name == "prometheus.yml" else "prometheus"
        shutil.copy(ROOT / "deploy" / folder / name, tmp_path / name)
    check(PROMTOOL, "check", "config", "--syntax-only", tmp_path / "prometheus.yml")


# Kubernetes


@pytest.fixture(params=["base", "overlays/gpu"])
def objects(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, dict[str, Any]]:
    """By kind, as kustomize builds them and the API's schemas allow them."""
    if KUBECTL is None:
        pytest.skip("kubectl is not installed (make kubectl)")
    built = tmp_path / "built.yaml"
    built.write_text(check(KUBECTL, "kustomize", ROOT / "deploy/kubernetes" / request.param))
    check(tool("kubernetes-validate"), "--strict", built)
    found = {one["kind"]: one for one in yaml.safe_load_all(built.read_text())}
    wanted = (
        "Namespace Service PersistentVolumeClaim Deployment PodDisruptionBudget HorizontalPodAutoscaler NetworkPolicy"
    )
    assert set(found) == set(wanted.split())
    return found


def test_a_pod_is_probed_drained_and_locked_up(objects: dict[str, dict[str, Any]]) -> None:
    pod = objects["Deployment"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert container["readinessProbe"]["httpGet"]["path"] == "/readyz"
    assert container["livenessProbe"]["httpGet"]["path"] == "/healthz"
    variables = {one["name"]: one["value"] for one in container["env"]}
    assert settings_named(set(variables)) <= set(Settings.model_fields)
    wait_s = int(container["lifecycle"]["preStop"]["exec"]["command"][1])
    assert wait_s + int(variables["QUORUM_DRAIN_S"]) + _CLOSE_S < pod["terminationGracePeriodSeconds"]
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    assert pod["securityContext"]["runAsNonRoot"] is True
    # A Service called quorum would set QUORUM_PORT, a setting of the server, to an address.
    assert objects["Service"]["metadata"]["name"] == "quorum"
    assert pod["enableServiceLinks"] is False
    mounts = {one["mountPath"] for one in container["volumeMounts"]}
    assert {"/tmp", "/var/lib/quorum", "/var/cache/quorum", variables["QUORUM_WATCH"]} <= mounts
    assert any(variables["QUORUM_API_KEYS_FILE"].startswith(f"{mount}/") for mount in mounts)
    assert {one["name"] for one in container["volumeMounts"]} == {one["name"] for one in pod["volumes"]}


def test_what_selects_pods_selects_these(objects: dict[str, dict[str, Any]]) -> None:
    labels = objects["Deployment"]["spec"]["template"]["metadata"]["labels"].items()
    for selector in (
        objects["Deployment"]["spec"]["selector"]["matchLabels"],
        objects["Service"]["spec"]["selector"],
        objects["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"],
        objects["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"],
    ):
        assert selector
        assert selector.items() <= labels


def test_it_scales_on_a_metric_that_the_server_has(objects: dict[str, dict[str, Any]]) -> None:
    scaler = objects["HorizontalPodAutoscaler"]["spec"]
    (metric,) = scaler["metrics"]
    name = metric["pods"]["metric"]["name"]
    assert name in exposed_names()
    assert scaler["scaleTargetRef"]["name"] == objects["Deployment"]["metadata"]["name"]
    # Below what one replica refuses; see docs/containers.md for the adapter that gives the metric to the cluster.
    assert int(metric["pods"]["target"]["averageValue"]) < Settings.model_fields["max_queued_tokens"].default
    assert f"seriesQuery: '{name}{{" in (ROOT / "docs/containers.md").read_text()
