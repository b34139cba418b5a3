"""Rules and alerts: their names are the server's, their runbooks are there, and promtool evaluates them as written."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import generate_latest

from quorum_server.metrics import Metrics

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "deploy" / "prometheus"
PROMTOOL = shutil.which("promtool")


def rules() -> list[dict[str, Any]]:
    groups = yaml.safe_load((FOLDER / "rules.yml").read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def exposed_names() -> set[str]:
    """Names of samples, with the endings that each type has."""
    endings = {"counter": ("_total",), "gauge": ("",), "histogram": ("_bucket", "_sum", "_count"), "unknown": ("",)}
    text = generate_latest(Metrics().registry).decode()
    found = re.findall(r"^# TYPE (quorum\S+) (\w+)$", text, re.MULTILINE)
    names = {name.removesuffix("_total") + ending for name, kind in found for ending in endings[kind]}
    return names | {"quorum_ensemble_info"}


@pytest.mark.parametrize("rule", rules(), ids=lambda rule: rule.get("record") or rule["alert"])
def test_rules_ask_for_what_there_is(rule: dict[str, Any]) -> None:
    recorded = {rule["record"] for rule in rules() if "record" in rule}
    named = set(re.findall(r"\bquorum[_:][a-z0-9_:]+", rule["expr"]))
    assert named <= exposed_names() | recorded, named - exposed_names() - recorded
    assert named or "up{" in rule["expr"]


def test_every_alert_has_a_section_that_says_what_to_do() -> None:
    sections = set(re.findall(r"^## (\w+)$", (ROOT / "docs" / "operate.md").read_text(), re.MULTILINE))
    alerts = [rule for rule in rules() if "alert" in rule]
    assert sections == {rule["alert"] for rule in alerts}
    for rule in alerts:
        assert rule["annotations"]["runbook"] == f"docs/operate.md#{rule['alert'].lower()}"
        assert rule["labels"]["severity"] in ("warning", "critical")


@pytest.mark.skipif(PROMTOOL is None, reason="promtool is not installed (Debian: prometheus)")
@pytest.mark.parametrize("arguments", [("check", "config", "prometheus.yml"), ("test", "rules", "rules_test.yml")])
def test_promtool_agrees(arguments: tuple[str, ...]) -> None:
    assert PROMTOOL is not None
    done = subprocess.run([PROMTOOL, *arguments], cwd=FOLDER, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
