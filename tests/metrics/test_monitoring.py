"""The dashboard, the alerts and the scrape config of examples/monitoring: of metrics and labels that there are."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from mlx_roster.config import SchedulingSettings
from mlx_roster.config.units import parse_duration
from mlx_roster.errors import TooManyConnections
from mlx_roster.server.errors import ANSWERS
from tests.metrics.promql import Series, parsed
from tests.metrics.scraped import busy, exposed

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "examples" / "monitoring"

FAMILIES = exposed(busy())

#: Of Prometheus itself, for every sample.
TARGET = ("job", "instance")


def dashboard() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((FOLDER / "grafana-dashboard.json").read_text())
    return found


def panels() -> list[dict[str, Any]]:
    return [panel for panel in dashboard()["panels"] if panel["type"] != "row"]


def rules() -> list[dict[str, Any]]:
    groups = yaml.safe_load((FOLDER / "alerts.yaml").read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def queries() -> Iterator[tuple[str, str]]:
    for panel in panels():
        for target in panel["targets"]:
            yield panel["title"], target["expr"]
    for rule in rules():
        yield rule["alert"], rule["expr"]
    for variable in dashboard()["templating"]["list"]:
        if variable["type"] == "query":
            match = re.fullmatch(r"label_values\((.*), (\w+)\)", variable["definition"])
            assert match is not None
            yield variable["name"], f"sum by ({match[2]}) ({match[1]})"


def labels_of(series: Series) -> set[str]:
    """Which labels a series has. Raises AssertionError where there is no such series, or it is not used as its type
    demands."""
    if series.name == "up":
        return {*TARGET}
    name, extra = series.name, set[str]()
    for suffix in ("_bucket", "_count", "_sum"):
        base = series.name.removesuffix(suffix)
        if base != series.name and base in FAMILIES and FAMILIES[base].kind == "histogram":
            name, extra = base, {"le"} if suffix == "_bucket" else set()
    assert name in FAMILIES, f"no metric {series.name}"
    family = FAMILIES[name]
    assert (family.kind == "histogram") == (name != series.name), f"{series.name} is a {family.kind}"
    assert not series.ranged or family.kind != "gauge", f"{series.name} is a gauge, which has no rate"
    return {*family.labels, *extra, *TARGET}


def check(query: str) -> None:
    found = parsed(query)
    assert found.series
    known = [labels_of(series) for series in found.series]
    for series, labels in zip(found.series, known, strict=True):
        assert set(series.labels) <= labels, f"{series.name} has no {set(series.labels) - labels}"
        if FAMILIES.get(series.name) and FAMILIES[series.name].kind == "counter":
            assert series.ranged or "unless" in query, f"{series.name} only ever grows"
    for label in found.grouped:
        # Prometheus's own is of the target, by which it is matched with ours.
        ours = [labels for series, labels in zip(found.series, known, strict=True) if series.name != "up"]
        assert all(label in labels for labels in ours or known), f"grouped by {label}, which not all have"
    if "histogram_quantile" in query:
        assert "le" in found.grouped
        assert all(series.name.endswith("_bucket") for series in found.series)


@pytest.mark.parametrize(("title", "query"), list(queries()))
def test_every_query_is_of_what_there_is(title: str, query: str) -> None:
    check(query)


@pytest.mark.parametrize(
    "query",
    [
        "sum(mlx_roster_no_such_metric)",
        'mlx_roster_model_bytes{adapter="x"}',
        "sum by (adapter) (mlx_roster_model_bytes)",
        "rate(mlx_roster_model_bytes[5m])",
        "mlx_roster_loads_total > 1",
        "histogram_quantile(0.5, sum by (model) (rate(mlx_roster_time_to_first_token_seconds_bucket[5m])))",
        "rate(mlx_roster_time_to_first_token_seconds[5m])",
        "sum(mlx_roster_residents",
        "summ(mlx_roster_residents)",
        "mlx_roster_residents # all",
    ],
)
def test_a_wrong_query_is_found(query: str) -> None:
    with pytest.raises(AssertionError):
        check(query)


def test_the_dashboard_has_what_grafana_wants() -> None:
    board = dashboard()
    assert board["title"] == "mlx-roster"
    assert board["id"] is None, "an import makes its own"
    assert board["schemaVersion"] >= 36
    assert {"uid", "time", "refresh", "templating", "annotations", "tags"} <= board.keys()
    variables = [variable["name"] for variable in board["templating"]["list"]]
    assert variables == ["datasource", "job", "instance", "model"]
    ids = [panel["id"] for panel in board["panels"]]
    assert len(set(ids)) == len(ids)
    for panel in panels():
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        assert panel["fieldConfig"]["defaults"]["unit"]
        assert panel["targets"]
        refs = [target["refId"] for target in panel["targets"]]
        assert len(set(refs)) == len(refs)
        for target in panel["targets"]:
            used = set(re.findall(r"\$(\w+)", target["expr"] + target["legendFormat"]))
            assert used <= {*variables, "__rate_interval"}, panel["title"]


def test_panels_do_not_overlap() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in dashboard()["panels"]:
        grid = panel["gridPos"]
        cells = {
            (x, y) for x in range(grid["x"], grid["x"] + grid["w"]) for y in range(grid["y"], grid["y"] + grid["h"])
        }
        assert not cells & taken, panel["title"]
        assert grid["x"] + grid["w"] <= 24
        taken |= cells


def test_most_of_what_there_is_is_shown() -> None:
    shown = {series.name for _, query in queries() for series in parsed(query).series}
    hidden = {
        name
        for name, family in FAMILIES.items()
        if name.startswith("mlx_roster_") and not {name, f"{name}_bucket"} & shown and family.kind
    }
    assert hidden == {
        "mlx_roster_config_reloads_total",
        "mlx_roster_downloads",
        "mlx_roster_event_loop_tasks",
        "mlx_roster_http_connections",
        "mlx_roster_kv_cache_usage_perc",
        "mlx_roster_model_estimated_bytes",
        "mlx_roster_model_leases",
        "mlx_roster_models_cooling_down",
        "mlx_roster_reasoning_tokens_total",
        "mlx_roster_request_success_total",
        "mlx_roster_request_time_per_output_token_seconds",
    }


@pytest.mark.parametrize("rule", rules(), ids=lambda rule: rule["alert"])
def test_every_alert_says_what_is_the_matter_and_what_to_do(rule: dict[str, Any]) -> None:
    assert rule.keys() == {"alert", "expr", "for", "labels", "annotations"}
    assert re.fullmatch(r"\d+[smh]", rule["for"])
    assert rule["labels"]["severity"] in ("critical", "warning")
    assert rule["annotations"].keys() == {"summary", "description", "runbook_url"}
    page, anchor = rule["annotations"]["runbook_url"].rsplit("/", 1)[1].split("#")
    titles = re.findall(r"^#+ (.+)$", (ROOT / "docs" / page).read_text(), re.M)
    assert anchor in [title.lower() for title in titles]
    grouped = parsed(rule["expr"]).grouped
    known = {*TARGET, *(grouped or labels_of(parsed(rule["expr"]).series[0]))}
    said = " ".join(rule["annotations"].values())
    assert set(re.findall(r"\$labels\.(\w+)", said)) <= known


def test_that_a_worker_gets_nowhere_is_told_before_it_is_replaced() -> None:
    config = yaml.safe_load((FOLDER / "prometheus.yml").read_text())["global"]
    (rule,) = (rule for rule in rules() if rule["alert"] == "MlxRosterModelStalled")
    takes = [rule["for"], config["scrape_interval"], config["evaluation_interval"]]
    # By default: it counts as stalled for the second half of the time that it may be.
    assert sum(map(parse_duration, takes)) <= SchedulingSettings().stall_timeout / 2


def test_what_is_new_to_prometheus_is_no_news_where_prometheus_is_new_itself() -> None:
    compared = [rule["expr"] for rule in rules() if " unless " in rule["expr"]]
    assert compared
    for query in compared:
        (past,) = re.findall(r"unless \S+ offset (\w+)", query)
        assert query.endswith(f' and on (instance, job) up{{job="mlx-roster"}} offset {past}')


def test_the_alert_on_errors_is_of_all_that_are_the_servers() -> None:
    """By their codes: a stream that ends with one keeps the status 200."""
    (rule,) = (rule for rule in rules() if rule["alert"] == "MlxRosterServerErrors")
    (codes,) = re.findall(r'code=~"([^"]+)"', rule["expr"])
    # Too many connections are none of any request's.
    others = {TooManyConnections.code}
    assert sorted(codes.split("|")) == sorted({e.code for e, how in ANSWERS.items() if how.status >= 500} - others)


def test_a_sum_of_series_that_are_not_there_yet_is_none() -> None:
    """Before anything was loaded, a model has none: what is added to nothing is nothing, and not itself."""
    for title, query in queries():
        if " + " in query:
            assert all("or vector(0)" in term for term in query.split(" + ")), title


def test_the_scrape_config_fits_the_alerts() -> None:
    config = yaml.safe_load((FOLDER / "prometheus.yml").read_text())
    (job,) = config["scrape_configs"]
    assert job["job_name"] == "mlx-roster"
    assert job["authorization"]["type"] == "Bearer"
    assert "metrics_path" not in job, "/metrics is the default, and ours"
    assert config["rule_files"] == ["alerts.yaml"]
    jobs = {match for rule in rules() for match in re.findall(r'job="([^"]+)"', rule["expr"])}
    assert jobs == {job["job_name"]}
