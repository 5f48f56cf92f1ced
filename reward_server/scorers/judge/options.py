"""The options of `judge`."""

from __future__ import annotations

from typing import Literal

from pydantic import AliasChoices, Field, JsonValue, field_validator, model_validator

from reward_server.scorers.engine import EngineOptions

_OWN_KEYS = ("model", "messages", "response_format", "stream", "n")


class JudgeOptions(EngineOptions):
    """Options of `judge`."""

    model: str = Field(min_length=1, description="Name of the model at the endpoint.")
    mode: Literal["pointwise", "pairwise", "listwise"] = Field(
        "pointwise",
        description="pointwise: each completion gets a grade, taken to 0 to 1. pairwise: each is compared with its "
        "siblings in both orders, its score is the share that it wins. listwise: one call ranks the whole group, "
        "shuffled, from 1 for the best to 0 for the last.",
    )
    rubric: str | None = Field(None, min_length=1, description="The criteria of the verdict, in words.")
    rubric_column: str | None = Field(
        None, description="Column of the dataset that holds the rubric of each prompt instead."
    )
    scale: tuple[int, int] = Field((1, 10), description="pointwise only: the lowest and the highest grade.")
    template: str | None = Field(
        None,
        description="YAML file of the prompt, a Jinja template, looked up in the configuration's folder; the mode's "
        "own template if unset (reward_server/scorers/judge/*.yaml, which you can start from).",
    )
    samples: int = Field(
        1, ge=1, le=64, description="Verdicts that are averaged. If one of them is malformed, the score is FAILED."
    )
    rounds: int | None = Field(
        None,
        ge=1,
        description="pairwise only: with how many of its siblings each completion is compared, the next ones round the "
        "group; all if unset. A comparison is two calls.",
    )
    reasoning: bool = Field(True, description="Ask for a reason before the verdict.")
    structured_output: Literal["auto", "json_schema", "json_object", "none"] = Field(
        "auto",
        validation_alias=AliasChoices("structured_output", "structured"),
        description="The response_format of each call: json_schema, json_object, or none for endpoints that know "
        "neither. auto begins with json_schema, and takes the next one for good if the endpoint refuses a call (400) "
        "that it answers in that form; the log and `reward-server check` say which it is. A verdict is read equally "
        "strictly in all of them. `structured` is the old name.",
    )
    temperature: float | None = Field(
        None, ge=0, description="Sampling temperature of the judge; the endpoint's default if unset."
    )
    max_tokens: int = Field(
        1024,
        ge=1,
        description="Most tokens of a verdict. Sent as max_tokens, unless extra_body has max_completion_tokens.",
    )
    extra_body: dict[str, JsonValue] = Field(
        default_factory=dict, description="Further keys of each request, such as chat_template_kwargs or seed."
    )
    warm_prefix: bool = Field(
        True,
        description="Make a group's first call before its others, so that the engine has cached their common prefix. "
        "This costs the latency of one call; the others wait for at most a quarter of timeout_s.",
    )
    concurrent_calls: int = Field(32, ge=1, description="Most calls in flight at once, over all groups.")
    concurrent_groups: int = Field(
        8,
        ge=1,
        description="Most groups that are judged at once; the timeout_s of those that wait does not run. A low number "
        "keeps calls with a common prefix together.",
    )
    budget_requests: int | None = Field(
        None, ge=0, description="Most calls in the life of this server process; beyond them every score is FAILED."
    )
    budget_tokens: int | None = Field(
        None,
        ge=0,
        description="Most tokens in the life of this server process, by the usage that the endpoint reports; estimated "
        "if it reports none. Beyond it every score is FAILED.",
    )

    @field_validator("scale")
    @classmethod
    def _is_a_range(cls, scale: tuple[int, int]) -> tuple[int, int]:
        lowest, highest = scale
        if not 1 <= highest - lowest <= 100:
            raise ValueError(f"{list(scale)}: the highest grade must be 1 to 100 above the lowest, as in [1, 10]")
        return scale

    @field_validator("extra_body")
    @classmethod
    def _leaves_ours(cls, extra: dict[str, JsonValue]) -> dict[str, JsonValue]:
        if taken := [key for key in _OWN_KEYS if key in extra]:
            raise ValueError(
                f"{', '.join(taken)} is set by the scorer itself; see model, template, structured_output, samples"
            )
        return extra

    @model_validator(mode="after")
    def _has_one_rubric(self) -> JudgeOptions:
        if (self.rubric is None) == (self.rubric_column is None):
            raise ValueError("a judge needs one rubric: set either rubric or rubric_column")
        return self
