"""Groups that a filter finds; one of them, read."""

from __future__ import annotations

import json
import re

import pandas
import streamlit

from reward_server.view import filters
from reward_server.view.context import Context
from reward_server.view.filters import Filter, Found, Key, ShownCompletion, ShownGroup
from reward_server.view.texts import differences, line_of, shown

_ANY = "any"
_STATUSES = (_ANY, "OK", "NOT_APPLICABLE", "INVALID", "TIMEOUT", "FAILED")
_MOST_CHARACTERS = 20_000


def show(context: Context) -> None:
    streamlit.header("Groups")
    if context.steps is None:
        streamlit.info("There are no records among the given files.")
        return
    found: Found = context.ask(filters.find, _wanted(context))
    streamlit.text(f"{found.all_completions:,} completions in {found.all_groups:,} groups match.")
    key = _chosen(context, found)
    if key is None:
        return
    group = filters.group_of(context.store, key)
    if group is None:
        streamlit.text("This group is no longer recorded.")
        return
    _show_group(group)


def _wanted(context: Context) -> Filter:
    """The filter, from widgets whose state is in the URL."""
    assert context.steps is not None
    first, last = context.steps
    names = [filters.REWARD, *context.ask(filters.scorer_names)]
    columns = streamlit.columns(6)
    bound = {"bind": "query-params"}
    from_step = columns[0].number_input("From step", value=None, step=1, placeholder=str(first), key="from", **bound)
    to_step = columns[1].number_input("To step", value=None, step=1, placeholder=str(last), key="to", **bound)
    scorer = columns[2].selectbox("Score of", names, key="scorer", format_func=line_of, **bound)
    least = columns[3].number_input("At least", value=None, step=0.1, key="least", format="%g", **bound)
    most = columns[4].number_input("At most", value=None, step=0.1, key="most", format="%g", **bound)
    status = columns[5].selectbox("Status", _STATUSES, key="status", **bound)
    text = streamlit.text_input("Completion contains (case counts)", key="text", **bound)
    return Filter(context.run, from_step, to_step, scorer, least, most, None if status == _ANY else status, text)


# ----------------------------------------------------------------------------------------------------- choosing a group


def _chosen(context: Context, found: Found) -> Key | None:
    """The group that the URL names, or the first that was found."""
    named = {name_of(group.key): group.key for group in found.groups}
    asked = streamlit.query_params.get("group", "")
    if asked and asked not in named and (key := key_of(context, asked)) is not None:
        named = {asked: key, **named}  # a colleague's link to a group that is not among the first that match now
    if not named:
        return None
    chosen = streamlit.selectbox("Group", list(named), key="group", bind="query-params")
    return named.get(chosen or "")


def name_of(key: Key) -> str:
    """As the list of groups and the URL have it."""
    run, step, group = key
    return " / ".join((f"step {step}", line_of(group, 80), line_of(run, 40)))


def key_of(context: Context, name: str) -> Key | None:
    """The group of that name, if it is recorded."""
    if not (match := re.match(r"step (\d{1,15}) / ", name)):
        return None
    step = int(match[1])
    rows = context.store.query("SELECT DISTINCT run_id, group_id FROM completions WHERE step = ?", [step])
    keys = [(row.run_id, step, row.group_id) for row in rows.itertuples()]
    return next((key for key in keys if name_of(key) == name), None)


# ---------------------------------------------------------------------------------------------------------- one group


def _show_group(group: ShownGroup) -> None:
    streamlit.subheader("Prompt")
    _text(group.prompt)
    if group.columns not in ("", "{}"):
        with streamlit.expander("Columns of the row"):
            _text(json.dumps(json.loads(group.columns), indent=2, ensure_ascii=False))
    _table(group)
    _differences(group)
    for completion in group.completions:
        _show_completion(completion)


def _table(group: ShownGroup) -> None:
    """Rewards and scores of the group's completions side by side."""
    rows = []
    for one in group.completions:
        row = {"completion": one.index, "reward": one.reward}
        row |= {line_of(said.name, 40): said.score for said in one.scorers}
        rows.append(row | {"advantage": one.advantage, "length": one.size})
    streamlit.dataframe(pandas.DataFrame(rows).dropna(axis="columns", how="all"), hide_index=True)


def _differences(group: ShownGroup) -> None:
    if len(group.completions) < 2:
        return
    with streamlit.expander("Differences between two completions"):
        indices = [one.index for one in group.completions]
        texts = {one.index: one.text for one in group.completions}
        left, right = streamlit.columns(2)
        first = left.selectbox("From completion", indices, key="first", bind="query-params")
        second = right.selectbox("To completion", indices, index=1, key="second", bind="query-params")
        if first is not None and second is not None:
            marked = differences(texts[first][:_MOST_CHARACTERS], texts[second][:_MOST_CHARACTERS])
            streamlit.code(marked, language="diff", wrap_lines=True)


def _show_completion(one: ShownCompletion) -> None:
    reward = "no reward" if one.reward is None else f"reward {one.reward:.4g}"
    facts = [f"completion {one.index}", reward]
    facts += [] if one.advantage is None else [f"advantage {one.advantage:+.4g}"]
    facts += ["cut off"] if one.truncated else []
    facts += ["not trained on"] if one.dropped else []
    streamlit.divider()
    streamlit.text(" · ".join(facts))
    _text(one.text)
    lines = []
    for said in one.scorers:
        score = "-" if said.score is None else f"{said.score:.4g}"
        lines.append(f"{line_of(said.name)}  {score}  {line_of(said.status)}  × {said.weight:g}")
        lines += [f"    {line}" for line in shown(said.message).splitlines()]
        lines += [f"    {line_of(name)}: {shown(_as_text(value))}" for name, value in said.extra.items()]
    streamlit.text("\n".join(lines))


def _text(text: str) -> None:
    """A text as it is, without any meaning. Very long ones are cut."""
    cut = shown(text[:_MOST_CHARACTERS])
    streamlit.code(cut, language=None, wrap_lines=True)
    if len(text) > _MOST_CHARACTERS:
        streamlit.text(f"… and {len(text) - _MOST_CHARACTERS:,} characters more")


def _as_text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
