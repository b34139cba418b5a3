"""The dashboards as code: panels as data, made into Grafana's JSON.

    python deploy/grafana/dashboards.py    writes dashboards/uncertainty.json, dashboards/service.json

The JSON is committed; a test holds it equal to this file, and every metric's name to the server's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from grafana_foundation_sdk.builders import dashboard, heatmap, prometheus, timeseries
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import DataSourceRef, VariableRefresh

FOLDER = Path(__file__).parent / "dashboards"
_SOURCE = DataSourceRef(type_val="prometheus", uid="prometheus")
_RUN = 'ensemble=~"$ensemble", run=~"$run", instance=~"$instance"'
_VERSION = 'ensemble=~"$ensemble", instance=~"$instance"'
_SERVER = 'instance=~"$instance"'


@dataclass(frozen=True, slots=True)
class Query:
    """PromQL, and how its series are called."""

    expr: str
    legend: str = "__auto"


@dataclass(frozen=True, slots=True)
class Panel:
    """One picture. unit: Grafana's. says: what a reader should know; kind `heatmap` takes one query by `le`."""

    title: str
    queries: tuple[Query, ...]
    unit: str = "short"
    says: str = ""
    kind: Literal["lines", "heatmap"] = "lines"


def _rate(name: str, labels: str, by: str) -> str:
    return f"sum by ({by}) (rate({name}{{{labels}}}[$__rate_interval]))"


def _mean(name: str, labels: str, by: str) -> str:
    return f"{_rate(f'{name}_sum', labels, by)} / {_rate(f'{name}_count', labels, by)}"


def _quantile(q: float, name: str, labels: str, by: str) -> str:
    return f"histogram_quantile({q}, {_rate(f'{name}_bucket', labels, f'{by}, le')})"


def _buckets(name: str, labels: str) -> Query:
    return Query(f"sum by (le) (increase({name}_bucket{{{labels}}}[$__rate_interval]))", "{{le}}")


def _share(part: str, whole: str, labels: str, by: str) -> str:
    return f"{_rate(part, labels, by)} / {_rate(whole, labels, by)}"


def _increase(name: str, labels: str, by: str) -> str:
    """Of events that are rare: the first one begins a series, in which Prometheus sees no increase."""
    series = f"{name}{{{labels}}}"
    return f"sum by ({by}) (({series} unless {series} offset $__rate_interval) or increase({series}[$__rate_interval]))"


_BY_RUN, _OF_RUN = "ensemble, version, run", "{{run}} {{ensemble}}@{{version}}"
_SCORE = (
    f"({_rate('quorum_calibrated_score_positive_total', _RUN, _BY_RUN)} - "
    f"{_rate('quorum_calibrated_score_negative_total', _RUN, _BY_RUN)}) / "
    f'sum by ({_BY_RUN}) (rate(quorum_calibrated_score_bucket{{{_RUN}, le="+Inf"}}[$__rate_interval]))'
)
_STD = _mean("quorum_score_std", _RUN, _BY_RUN)
_PENALTY = _mean("quorum_lcb_penalty", _RUN, _BY_RUN)
SWAPS = _increase("quorum_swap_seconds_count", 'ensemble=~"$ensemble", result="ok"', "instance, ensemble") + " > 0"
"""Marked on every panel of the uncertainty dashboard."""

UNCERTAINTY = {
    "A run": (
        Panel(
            "Score, lcb and std, mean over items",
            (
                Query(_SCORE, f"{_OF_RUN} score"),
                Query(f"{_SCORE} - {_PENALTY}", f"{_OF_RUN} lcb"),
                Query(_STD, f"{_OF_RUN} std"),
            ),
            says="Calibrated, not centred. Score and std that climb together: over-optimisation. Marked: swaps.",
        ),
        Panel("Std over members, mean", (Query(_STD, _OF_RUN),)),
        Panel("Mean - lcb, mean", (Query(_PENALTY, _OF_RUN),), says="What lcb takes off."),
        Panel(
            "Items beyond the 99th percentile of std",
            (
                Query(
                    _share("quorum_std_exceeded_items_total", "quorum_std_checked_items_total", _RUN, _BY_RUN),
                    _OF_RUN,
                ),
            ),
            "percentunit",
            "Of the bundle's own data: 1 % is as expected.",
        ),
    ),
    "Distributions": (
        Panel("Std over members", (_buckets("quorum_score_std", _RUN),), kind="heatmap"),
        Panel("Mean - lcb", (_buckets("quorum_lcb_penalty", _RUN),), kind="heatmap"),
        Panel("Calibrated score", (_buckets("quorum_calibrated_score", _RUN),), kind="heatmap"),
        Panel(
            "Disagreement of members' orders",
            (_buckets("quorum_rank_disagreement", _RUN),),
            kind="heatmap",
            says="0 agree, 0.5 chance.",
        ),
    ),
    "Against the bundle": (
        Panel("Drift of the score (KS)", (Query(f"quorum_score_drift{{{_VERSION}}}", "{{ensemble}}@{{version}}"),)),
        Panel(
            "Std of picked candidates",
            (_buckets("quorum_picked_std", _SERVER),),
            kind="heatmap",
            says="Of the gateway.",
        ),
    ),
}

