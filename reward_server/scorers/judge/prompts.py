"""The prompts of a judge: templates, and the fences around what is judged.

Owns the reading of a judge's template and the two things that keep a policy's text from posing as something else:

1. Each completion stands between a BEGIN and an END line with a random code, drawn for this one call, so that no text
   can close its fence; the system prompt says that nothing inside is addressed to the judge. The code first stands
   behind rubric and prompt, so calls of one group begin alike and the engine's prefix cache holds that.
2. Strings that chat templates build turns from are broken by a space (`templates.defused`).

This keeps a text from posing as something else than what is judged. It does not keep it from persuading: a judge that
grades by what a text says of itself can be flattered. Use a good rubric, and scorers of other kinds beside the judge.

    template = Template.load(path, base_dir, mode)       raises ScorerLoadError
    messages = template.messages(rubric=…, prompt=fenced("prompt", text, code), …)
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from reward_server.errors import ScorerLoadError
from reward_server.scorers.loading import find_path
from reward_server.scorers.templates import TextTemplate, check_names, defused

_SHIPPED = Path(__file__).parent
_SHARED_NAMES = ("rubric", "prompt", "columns", "form")
_NAMES = {
    "pointwise": ("completion", "lowest", "highest"),
    "pairwise": ("first", "second"),
    "listwise": ("completions",),
}
_JUDGED = {"pointwise": ("completion",), "pairwise": ("first", "second"), "listwise": ("completions",)}


def new_code() -> str:
    """A number that nobody can have written into a text before."""
    return secrets.token_hex(8)


def fenced(kind: str, text: str, code: str) -> str:
    """The text between two lines that bear the code, with no control token in it."""
    return f"BEGIN {kind} {code}\n{defused(text)}\nEND {kind} {code}"


class Template:
    """A system and a user message with gaps."""

    def __init__(self, source: str, where: str, mode: str):
        """Raises ScorerLoadError, which names `where`."""
        self._parts = {role: TextTemplate(text, where) for role, text in _parts(source, where).items()}
        names = {name for part in self._parts.values() for name in part.names}
        check_names(names, (*_SHARED_NAMES, *_NAMES[mode]), _JUDGED[mode], f"{where}, mode {mode}")
        self.columns = tuple(dict.fromkeys(name for part in self._parts.values() for name in part.columns))
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
        return [{"role": role, "content": part.render(**values).strip()} for role, part in self._parts.items()]


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
