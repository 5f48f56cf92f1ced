"""`RemoteGRPOConfig`: TRL's GRPOConfig and the fields that are ours, each documented once, in its help.

Owns our fields and the checks that need no model, data or server. A plain `trl.GRPOConfig` works too: then every field
of ours is at its default, which `setting` tells.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from trl import GRPOConfig

from grpo_plugin.rewards.policies import policy_of

KL_ANCHORS = ("reference", "old")


@dataclass
class RemoteGRPOConfig(GRPOConfig):
    """The arguments of RemoteGRPOTrainer: all of `trl.GRPOConfig`, and these."""

    reward_endpoint: list[str] | None = field(
        default=None,
        metadata={
            "help": "Where the reward service is: host:port, a DNS name whose addresses are balanced over, unix:path, "
            "or several host:port. Without it and with reward_config, the trainer starts a service of its own."
        },
    )
    reward_config: str | None = field(
        default=None,
        metadata={
            "help": "Configuration file of the embedded reward service, which the trainer starts as a child process on "
            "a unix socket, once a node, and which ends with the trainer."
        },
    )
    reward_scorers: list[str] | None = field(
        default=None,
        metadata={"help": "Names of the service's scorers to use, in this order. All of them by default."},
    )
    reward_columns: list[str] | None = field(
        default=None,
        metadata={"help": "Dataset columns to send to the service beside the prompt. All of them by default."},
    )
    reward_token_ids: bool = field(
        default=False,
        metadata={"help": "Whether the sampled token ids are sent too, for reward functions that use completion_ids."},
    )
    reward_timeout_s: float = field(
        default=300.0,
        metadata={
            "help": "Seconds that a step's scores may take from the moment its groups are submitted, retries included."
        },
    )
    reward_hedge: bool = field(
        default=False,
        metadata={
            "help": "Whether a group that takes longer than 95 of 100 so far is sent to a second replica too, and the "
            "first answer wins. For services with several replicas and a long tail."
        },
    )
    reward_connect_timeout_s: float = field(
        default=60.0,
        metadata={"help": "Seconds that the service may take to answer, or the embedded one to load, at start-up."},
    )
    reward_token_file: str | None = field(
        default=None,
        metadata={
            "help": "File that holds the bearer token which the service asks for; read for each call, so that it may "
            "be replaced during a run. Unset, the environment's REWARD_TOKEN, if any."
        },
    )
    reward_tls_ca: str | None = field(
        default=None,
        metadata={
            "help": "PEM file of the certificates that the service's must be signed by; the system's bundle will do "
            "for public ones. Without any reward_tls_ field calls are not encrypted."
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
            "help": "What becomes of a completion with a failed score: 'drop_sample', it counts as never sampled; "
            "'drop_group', its group does; 'drop_scorer', the scorer that failed is left out for its group; 'raise', "
            "training stops on all ranks; or module:attribute of a policy of your own."
        },
    )
    min_group_size: int = field(
        default=2,
        metadata={"help": "A group with fewer survivors than this leaves the step: an advantage needs siblings."},
    )
    max_failure_rate: float = field(
        default=0.5,
        metadata={
            "help": "Share of completions with a failed score, over the last failure_window steps, beyond which a "
            "checkpoint is written and training stops on all ranks. 1.0 never stops."
        },
    )
    failure_window: int = field(
        default=10,
        metadata={
            "help": "Steps (generations) over which max_failure_rate is taken; it is not judged before they are."
        },
    )
    allow_reward_change: bool = field(
        default=False,
        metadata={
            "help": "Whether a run may go on when the service comes back with another configuration. By default it "
            "stops and says what changed; if allowed, the step of the change is recorded."
        },
    )
    kl_anchor: str = field(
        default="reference",
        metadata={
            "help": "What the KL term of weight beta pulls towards: 'reference', the reference model, as in TRL; or "
            "'old', the policy that sampled the completions, which needs no reference model in memory. With TRL's "
            "use_bias_correction_kl (on by default) and token-level ratios that is exactly KL(policy‖old policy); it "
            "is 0 where a generation is trained on in one optimizer step.",
            "choices": list(KL_ANCHORS),
        },
    )
    token_batches: bool = field(
        default=True,
        metadata={
            "help": "Whether forwards run in micro-batches of tokens: rows without advantage are left out where that "
            "is exact, the others are sorted by length, trimmed or packed, and spread over ranks so that all finish "
            "together. Gradients are TRL's up to rounding; groups of equal rewards have advantage 0 exactly. False is "
            "TRL's own micro-batches, number for number."
        },
    )
    max_tokens_per_micro_batch: int | None = field(
        default=None,
        metadata={
            "help": "Most tokens, padding included, that a forward of token_batches computes; a longer row goes alone. "
            "By default what per_device_train_batch_size rows of the generation's longest would have taken, which "
            "is stock TRL's memory."
        },
    )
    padding_free: bool = field(
        default=True,
        metadata={
            "help": "Whether token_batches packs rows without padding, for models whose attention is sdpa or flash "
            "attention. Others are padded to the longest of their micro-batch."
        },
    )
    shared_prefix: bool = field(
        default=True,
        metadata={
            "help": "Whether the rows of a prompt that are packed together compute that prompt once, where an estimate "
            "says that it is cheaper. Needs padding_free."
        },
    )

    score_ahead: int = field(
        default=0,
        metadata={
            "help": "1 generates the next batch while the service scores this one, so that a step costs the longer of "
            "scoring and of its own work, not their sum. A generation is then trained on after the updates of the one "
            "before it, with ratios against the policy that sampled it; the first of each epoch is not ahead. 0 is on "
            "policy.",
            "choices": [0, 1],
        },
    )

    def __post_init__(self) -> None:
        try:
            super().__post_init__()
        except ValueError as error:
            raise self._explained(error) from error
        for name in ("reward_endpoint", "reward_scorers", "reward_columns"):
            value = getattr(self, name)
            setattr(self, name, [value] if isinstance(value, str) else value)
        self._check_ours()

    def _explained(self, error: ValueError) -> ValueError:
        """TRL's error, with the way out where we know it."""
        batch, generations = self.generation_batch_size, self.num_generations
        if batch and generations and batch % generations:
            fitting = [number for number in range(2, batch + 1) if batch % number == 0]
            return ValueError(
                f"num_generations ({generations}) must divide the generation batch ({batch} = "
                f"per_device_train_batch_size × processes × steps_per_generation); set it to one of {fitting}, or "
                "change per_device_train_batch_size or gradient_accumulation_steps"
            )
        return error

    def _check_ours(self) -> None:
        if self.reward_endpoint and self.reward_config:
            raise ValueError(
                f"reward_endpoint ({', '.join(self.reward_endpoint)}) and reward_config ({self.reward_config}) exclude "
                "each other: the first names a running service, the second starts one"
            )
        self._check_tls()
        for name in ("reward_timeout_s", "reward_connect_timeout_s"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ValueError(f"{name} must be a positive number of seconds, not {getattr(self, name)}")
        if self.world_size > 1 and self.reward_timeout_s >= self.ddp_timeout:
            raise ValueError(
                f"reward_timeout_s ({self.reward_timeout_s:g}) would outlast the process group's own time-out, "
                f"ddp_timeout ({self.ddp_timeout}): lower the first or raise the second"
            )
        policy_of(self.on_reward_failure)
        for name, least in (("min_group_size", 2), ("failure_window", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, not {getattr(self, name)}")
        if not 0 <= self.max_failure_rate <= 1:
            raise ValueError(f"max_failure_rate is a share between 0 and 1, not {self.max_failure_rate}")
        self._check_step()
        if self.kl_anchor not in KL_ANCHORS:
            raise ValueError(f"kl_anchor must be one of {', '.join(KL_ANCHORS)}, not {self.kl_anchor!r}")
        if self.kl_anchor == "old" and self.beta == 0.0:
            raise ValueError("kl_anchor='old' does nothing while beta is 0.0: set beta, or leave kl_anchor out")
        if self.kl_anchor == "old" and self.sync_ref_model:
            raise ValueError("sync_ref_model needs a reference model, and kl_anchor='old' has none: drop one of them")

    def _check_step(self) -> None:
        if self.max_tokens_per_micro_batch is not None and self.max_tokens_per_micro_batch < 1:
            raise ValueError(
                f"max_tokens_per_micro_batch must be at least 1, not {self.max_tokens_per_micro_batch}; leave it out "
                "for what stock TRL's micro-batches take"
            )
        if self.score_ahead not in (0, 1):
            raise ValueError(f"score_ahead is a number of batches, 0 or 1, not {self.score_ahead}")
        if self.score_ahead and not (self.reward_endpoint or self.reward_config):
            raise ValueError(
                "score_ahead generates while a service scores: name one by reward_endpoint or reward_config, or set it "
                "to 0"
            )

    def _check_tls(self) -> None:
        given = [name for name in ("reward_tls_ca", "reward_tls_cert", "reward_tls_key") if getattr(self, name)]
        if given and self.reward_config:
            raise ValueError(f"{', '.join(given)}: the embedded service is reached by a unix socket, without TLS")
        if bool(self.reward_tls_cert) != bool(self.reward_tls_key):
            raise ValueError("reward_tls_cert and reward_tls_key go together: give both, or neither")


# A plain GRPOConfig asks for TRL's trainer, number for number; RemoteGRPOConfig's defaults are equal up to rounding.
_DEFAULTS = {f.name: f.default for f in dataclasses.fields(RemoteGRPOConfig)} | {"token_batches": False}


def setting(args: GRPOConfig | None, name: str) -> Any:
    """A field of ours from any GRPOConfig: off or its default where `args` is TRL's own or absent."""
    return getattr(args, name, _DEFAULTS[name])
