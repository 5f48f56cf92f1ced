"""`RemoteGRPOConfig`: TRL's GRPOConfig plus our fields; the help of each field is its documentation.

Owns our fields; `config_checks` says whether they fit together. A plain `trl.GRPOConfig` works too: `setting` then
answers with the default of each of our fields.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from trl import GRPOConfig

from grpo_plugin.config_checks import KL_ANCHORS, check, explained
from grpo_plugin.sampling_config import SamplingConfig


@dataclass
class RemoteGRPOConfig(SamplingConfig):
    """The arguments of RemoteGRPOTrainer: all fields of `trl.GRPOConfig`, and these."""

    reward_endpoint: list[str] | None = field(
        default=None,
        metadata={
            "help": "Address of a running reward service: host:port, a DNS name with its port (calls are balanced "
            "over all of its addresses), unix:path, or a list of host:port. Excludes reward_config. With neither, "
            "rewards come from local reward functions alone."
        },
    )
    reward_config: str | None = field(
        default=None,
        metadata={
            "help": "Configuration file of an embedded reward service. The trainer starts it as a child process on a "
            "unix socket, one on each node, restarts it if it dies, and ends it when training ends. Excludes "
            "reward_endpoint."
        },
    )
    reward_scorers: list[str] | None = field(
        default=None,
        metadata={"help": "Names of the service's scorers to use, in this order. Unset uses all of them."},
    )
    reward_columns: list[str] | None = field(
        default=None,
        metadata={
            "help": "Dataset columns to send to the service beside the prompt. Unset sends all of them. Columns that "
            "hold bytes or images cannot be sent and must be left out here."
        },
    )
    reward_token_ids: bool = field(
        default=False,
        metadata={"help": "Send the sampled token ids too, for reward functions that use `completion_ids`."},
    )
    reward_timeout_s: float = field(
        default=300.0,
        metadata={
            "help": "Seconds that the scores of a step may take, counted from the moment its groups are sent, retries "
            "included. A score that arrives after the deadline gets status TIMEOUT. Must be below ddp_timeout."
        },
    )
    reward_hedge: bool = field(
        default=False,
        metadata={
            "help": "Send a group to a second replica as well when it takes longer than 95 of 100 groups so far; "
            "the first answer is used. For services with several replicas, some of which are slow at times."
        },
    )
    reward_connect_timeout_s: float = field(
        default=60.0,
        metadata={
            "help": "Seconds that the service may take to answer when training starts; for the embedded service, to "
            "load."
        },
    )
    reward_token_file: str | None = field(
        default=None,
        metadata={
            "help": "File that holds the bearer token for the service. It is read for each call, so that the token "
            "may be replaced during a run. Unset uses the environment variable REWARD_TOKEN, if it is set."
        },
    )
    reward_tls_ca: str | None = field(
        default=None,
        metadata={
            "help": "PEM file of the certificate authorities that are trusted to sign the service's certificate. For "
            "a public certificate name the system's bundle. Calls are not encrypted unless a reward_tls_ field is "
            "set."
        },
    )
    reward_tls_cert: str | None = field(
        default=None,
        metadata={"help": "PEM file of the trainer's own certificate, for a service that asks for one (mutual TLS)."},
    )
    reward_tls_key: str | None = field(
        default=None,
        metadata={"help": "PEM file of the unencrypted private key of reward_tls_cert."},
    )
    on_reward_failure: str = field(
        default="drop_sample",
        metadata={
            "help": "What happens to a completion with a failed score. 'drop_sample': the step is computed as if the "
            "completion had never been sampled. 'drop_group': the same for its whole group. 'drop_scorer': the scorer "
            "that failed is left out for the whole group. 'raise': training stops on all ranks. module:attribute: a "
            "policy of your own, an object with the method drops(failed_BGS)."
        },
    )
    min_group_size: int = field(
        default=2,
        metadata={
            "help": "Smallest number of completions that a group may have left after drops; a smaller group is "
            "dropped whole, since an advantage compares completions of one group. At least 2."
        },
    )
    max_failure_rate: float = field(
        default=0.5,
        metadata={
            "help": "Share of completions with a failed score, over the last failure_window steps, above which "
            "training writes a checkpoint and stops on all ranks. 1.0 never stops. Each train() starts with an empty "
            "window."
        },
    )
    failure_window: int = field(
        default=10,
        metadata={
            "help": "Number of generations over which max_failure_rate is taken; training is not stopped before that "
            "many have been scored."
        },
    )
    allow_reward_change: bool = field(
        default=False,
        metadata={
            "help": "Go on when the service's configuration changes during a run, and record the step of the change "
            "in reward_service.json. Otherwise training stops and the error says what changed."
        },
    )
    kl_anchor: str = field(
        default="reference",
        metadata={
            "help": "What the KL term of weight beta pulls towards: 'reference', the reference model, as in TRL; or "
            "'old', the policy that sampled the completions, which needs no reference model in memory. With TRL's "
            "use_bias_correction_kl (on by default) and token-level ratios its mean is exactly KL(policy‖old policy). "
            "It is 0 where a generation is trained on in one optimizer step.",
            "choices": list(KL_ANCHORS),
        },
    )
    record_rewards: str | None = field(
        default=None,
        metadata={
            "help": "Record what is trained on in output_dir/records (Parquet): 'all', or a share of the groups such "
            "as 0.1. A record holds the prompt, its completions, columns, scores, rewards, advantages, lengths, and "
            "which completions were truncated or dropped. Rank 0 writes whole groups; a full disk costs records, never "
            "a step."
        },
    )
    report_by: str | None = field(
        default=None,
        metadata={
            "help": "A dataset column, such as 'source', whose values are logged apart: for each of the first 20 "
            "values <column>/<value>/reward, rewards/<scorer>, groups, without_signal (the share of groups whose "
            "rewards are all equal) and failed (the share of completions with a failed score). Later values are "
            "logged as 'other'."
        },
    )
    token_batches: bool = field(
        default=True,
        metadata={
            "help": "Make micro-batches by their number of tokens: completions whose advantage is 0 are left out "
            "where that is exact, the others are sorted by length, trimmed or packed, and spread over the ranks so "
            "that all of them finish at about the same time. Gradients equal TRL's up to rounding; a group of equal "
            "rewards has advantages of exactly 0. False uses TRL's own micro-batches, number for number."
        },
    )
    max_tokens_per_micro_batch: int | str | None = field(
        default=None,
        metadata={
            "help": "Largest number of tokens, padding included, in one forward of token_batches; a longer row is "
            "computed alone. Unset takes per_device_train_batch_size times the longest row of the generation, which "
            "is the memory that stock TRL needs. 'auto' starts there and then takes what fits into four fifths of "
            "the free memory of a CUDA device, as measured in the optimizer steps before; elsewhere it is as unset."
        },
    )
    padding_free: bool = field(
        default=True,
        metadata={
            "help": "Let token_batches pack rows without padding, for models whose attention is sdpa or flash "
            "attention. Rows of other models are padded to the longest row of their micro-batch."
        },
    )
    shared_prefix: bool = field(
        default=True,
        metadata={
            "help": "Compute a prompt once for all of its rows that are packed together, where an estimate says that "
            "this is cheaper. Needs padding_free."
        },
    )

    score_ahead: int = field(
        default=0,
        metadata={
            "help": "1: generate the next batch while the service scores this one. A step then takes as long as the "
            "slower of scoring and training, not their sum. A generation is trained on after the updates of the one "
            "before it, with ratios against the policy that sampled it; the first of each epoch is not ahead. 0: on "
            "policy.",
            "choices": [0, 1],
        },
    )

    def __post_init__(self) -> None:
        try:
            super().__post_init__()
        except ValueError as error:
            raise explained(self, error) from error
        for name in ("reward_endpoint", "reward_scorers", "reward_columns"):
            value = getattr(self, name)
            setattr(self, name, [value] if isinstance(value, str) else value)
        self.max_tokens_per_micro_batch = _number_or_auto(self.max_tokens_per_micro_batch)
        check(self)


def _number_or_auto(value: Any) -> Any:
    """A number that came as text, as from a command line; everything else as it is, for `check` to judge."""
    return int(value) if isinstance(value, str) and value.strip().lstrip("-").isdigit() else value


# A plain GRPOConfig asks for TRL's trainer, number for number; RemoteGRPOConfig's defaults are equal up to rounding.
_DEFAULTS = {f.name: f.default for f in dataclasses.fields(RemoteGRPOConfig)} | {"token_batches": False}


def setting(args: GRPOConfig | None, name: str) -> Any:
    """A field of ours from any GRPOConfig: off or its default where `args` is TRL's own or absent."""
    return getattr(args, name, _DEFAULTS[name])
