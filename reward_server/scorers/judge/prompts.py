"""The prompts of a judge: templates, and the fences around what is judged.

Owns the reading of a template, what stands in it, and what makes a text of a policy's harmless to the form of a prompt:

1. Each completion stands between a BEGIN and an END line with a random code, drawn for this one call, so that no text
   can close its fence; the system prompt says that nothing inside is addressed to the judge. The code first stands
   behind rubric and prompt, so calls of one group begin alike and the engine's prefix cache holds that.
2. Strings that chat templates build turns from (<|im_end|>, [/INST], </s>, …) are broken by a space: engines read them
   as control tokens even inside a message, and a text could end the user's turn and write the judge's answer.

This keeps a text from posing as something else than what is judged. It does not keep it from persuading: a judge that
grades by what a text says of itself can be flattered. Rubrics, and scorers of other kinds beside it, are for that.

    template = Template.load(path, base_dir, mode)       raises ScorerLoadError
    messages = template.messages(rubric=…, prompt=fenced("prompt", text, code), …)
"""

from __future__ import annotations

import hashlib
import json
import re
import secrets
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from reward_server.errors import ScorerLoadError
from reward_server.scorers.base import text_of
from reward_server.scorers.loading import did_you_mean, find_path
from reward_server.types import Content

_SHIPPED = Path(__file__).parent
_SHARED_NAMES = ("rubric", "prompt", "columns", "form")
_NAMES = {
    "pointwise": ("completion", "lowest", "highest"),
    "pairwise": ("first", "second"),
    "listwise": ("completions",),
}
_JUDGED = {"pointwise": ("completion",), "pairwise": ("first", "second"), "listwise": ("completions",)}

# ChatML, Llama 3, Phi, GLM, DeepSeek (whose bar is U+FF5C); Llama 2 and Mistral; Gemma; reasoning and tool marks.
_CONTROL = re.compile(
    r"<(?=[|｜])"
    r"|<(?=/?(?:s|bos|eos|pad|unk|mask|think|tool_call|tool_response|start_of_turn|end_of_turn|unused\d+)>)"
    r"|<(?=</?SYS>>)"
    r"|\[(?=/?(?:INST|SYSTEM_PROMPT|AVAILABLE_TOOLS|TOOL_CALLS|TOOL_RESULTS|THINK)\])"
)


def new_code() -> str:
    """A number that nobody can have written into a text before."""
    return secrets.token_hex(8)


def fenced(kind: str, text: str, code: str) -> str:
    """The text between two lines that bear the code, with no control token in it."""
    return f"BEGIN {kind} {code}\n{defused(text)}\nEND {kind} {code}"


def defused(text: str) -> str:
    """The text with a space in whatever a chat template would build a turn from."""
    return _CONTROL.sub(lambda match: f"{match[0]} ", text)


def conversation(content: Content) -> str:
    """A prompt as text: itself, or who says what."""
    if isinstance(content, str):
        return content
    said = ((str(m.get("role", "")), text_of([{**m, "role": "assistant"}])) for m in content)
    return "\n".join(f"{role}: {text}" for role, text in said)


class Template:
    """A system and a user message with gaps. Jinja runs in its sandbox, and what fills a gap is not a template."""

    def __init__(self, source: str, where: str, mode: str):
        """Raises ScorerLoadError, which names `where`."""
        try:
            from jinja2 import StrictUndefined, TemplateError, meta, nodes  # noqa: PLC0415 - only where it runs
            from jinja2.sandbox import SandboxedEnvironment  # noqa: PLC0415
        except ImportError as error:
            raise ScorerLoadError(f"type judge needs jinja2 ({error}): pip install 'grpo-plugin[server]'") from error
        environment = SandboxedEnvironment(undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
        parts = _parts(source, where)
        try:
            trees = [environment.parse(text) for text in parts.values()]
            self._parts = {role: environment.from_string(text) for role, text in parts.items()}
        except TemplateError as error:
            raise ScorerLoadError(f"{where}: not a Jinja template: {error}") from error
        names = {name for tree in trees for name in meta.find_undeclared_variables(tree)}
        _check_names(names, where, mode)
        self.columns = tuple(dict.fromkeys(name for tree in trees for name in _columns(tree, nodes)))
        self.digest = hashlib.sha256(source.encode()).hexdigest()[:12]

    @classmethod
    def load(cls, path: str | None, base_dir: Path, mode: str) -> Template:
        """The file at `path`, or the mode's own. Raises ScorerLoadError."""
        file = _SHIPPED / f"{mode}.yaml" if path is None else find_path(path, base_dir)
        if file is None or not file.is_file():
            raise ScorerLoadError(f"template {path!r}: there is no such file in {base_dir} or {Path.cwd()}")
        try:
            return cls(file.read_text(encoding="utf-8"), f"template {file}", mode)
        except (OSError, UnicodeDecodeError) as error:
            raise ScorerLoadError(f"template {file}: cannot be read: {error}") from error

    def messages(self, **values: Any) -> list[dict[str, str]]:
        """The chat to send."""
        return [{"role": role, "content": part.render(values).strip()} for role, part in self._parts.items()]


def shown(value: Any) -> str:
    """A column's value in a prompt."""
    return defused(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))


def _parts(source: str, where: str) -> dict[str, str]:
    try:
        parts = yaml.safe_load(source)
    except yaml.YAMLError as error:
        raise ScorerLoadError(f"{where}: not YAML: {error}") from error
    if not isinstance(parts, Mapping) or "user" not in parts or set(parts) - {"system", "user"}:
        raise ScorerLoadError(f"{where} must hold the keys system and user, each with a text")
    if not all(isinstance(text, str) for text in parts.values()):
        raise ScorerLoadError(f"{where}: system and user must be text; write them as `user: |` and an indented block")
    return {role: parts[role] for role in ("system", "user") if role in parts}


def _columns(tree: Any, nodes: Any) -> Iterator[str]:
    """The names in `columns.NAME` and `columns["NAME"]`."""
    for node in tree.find_all((nodes.Getattr, nodes.Getitem)):
        if getattr(node.node, "name", None) == "columns":
            yield node.attr if isinstance(node, nodes.Getattr) else str(getattr(node.arg, "value", ""))


def _check_names(names: Iterable[str], where: str, mode: str) -> None:
    known = (*_SHARED_NAMES, *_NAMES[mode])
    if unknown := sorted(set(names) - set(known)):
        hint = did_you_mean(unknown[0], known) or ";"
        raise ScorerLoadError(
            f"{where}: there is no {unknown[0]!r} in mode {mode}{hint} it has {', '.join(known)}, and the dataset's "
            "columns as columns.NAME"
        )
    if missing := sorted(set(_JUDGED[mode]) - set(names)):
        raise ScorerLoadError(f"{where}: it never shows {{{{ {missing[0]} }}}}, so there is nothing to judge")
