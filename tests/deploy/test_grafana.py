"""Dashboards: the committed JSON is the code's, and its queries ask for metrics that the server has, in PromQL."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from deploy.grafana.dashboards import DASHBOARDS, FOLDER, render

from tests.deploy.test_prometheus import exposed_names

PROMTOOL = shutil.which("promtool")
# Of the process collector: only of a process that is asked for them.
_PROCESS = {"process_resident_memory_bytes"}


def panels(name: str) -> Iterator[dict[str, Any]]:
    for panel in json.loads(render(name))["panels"]:
        yield from [panel] if panel["type"] != "row" else panel["panels"]


def expressions(name: str) -> list[str]:
    return [target["expr"] for panel in panels(name) for target in panel["targets"]]


@pytest.mark.parametrize("name", DASHBOARDS)
def test_the_committed_json_is_the_codes(name: str) -> None:
    committed = (FOLDER / f"{name}.json").read_text(encoding="utf-8")
    assert committed == render(name), "run python deploy/grafana/dashboards.py"


@pytest.mark.parametrize("name", DASHBOARDS)
def test_panels_ask_for_what_there_is(name: str) -> None:
    dashboard = json.loads(render(name))
    variables = {variable["name"]: variable["query"] for variable in dashboard["templating"]["list"]}
    swaps = [mark["expr"] for mark in dashboard.get("annotations", {}).get("list", [])]
    asked = [*expressions(name), *variables.values(), *swaps]
    assert len(asked) > 10
    for expression in asked:
        named = set(re.findall(r"\b(?:quorum|process)_[a-z0-9_]+", expression))
        assert named
        assert named <= exposed_names() | _PROCESS, named - exposed_names()
        assert set(re.findall(r"\$(\w+)", expression)) <= {*variables, "__rate_interval"}


@pytest.mark.parametrize("name", DASHBOARDS)
def test_panels_are_told_apart_and_heatmaps_are_of_buckets(name: str) -> None:
    found = list(panels(name))
    titles = [panel["title"] for panel in found]
    assert len(titles) == len(set(titles))
    for panel in found:
        assert panel["datasource"]["uid"] == "prometheus"
        ids = [target["refId"] for target in panel["targets"]]
        assert ids == list("ABCDEFGH"[: len(ids)])
        if panel["type"] == "heatmap":
            (target,) = panel["targets"]
            assert "sum by (le)" in target["expr"]
            assert target["format"] == "heatmap"


@pytest.mark.skipif(PROMTOOL is None, reason="promtool is not installed (Debian: prometheus)")
@pytest.mark.parametrize("name", DASHBOARDS)
def test_queries_are_promql(name: str, tmp_path: Path) -> None:
    rules = [
        {"record": f"panel:{number}", "expr": expression.replace("$__rate_interval", "5m")}
        for number, expression in enumerate(expressions(name))
    ]
    path = tmp_path / "rules.yml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": rules}]}))
    assert PROMTOOL is not None
    done = subprocess.run([PROMTOOL, "check", "rules", str(path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
