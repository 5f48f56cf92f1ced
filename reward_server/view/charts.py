"""Tables as Altair charts. Field names are ours; what comes from records is only ever a value."""

from __future__ import annotations

import altair
import pandas

from reward_server.view.texts import line_of

_HEIGHT = 220
_NAME_CHARACTERS = 30


def deciles(table: pandas.DataFrame, title: str) -> altair.LayerChart:
    """The mean as a line over the bands of the deciles; `table` has step, mean, d10 … d90."""
    base = altair.Chart(table).encode(x=_step())
    bands = [
        base.mark_area(opacity=0.14, interpolate="linear").encode(
            y=altair.Y(f"d{low}:Q", title=title), y2=f"d{100 - low}:Q"
        )
        for low in (10, 20, 30, 40)
    ]
    tooltip = [altair.Tooltip(name, format=".4g") for name in ("step:Q", "mean:Q", "d10:Q", "d50:Q", "d90:Q")]
    line = base.mark_line(point=len(table) < 30).encode(y=altair.Y("mean:Q", title=title), tooltip=tooltip)
    return altair.layer(*bands, line).properties(height=_HEIGHT)


def lines(table: pandas.DataFrame, value: str, name: str | None, title: str) -> altair.Chart:
    """A line for each value of the column `name`; one line if there is none."""
    drawn = table if name is None else table.assign(**{name: [_short(text) for text in table[name]]})
    tooltip = [altair.Tooltip("step:Q"), altair.Tooltip(f"{value}:Q", format=".4g")]
    chart = altair.Chart(drawn).mark_line(point=len(drawn) < 60)
    if name is not None:
        chart = chart.encode(color=altair.Color(f"{name}:N", title=None, legend=altair.Legend(orient="bottom")))
        tooltip.append(altair.Tooltip(f"{name}:N"))
    return chart.encode(x=_step(), y=altair.Y(f"{value}:Q", title=title), tooltip=tooltip).properties(height=_HEIGHT)


def scatter(table: pandas.DataFrame) -> altair.Chart:
    """Score against length, coloured by step."""
    return (
        altair.Chart(table)
        .mark_circle(size=22, opacity=0.5)
        .encode(
            x=altair.X("length:Q", title="length"),
            y=altair.Y("score:Q", title="score"),
            color=altair.Color("step:Q", scale=altair.Scale(scheme="viridis"), title="step"),
            tooltip=["step:Q", "length:Q", "score:Q"],
        )
        .properties(height=_HEIGHT)
    )


def _step() -> altair.X:
    return altair.X("step:Q", title="step", axis=altair.Axis(tickMinStep=1, format="d"))


def _short(text: str) -> str:
    return line_of(text, _NAME_CHARACTERS)
