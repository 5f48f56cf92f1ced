"""Prompts for models that judge: Jinja templates, and how a policy's text is made harmless before it fills one.

Owns the parsing and rendering of a template, the columns that it names, and the breaking of control tokens. Knows
nothing of judges or models.

Strings that chat templates build turns from (<|im_end|>, [/INST], </s>, …) are broken by a space: engines and
tokenizers read them as control tokens even inside a message, and a text could end the user's turn and write the answer.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from typing import Any

from reward_server.errors import ScorerLoadError
from reward_server.scorers.base import text_of
from reward_server.scorers.loading import did_you_mean
from reward_server.types import Content

# ChatML, Llama 3, Phi, GLM, DeepSeek (whose bar is U+FF5C); Llama 2 and Mistral; Gemma; reasoning and tool marks.
_CONTROL = re.compile(
    r"<(?=[|｜])"
    r"|<(?=/?(?:s|bos|eos|pad|unk|mask|think|tool_call|tool_response|start_of_turn|end_of_turn|unused\d+)>)"
    r"|<(?=</?SYS>>)"
    r"|\[(?=/?(?:INST|SYSTEM_PROMPT|AVAILABLE_TOOLS|TOOL_CALLS|TOOL_RESULTS|THINK)\])"
)


def defused(text: str) -> str:
    """The text with a space in whatever a chat template would build a turn from."""
    return _CONTROL.sub(lambda match: f"{match[0]} ", text)


def conversation(content: Content) -> str:
    """A prompt as text: itself, or who says what, a line for each message."""
    if isinstance(content, str):
        return content
    said = ((str(m.get("role", "")), text_of([{**m, "role": "assistant"}])) for m in content)
    return "\n".join(f"{role}: {text}" for role, text in said)


def shown(value: Any) -> str:
    """A column's value in a prompt."""
    return defused(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))


class TextTemplate:
    """A text with gaps. Jinja runs in its sandbox, and what fills a gap is not itself a template."""

    def __init__(self, text: str, where: str):
        """Raises ScorerLoadError, which names `where`."""
        try:
            from jinja2 import StrictUndefined, TemplateError, meta, nodes  # noqa: PLC0415 - only where it runs
            from jinja2.sandbox import SandboxedEnvironment  # noqa: PLC0415
        except ImportError as error:
            raise ScorerLoadError(f"{where} needs jinja2 ({error}): pip install 'grpo-plugin[server]'") from error
        environment = SandboxedEnvironment(undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
        try:
            tree = environment.parse(text)
            self._template = environment.from_string(text)
        except TemplateError as error:
            raise ScorerLoadError(f"{where}: not a Jinja template: {error}") from error
        self.names = frozenset(meta.find_undeclared_variables(tree))
        self.columns = tuple(dict.fromkeys(_columns(tree, nodes)))
        """The columns of the dataset that it names."""

    def render(self, **values: Any) -> str:
        return self._template.render(values)


def check_names(names: Iterable[str], known: Iterable[str], needed: Iterable[str], where: str) -> None:
    """Raises ScorerLoadError for a template that names what is not there, or not what it must show."""
    known = tuple(known)
    if unknown := sorted(set(names) - set(known)):
        hint = did_you_mean(unknown[0], known) or ";"
        raise ScorerLoadError(
            f"{where}: there is no {unknown[0]!r}{hint} it has {', '.join(known)}, and the dataset's columns as "
            "columns.NAME"
        )
    if missing := sorted(set(needed) - set(names)):
        raise ScorerLoadError(f"{where}: it never shows {{{{ {missing[0]} }}}}, so there is nothing to judge")


def _columns(tree: Any, nodes: Any) -> Iterator[str]:
    """The names in `columns.NAME` and `columns["NAME"]`."""
    for node in tree.find_all((nodes.Getattr, nodes.Getitem)):
        if getattr(node.node, "name", None) == "columns":
            yield node.attr if isinstance(node, nodes.Getattr) else str(getattr(node.arg, "value", ""))
