"""What a judge is to answer, as JSON schema, and the reading of what it did answer: exactly that, or nothing.

Knows nothing of calls. A verdict is one JSON object with the schema's keys and no others, each once, and nothing around
it: no search for something that looks like a verdict, since a judge may quote one from the text that it judges.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


class VerdictError(ValueError):
    """An answer that is no verdict; the message says why and shows its beginning."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What is asked for beside the reasoning: the key, its JSON schema, and the values that are allowed.

    `count` is how many values, each once, the key's list holds; None if it holds one value and no list.
    """

    key: str
    allowed: tuple[Any, ...]
    has_reasoning: bool
    count: int | None = None

    @property
    def schema(self) -> dict[str, Any]:
        kind = "integer" if isinstance(self.allowed[0], int) else "string"
        value: dict[str, Any] = {"type": kind, "enum": list(self.allowed)}
        if self.count is not None:
            value = {"type": "array", "items": value, "minItems": self.count, "maxItems": self.count}
        # In this order: what is generated first is what the rest is based on.
        properties = {**({"reasoning": {"type": "string"}} if self.has_reasoning else {}), self.key: value}
        return {
            "type": "object",
            "properties": properties,
            "required": list(properties),
            "additionalProperties": False,
        }

    @property
    def form(self) -> str:
        """The same in words, for the prompt."""
        shown = [json.dumps(value) for value in self.allowed]
        value = " or ".join(shown) if len(shown) < 5 else f"one of {shown[0]} to {shown[-1]}"
        if self.count is not None:
            value = f"[all of {', '.join(shown)}, the best first]"
        reasoning = '"reasoning": "why, in a few sentences", ' if self.has_reasoning else ""
        return f'{{{reasoning}"{self.key}": {value}}}'

    def read(self, text: str) -> tuple[Any, str]:
        """The value and the reasoning of an answer. Raises VerdictError."""
        try:
            answer = json.loads(text, object_pairs_hook=_each_once)
        except (ValueError, RecursionError) as error:
            raise VerdictError(f"the verdict is not one JSON object ({error}): {text!r:.80}") from error
        keys = {"reasoning", self.key} if self.has_reasoning else {self.key}
        if not isinstance(answer, dict) or set(answer) != keys:
            raise VerdictError(f"the verdict is not an object of {' and '.join(sorted(keys))}: {text!r:.80}")
        if self.has_reasoning and not isinstance(answer["reasoning"], str):
            raise VerdictError(f"the verdict's reasoning is no text: {text!r:.80}")
        self._check(answer[self.key])
        return answer[self.key], answer.get("reasoning", "")

    def _check(self, value: Any) -> None:
        values = [value] if self.count is None else value
        # Types too, since True == 1 == 1.0.
        known = {(type(one), one) for one in self.allowed}
        if not isinstance(values, list) or not all(
            isinstance(one, (int, str)) and (type(one), one) in known for one in values
        ):
            raise VerdictError(f"the verdict's {self.key} is {value!r:.80}, and not {self.form}")
        if self.count is not None and (len(values) != self.count or len(set(values)) != self.count):
            raise VerdictError(f"the verdict's {self.key} is {value!r:.80}, which is not each of {self.count} once")


def text_of_answer(answer: Any) -> str:
    """The text of a chat completion, which must have ended by itself. Raises VerdictError."""
    choices = answer.get("choices") if isinstance(answer, Mapping) else None
    choice = choices[0] if isinstance(choices, Sequence) and choices else None
    message = choice.get("message") if isinstance(choice, Mapping) else None
    if not isinstance(choice, Mapping) or not isinstance(message, Mapping):
        raise VerdictError(f"the answer is no chat completion: {answer!r:.80}")
    if message.get("refusal"):
        raise VerdictError(f"the judge refuses: {message['refusal']!r:.80}")
    if choice.get("finish_reason") not in ("stop", None):
        hint = "; raise max_tokens" if choice.get("finish_reason") == "length" else ""
        raise VerdictError(f"the verdict ended by {choice.get('finish_reason')!r:.40}{hint}")
    if not isinstance(content := message.get("content"), str):
        raise VerdictError(f"the judge's message has no text, but {content!r:.80}")
    return content


def tokens_of_answer(answer: Any) -> int | None:
    """What the engine says that the call used, None if it does not say."""
    usage = answer.get("usage") if isinstance(answer, Mapping) else None
    total = usage.get("total_tokens") if isinstance(usage, Mapping) else None
    return total if type(total) is int and total >= 0 else None


def _each_once(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """Parsers disagree on which of two equal keys counts, and one of them may be quoted from the text."""
    if len({key for key, _ in pairs}) != len(pairs):
        raise ValueError("a key stands in it twice")
    return dict(pairs)
