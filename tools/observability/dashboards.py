"""All dashboards, and the JSON that Grafana reads, made with Grafana's own types."""

import itertools
from pathlib import Path
from typing import Final

from grafana_foundation_sdk.builders import bargauge, common, dashboard, prometheus, stat, table, timeseries
from grafana_foundation_sdk.cog.builder import Builder
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.common import (
    BarGaugeDisplayMode,
    BigValueTextMode,
    GraphTresholdsStyleMode,
    LegendDisplayMode,
    VizOrientation,
)
from grafana_foundation_sdk.models.dashboard import (
    DashboardCursorSync,
    DashboardLinkType,
    DataSourceRef,
    DataTransformerConfig,
    Threshold,
    ThresholdsMode,
    VariableModel,
    VariableRefresh,
    VariableSort,
)
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

from observability.fleet import FLEET
from observability.model import Dashboard, Kind, Panel, Query, Variable
from observability.operators import OPERATOR
from observability.run import RUN

DASHBOARDS: Final = (FLEET, RUN, OPERATOR)
FOLDER: Final = Path(__file__).parents[2] / "charts" / "fedpipe" / "files" / "dashboards"
_TAG: Final = "fedpipe"
_SOURCE: Final = DataSourceRef("prometheus", "${datasource}")
_PanelBuilder = timeseries.Panel | stat.Panel | bargauge.Panel | table.Panel
_BUILDERS: Final[dict[Kind, type[_PanelBuilder]]] = {
    Kind.LINES: timeseries.Panel,
    Kind.VALUES: stat.Panel,
    Kind.BARS: bargauge.Panel,
    Kind.TABLE: table.Panel,
}
_NO_DATA: Final = "No data"


def write() -> None:
    """Write every dashboard into the chart."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    for one in DASHBOARDS:
        (FOLDER / f"{one.uid}.json").write_text(as_json(one), encoding="utf-8")


def as_json(one: Dashboard) -> str:
    """The dashboard as Grafana imports it: the same bytes every time."""
    built = (
        dashboard.Dashboard(one.title)
        .uid(one.uid)
        .description(one.description)
        .tags([_TAG])
        .readonly()
        .refresh("30s")
        .time("now-3h", "now")
        .timezone("browser")
        .tooltip(DashboardCursorSync.CROSSHAIR)
        .link(dashboard.DashboardLink("FedPipe").type(DashboardLinkType.DASHBOARDS).tags([_TAG]).as_dropdown(True).keep_time(True))
        .variables([_source_variable(), *map(_variable, one.variables)])
    )
    numbers = itertools.count(1)
    for row in one.rows:
        built.with_row(dashboard.Row(row.title).id(next(numbers)))
        for panel in row.panels:
            built.with_panel(_panel(panel).id(next(numbers)))
    return JSONEncoder(sort_keys=True, indent=1).encode(built.build()) + "\n"


def _source_variable() -> Builder[VariableModel]:
    return dashboard.DatasourceVariable("datasource").label("Data source").type("prometheus")


def _variable(one: Variable) -> Builder[VariableModel]:
    built = dashboard.QueryVariable(one.name).label(one.label).datasource(_SOURCE).query(one.query)
    built.refresh(VariableRefresh.ON_TIME_RANGE_CHANGED).sort(VariableSort.ALPHABETICAL_ASC)
    return built.multi(True).include_all(True).all_value(".*") if one.many else built


def _panel(one: Panel) -> _PanelBuilder:
    built = _BUILDERS[one.kind]().title(one.title).description(one.description).unit(one.unit).datasource(_SOURCE)
    built.no_value(f"{_NO_DATA}: {one.may_be_empty}" if one.may_be_empty else _NO_DATA)
    built.span(one.width).height(one.height)
    built.thresholds(
        dashboard.ThresholdsConfig()
        .mode(ThresholdsMode.ABSOLUTE)
        .steps([Threshold(None, "green"), *(Threshold(step.value, step.colour) for step in one.thresholds)])
    )
    for index, query in enumerate(one.queries):
        built.with_target(_target(query, chr(ord("A") + index), one.kind))
    return _styled(built, one)


def _target(query: Query, name: str, kind: Kind) -> prometheus.Dataquery:
    built = prometheus.Dataquery().expr(query.expr).legend_format(query.legend).ref_id(name)
    if kind is Kind.LINES:
        return built.range()
    return built.instant().format(PromQueryFormat.TABLE if kind is Kind.TABLE else PromQueryFormat.TIME_SERIES)


def _styled(built: _PanelBuilder, one: Panel) -> _PanelBuilder:
    """What differs by kind."""
    match built:
        case timeseries.Panel():
            built.legend(common.VizLegendOptions().display_mode(LegendDisplayMode.TABLE).show_legend(True).calcs(["lastNotNull"]))
            if one.thresholds:
                built.thresholds_style(common.GraphThresholdsStyleConfig().mode(GraphTresholdsStyleMode.LINE))
        case stat.Panel():
            mode = BigValueTextMode.VALUE_AND_NAME if len(one.queries) > 1 else BigValueTextMode.AUTO
            built.reduce_options(_newest()).text_mode(mode)
        case bargauge.Panel():
            built.reduce_options(_newest()).orientation(VizOrientation.HORIZONTAL).display_mode(BarGaugeDisplayMode.BASIC)
        case table.Panel():
            columns = {f"Value #{chr(ord('A') + index)}": query.legend for index, query in enumerate(one.queries)}
            columns["Value"] = one.queries[0].legend
            built.with_transformation(DataTransformerConfig("merge", options={}))
            built.with_transformation(DataTransformerConfig("organize", options={"excludeByName": {"Time": True}, "renameByName": columns}))
    return built


def _newest() -> common.ReduceDataOptions:
    """Of several values of a series, the last one."""
    return common.ReduceDataOptions().calcs(["lastNotNull"]).values(False)
