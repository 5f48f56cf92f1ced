"""What a judge must answer, as a JSON schema, and the strict reading of what it did answer.

Knows nothing of calls. A verdict is one JSON object with the schema's keys and no others, each key once. Two things
that belong to the judge's own form are taken off first, each at most once and in this order: one closed block of
thoughts before the verdict, as reasoning models write it behind an engine that does not parse it, and one code fence
around the whole verdict. Anything else around the object makes the answer malformed. Nothing searches for something
that looks like a verdict, since a judge may quote one from the text that it judges.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

# How a block of thoughts opens and closes: Qwen3 and DeepSeek R1, Magistral, gpt-oss (its channels).
_THOUGHTS = (
    ("<think>", "</think>"),
    ("[THINK]", "[/THINK]"),
    ("<|channel|>analysis<|message|>", "<|end|><|start|>assistant<|channel|>final<|message|>"),
)
_FENCE = re.compile(r"```\w*[ \t]*\n(.*)\n[ \t]*```", re.DOTALL)
_TEXT_PARTS = ("text", "output_text")
_THOUGHT_PARTS = ("thinking", "reasoning")


class VerdictError(ValueError):
    """An answer that is no verdict; the message says why and shows its beginning."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What is asked for besides the reasoning: the key, its JSON schema, and the allowed values.

    With `count` the key holds a list of so many values, each of them once; without it, a single value.
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
        # The reasoning comes first, so that the value is generated from it.
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
            answer = json.loads(unwrapped(text), object_pairs_hook=_each_once)
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
    return _text_of_content(message)


def _text_of_content(message: Mapping[str, Any]) -> str:
    """A message's text: its content, or the text parts of its content. Thoughts beside or among them are no verdict."""
    content = message.get("content")
    parts = [content] if isinstance(content, str) else content if isinstance(content, list) else []
    texts = [_text_of_part(part) for part in parts]
    if None in texts or not parts:
        raise VerdictError(f"the judge's message has no text, but {content!r:.80}{_hint(message)}")
    return "".join(text for text in texts if text is not None)


def _text_of_part(part: Any) -> str | None:
    """The text of a part of a message's content; None for what is no text, such as an image."""
    if isinstance(part, str):
        return part
    if not isinstance(part, Mapping) or part.get("type") not in (*_TEXT_PARTS, *_THOUGHT_PARTS):
        return None
    if part["type"] in _THOUGHT_PARTS:
        return ""
    return part["text"] if isinstance(part.get("text"), str) else None


def _hint(message: Mapping[str, Any]) -> str:
    if not any(message.get(key) for key in ("reasoning", "reasoning_content")):
        return ""
    return (
        "; the engine took all of it for reasoning: raise max_tokens, or switch the engine's reasoning parser off "
        "where the judge does not think"
    )


def unwrapped(text: str) -> str:
    """The answer without a block of thoughts before it and a code fence around it, if it has them.

    The opening tag may be missing, since some chat templates put it into the prompt (DeepSeek R1, Qwen3 Thinking). An
    answer that begins as a JSON object or a fence has no thoughts before it: a closing tag in it is quoted.
    """
    text = text.strip()
    if not text.startswith(("{", "```")):
        text = _without_thoughts(text)
    fence = _FENCE.fullmatch(text)
    return fence[1] if fence is not None else text


def _without_thoughts(text: str) -> str:
    for opening, closing in _THOUGHTS:
        thoughts, found, rest = text.partition(closing)
        if found and opening not in thoughts.removeprefix(opening):
            return rest.strip()
    return text


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