SERVICE = {
    "Requests": (
        Panel(
            "Requests a second",
            (Query(_rate("quorum_requests_total", _SERVER, "route, status"), "{{route}} {{status}}"),),
            "reqps",
        ),
        Panel(
            "Latency by route",
            tuple(
                Query(_quantile(q, "quorum_request_seconds", _SERVER, "route"), f"{{{{route}}}} p{q * 100:g}")
                for q in (0.5, 0.99)
            ),
            "s",
        ),
        Panel(
            "Latency by phase, p99",
            tuple(
                Query(_quantile(0.99, f"quorum_{name}_seconds", _SERVER, "instance"), name)
                for name in ("tokenize", "queue", "forward", "generation")
            ),
            "s",
        ),
        Panel("Rejections", (Query(_rate("quorum_rejections_total", _SERVER, "reason"), "{{reason}}"),), "reqps"),
    ),
    "Engines": (
        Panel("Queued tokens", (Query(f"quorum_queued_tokens{{{_SERVER}}}", "{{instance}}"),)),
        Panel("In flight", (Query(f"quorum_requests_in_flight{{{_SERVER}}}", "{{instance}}"),)),
        Panel("Tokens of a pass", (_buckets("quorum_batch_tokens", _SERVER),), kind="heatmap"),
        Panel(
            "Tokens a second",
            tuple(
                Query(_rate(f"quorum_{name}_tokens_total", _VERSION, "ensemble"), f"{{{{ensemble}}}} {name}")
                for name in ("submitted", "computed")
            ),
        ),
        Panel(
            "Saved by sharing",
            (
                Query(
                    "1 - "
                    + _share("quorum_computed_tokens_total", "quorum_submitted_tokens_total", _VERSION, "ensemble"),
                    "{{ensemble}}",
                ),
            ),
            "percentunit",
        ),
        Panel(
            "Restarts",
            (
                Query(
                    _increase("quorum_engine_restarts_total", _SERVER, "engine, reason"),
                    "{{engine}} {{reason}}",
                ),
            ),
        ),
    ),
    "Swaps and memory": (
        Panel(
            "Swaps",
            (
                Query(
                    _increase("quorum_swap_seconds_count", _SERVER, "ensemble, result"),
                    "{{ensemble}} {{result}}",
                ),
            ),
        ),
        Panel(
            "Versions loaded",
            (Query(f"quorum_ensemble_info{{{_VERSION}}}", "{{ensemble}}@{{version}} {{members}} members, {{dtype}}"),),
        ),
        Panel(
            "Memory",
            (
                Query(f"quorum_engine_resident_bytes{{{_SERVER}}}", "engine {{engine}}"),
                Query(f"process_resident_memory_bytes{{{_SERVER}}}", "server"),
            ),
            "bytes",
        ),
        Panel(
            "Gateway: candidates, and those without a score",
            (
                Query(_rate("quorum_generated_candidates_total", _SERVER, "instance"), "written"),
                Query(_rate("quorum_unranked_candidates_total", _SERVER, "instance"), "without a score"),
                Query(_rate("quorum_generation_failures_total", _SERVER, "code"), "failed: {{code}}"),
            ),
        ),
    ),
}

Rows = dict[str, tuple[Panel, ...]]
DASHBOARDS: dict[str, tuple[str, Rows, Sequence[str]]] = {
    "uncertainty": ("Quorum: uncertainty", UNCERTAINTY, ("instance", "ensemble", "run")),
    "service": ("Quorum: service", SERVICE, ("instance", "ensemble")),
}
_VALUES = {
    "instance": "label_values(quorum_requests_in_flight, instance)",
    "ensemble": "label_values(quorum_ensemble_info, ensemble)",
    "run": "label_values(quorum_score_std_count, run)",
}


def render(name: str) -> str:
    """A dashboard's JSON."""
    title, rows, variables = DASHBOARDS[name]
    made = (
        dashboard.Dashboard(title)
        .uid(f"quorum-{name}")
        .tags(["quorum"])
        .refresh("30s")
        .time("now-6h", "now")
        .readonly()
    )
    for variable in variables:
        made = made.with_variable(
            dashboard.QueryVariable(variable)
            .datasource(_SOURCE)
            .query(_VALUES[variable])
            .refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
            .include_all(True)
            .multi(True)
            .all_value(".*")
        )
    if "run" in variables:
        swaps = dashboard.AnnotationQuery().name("Swaps").datasource(_SOURCE).enable(True).expr(SWAPS)
        made = made.annotation(swaps.icon_color("orange"))
    for row, panels in rows.items():
        made = made.with_row(dashboard.Row(row))
        for panel in panels:
            made = made.with_panel(_panel(panel))
    return JSONEncoder(sort_keys=True, indent=1).encode(made.build()) + "\n"


def _panel(panel: Panel) -> timeseries.Panel | heatmap.Panel:
    made = heatmap.Panel().calculate(False) if panel.kind == "heatmap" else timeseries.Panel()
    made = made.title(panel.title).description(panel.says).datasource(_SOURCE).unit(panel.unit).height(8).span(12)
    for letter, query in zip("ABCDEFGH", panel.queries, strict=False):
        target = prometheus.Dataquery().expr(query.expr).legend_format(query.legend).ref_id(letter)
        made = made.with_target(target.format("heatmap") if panel.kind == "heatmap" else target)
    return made


if __name__ == "__main__":
    for each in DASHBOARDS:
        (FOLDER / f"{each}.json").write_text(render(each), encoding="utf-8")
