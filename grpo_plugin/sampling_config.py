"""The fields of RemoteGRPOConfig that say which prompts are generated for, and which groups are trained on."""

from __future__ import annotations

from dataclasses import dataclass, field

from trl import GRPOConfig


@dataclass
class SamplingConfig(GRPOConfig):
    """TRL's arguments, and those of `grpo_plugin.sampling`; `config_checks` says whether they fit together."""

    difficulty_band: list[float] | None = field(
        default=None,
        metadata={
            "help": "Lowest and highest pass share, such as 0.1 0.9: prompts outside it are visited less from the next "
            "epoch on. A prompt's pass share is the mean score of its completions by difficulty_scorer over its last "
            "difficulty_visits visits. An epoch stays as long as the data set. Unset visits every prompt once an epoch."
        },
    )
    difficulty_scorer: str | None = field(
        default=None,
        metadata={
            "help": "The scorer, or reward function, whose scores of 0 to 1 are passes; needed if there are several."
        },
    )
    difficulty_visits: int = field(
        default=2, metadata={"help": "How many of a prompt's last visits make its pass share."}
    )
    difficulty_weight: float = field(
        default=0.25,
        metadata={
            "help": "How often a prompt outside difficulty_band is visited, relative to one inside: between 0 and 1."
        },
    )
    dynamic_sampling: bool = field(
        default=False,
        metadata={
            "help": "Fill each generation batch with groups that are worth training on, as DAPO does: groups that "
            "group_filter does not keep are replaced by groups of other prompts, which are generated while earlier "
            "ones are scored. Needs a data set that is not streamed. Evaluation is as without it."
        },
    )
    max_sampling_rounds: int = field(
        default=3,
        metadata={
            "help": "How many times dynamic_sampling asks for more groups for one batch; each time for as many as the "
            "share that was kept lately makes likely to suffice. If it does not, the step trains on what there is."
        },
    )
    oversample: float = field(
        default=1.0,
        metadata={
            "help": "How many groups worth training on dynamic_sampling aims at for each place in a batch. Above 1.0 a "
            "batch is full before the last scores are there, which are not waited for: with 1.5 the next batch finds "
            "half a batch of groups scored already. They are one optimizer step old then, see max_group_age."
        },
    )
    max_group_age: int = field(
        default=1,
        metadata={
            "help": "How many optimizer steps old a group may be that dynamic_sampling kept for a later batch. Its "
            "ratios are against the policy that sampled it. 0 keeps none."
        },
    )
    group_filter: str = field(
        default="has_signal",
        metadata={
            "help": "Which groups dynamic_sampling keeps. 'has_signal': those whose rewards are not all equal. "
            "'pass_rate': those whose mean score by pass_rate_scorer is within pass_rate. module:attribute: a filter "
            "of your own, an object with the method keeps(groups)."
        },
    )
    pass_rate: list[float] | None = field(
        default=None,
        metadata={"help": "For group_filter 'pass_rate': the lowest and highest mean score, such as 0.1 0.9."},
    )
    pass_rate_scorer: str | None = field(
        default=None,
        metadata={
            "help": "For group_filter 'pass_rate': the scorer, or reward function, whose scores count; needed if "
            "there are several."
        },
    )
