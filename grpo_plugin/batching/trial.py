"""What a model can do is found by doing it: at start-up a few tokens go through it in each layout.

Owns the questions and their tolerances. Leaves the model as it was: no gradient, no random number, no mode is changed.
Knows nothing of plans, steps or losses.

A tolerance cannot tell a leak from rounding, so the trial asks two different questions:

- Do rows stay apart? The tokens of the OTHER rows are changed, in the same layout and so by the same kernels: a row's
  log-probabilities must not move. And the gradient of a row's log-probabilities with respect to the embeddings of other
  rows must be 0, exactly.
- Is the layout right? Log-probabilities and a gradient must be those of TRL's own form, up to rounding.

Packed attention reads no masks, so whatever a model puts into a mask alone (a window, chunks, a bias) would be lost:
the masks that TRL's form hands to attention are compared with what packed attention computes, on rows that are longer
than any window of the configuration.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch

from grpo_plugin.batching.attention import (
    STANDS_IN_FOR,
    AttentionCall,
    installed_kernel_problem,
    observed_calls,
    register,
)
from grpo_plugin.batching.plan import PackedLayout
from grpo_plugin.batching.ranks import Ranks
from grpo_plugin.batching.trial_rows import Lengths, TrialRows
from grpo_plugin.batching.varlen import visible

# Mean difference of log-probabilities up to which two layouts count as the same, in float32 and in half precision.
_TOLERANCE = 1e-4
_TOLERANCE_HALF = 6e-2

# The same for a gradient: the norm of the difference, relative to the gradient's. In half precision a router of experts
# may choose another one by rounding alone, which moves gradients by up to 0.2 (Mixtral of 8 layers and random weights).
_TOLERANCE_GRADIENT = 1e-3
_TOLERANCE_GRADIENT_HALF = 0.5

# How far log-probabilities may move when other rows change: a few units of float32's last place. Experts may move by
# the rounding of half precision, since other rows change how many tokens an expert computes at once, and so its kernel;
# the gradient, which does not round, then has to say that rows are apart.
_MOVES = 2e-5

# Rows are not made longer than this, whatever the window.
_LONGEST_WINDOW = 8192

# Three rows of one prompt, long enough to be worth sharing, and two of others; the last one's prompt is too short to
# hide what leaks from the row before it.
_ROWS = (Lengths(0, 24, 12), Lengths(0, 24, 5), Lengths(0, 24, 3), Lengths(1, 9, 7), Lengths(2, 2, 6))
# Each row of one set follows a row of the other, in every layout.
_SETS = ((0, 2, 4), (1, 3))

_OTHERS = "packed rows give other log-probabilities"

_Run = Callable[[TrialRows], torch.Tensor]


class Trial:
    """A few tokens in each layout. Every rank asks the same questions in the same order, and all get one answer."""

    def __init__(
        self,
        model: Any,
        config: Any,
        padded: Callable[..., torch.Tensor],
        packed: Callable[..., torch.Tensor],
        ranks: Ranks,
        *,
        half: bool,
        device: torch.device,
    ):
        self._model = model
        self._config = config
        self._run_padded: _Run = lambda rows: padded(rows.ids, rows.mask, rows.width)
        self._packed = packed
        self._ranks = ranks
        self._tolerance = _TOLERANCE_HALF if half else _TOLERANCE
        self._tolerance_gradient = _TOLERANCE_GRADIENT_HALF if half else _TOLERANCE_GRADIENT
        self._never = {token for token in (getattr(config, "pad_token_id", None),) if token is not None}
        self._device = device
        self._rows = self._make(_ROWS)
        self._long = self._long_rows()

    @contextlib.contextmanager
    def quiet(self) -> Iterator[Trial]:
        """Inside, the model has neither gradient nor dropout; afterwards it is as it was."""
        training = {module: module.training for module in self._model.modules()}
        devices = [self._device] if self._device.type == "cuda" else []
        self._model.eval()
        try:
            with torch.no_grad(), torch.random.fork_rng(devices):
                self._expected = self._run_padded(self._rows)
                yield self
        finally:
            for module, was in training.items():
                module.training = was

    # -------------------------------------------------------------------------------------------------------- questions

    def problem_of_padding(self) -> str | None:
        """Why rows may not be trimmed or regrouped; None if they may."""
        last = len(_ROWS) - 2
        alone = self._run_padded(self._rows.alone(last))
        valid = self._rows.valid[last : last + 1]
        problem = self._difference(alone, self._expected[last : last + 1], valid, "log-probabilities depend on padding")
        return problem or self._dependence(self._run_padded, self._expected, "padded rows")

    def problem_of_model(self) -> str | None:
        """Why its attention may not be packed, in any way; None if nothing speaks against it."""
        implementation = getattr(self._config, "_attn_implementation", None)
        if implementation not in STANDS_IN_FOR:
            return f"attention {implementation!r} takes no packed rows ({', '.join(STANDS_IN_FOR)} do)"
        register()
        with observed_calls() as calls:
            self._run_padded((self._long or self._rows).alone(0))
        if not calls:
            return self._agreed("its layers do not call transformers' attention interface")
        problems = (_lost_mask(call, self._config) for call in calls)
        return self._agreed(next((problem for problem in problems if problem), _untried_window(calls, self._config)))

    def problem_of_packing(self, layout: PackedLayout) -> str | None:
        """Why rows may not be packed in this layout; None if they may."""

        def run(rows: TrialRows) -> torch.Tensor:
            return self._packed(layout, rows.ids, rows.mask, rows.width)

        found, problem = self._attempt(run)
        return (
            problem
            or self._difference(found, self._expected, self._rows.valid, _OTHERS)
            or self._dependence(run, found, "packed rows")
            or self._wrong_gradient(run)
            or self._wrong_when_long(run)
        )

    # ---------------------------------------------------------------------------------------------------------- answers

    def _attempt(self, run: _Run) -> tuple[torch.Tensor, str | None]:
        """The packed rows' log-probabilities, and why the model does not take them or at too high a price."""
        found = self._expected
        try:
            with observed_calls() as calls:
                found = run(self._rows)
            problem = self._price(calls)
        except Exception as error:  # a model may refuse in whatever way; padded rows work with any
            problem = f"packed rows raise {type(error).__name__}: {error}"
        return found, self._agreed(problem)

    def _price(self, calls: list[AttentionCall]) -> str | None:
        """Why these calls of packed attention would be slow or wrong in training."""
        paths = {call.path for call in calls}
        if "segments" in paths and self._device.type != "cpu":
            return "attention would be computed row by row: there is no kernel of variable length for its precision"
        if "varlen" not in paths:
            return None
        if self._drops(calls):
            return "attention has dropout, which kernels of variable length have not"
        return installed_kernel_problem(self._device, any(call.sliding_window for call in calls))

    def _drops(self, calls: list[AttentionCall]) -> bool:
        """Whether attention has dropout in training."""
        for call in calls:
            call.module.training = True  # of the attention alone
        with observed_calls() as trained:
            self._run_padded(self._rows)
        for call in calls:
            call.module.training = False
        return any(call.dropout for call in trained)

    def _wrong_when_long(self, run: _Run) -> str | None:
        if self._long is None:
            return None
        return self._difference(run(self._long), self._run_padded(self._long), self._long.valid, _OTHERS)

    def _difference(self, found: torch.Tensor, expected: torch.Tensor, valid: torch.Tensor, what: str) -> str | None:
        difference = (found.float() - expected.float())[valid].abs().mean().item()
        if difference <= self._tolerance:
            return self._agreed(None)
        return self._agreed(f"{what} (by {difference:.1g} on average; {self._tolerance:g} is taken)")

    def _dependence(self, run: _Run, base: torch.Tensor, what: str) -> str | None:
        """Whether a row's numbers, which are `base`, depend on the tokens of other rows."""
        moves = []
        for rows in _SETS:
            valid = self._rows.valid & self._rows.kept(rows)[:, self._rows.prompts :]
            moves.append((run(self._rows.changed(rows)).float() - base.float())[valid].abs())
        moved = torch.cat(moves)
        gradient = self._gradient(run, _SETS[0])
        others = self._rows.ids[~self._rows.kept(_SETS[0])]
        leaked = None if gradient is None else gradient[others].abs().max().item()
        apart = moved.mean().item() <= self._tolerance if leaked == 0.0 else moved.max().item() <= _MOVES and not leaked
        if apart:
            return self._agreed(None)
        return self._agreed(f"{what} do not stay apart: other rows move log-probabilities by up to {moved.max():.1g}")

    def _wrong_gradient(self, run: _Run) -> str | None:
        everyone = range(len(_ROWS))
        expected, found = self._gradient(self._run_padded, everyone), self._gradient(run, everyone)
        if expected is None or found is None:
            return self._agreed(None)
        difference = ((found - expected).norm() / expected.norm()).item()
        if difference <= self._tolerance_gradient:
            return self._agreed(None)
        taken = f"{self._tolerance_gradient:g} is taken"
        return self._agreed(f"packed rows give another gradient (by {difference:.1g} of its norm; {taken})")

    def _gradient(self, run: _Run, rows: Any) -> torch.Tensor | None:
        """The gradient of these rows' log-probabilities with respect to the embedding of each token id.

        Shape (ids, hidden size). With respect to activations, not to parameters: no hook of DDP or DeepSpeed runs, and
        no parameter's `.grad` is touched. None where the model does not say where its embeddings are, and under FSDP,
        which gathers weights in a backward pass and expects it to end at them.
        """
        embedding = _embedding(self._model)
        if embedding is None or _is_fully_sharded(self._model):
            return None
        leaves: list[torch.Tensor] = []
        inputs: list[torch.Tensor] = []

        def cut(_: Any, args: Any, kwargs: Any, output: torch.Tensor) -> torch.Tensor:
            inputs.append(args[0] if args else kwargs["input"])
            leaves.append(output.detach().requires_grad_())
            return leaves[-1]

        handle = embedding.register_forward_hook(cut, with_kwargs=True)
        try:
            with torch.enable_grad():
                log_probs = run(self._rows)
                if len(leaves) != 1:
                    return None
                kept = self._rows.kept(rows)[:, self._rows.prompts :]
                (gradient,) = torch.autograd.grad(log_probs[kept].sum(), leaves)
        finally:
            handle.remove()
        total = gradient.new_zeros((int(self._rows.ids.max()) + 1, gradient.shape[-1]), dtype=torch.float32)
        return total.index_add_(0, inputs[0].flatten(), gradient.flatten(0, 1).float())

    def _agreed(self, problem: str | None) -> str | None:
        """A problem of one rank is one of all: they would otherwise run forwards that the others do not."""
        return None if self._ranks.all(problem is None) else problem or "another rank found other log-probabilities"

    # ------------------------------------------------------------------------------------------------------------- rows

    def _make(self, lengths: tuple[Lengths, ...]) -> TrialRows:
        return TrialRows.make(lengths, self._config.vocab_size, self._never, self._device)

    def _long_rows(self) -> TrialRows | None:
        """Rows longer than any window of the configuration; None where there is none, or none that rows can reach."""
        reach = min(_LONGEST_WINDOW, (getattr(self._config, "max_position_embeddings", None) or _LONGEST_WINDOW) - 32)
        windows = [window for window in _windows(self._config) if window <= reach]
        if not windows:
            return None
        prompt = max(windows) + 2
        return self._make((Lengths(0, prompt, 12), Lengths(0, prompt, 5), Lengths(1, 3, 7)))


def _embedding(model: Any) -> Any:
    try:
        return model.get_input_embeddings()
    except (AttributeError, NotImplementedError):
        return None


def _is_fully_sharded(model: Any) -> bool:
    """Whether it is under FSDP, version 1 or 2 (which puts FSDP before the names of the classes that it shards)."""
    return any(type(module).__name__.startswith(("FullyShardedDataParallel", "FSDP")) for module in model.modules())


def _windows(config: Any) -> list[int]:
    """Every number of tokens in the configuration that attention may be limited to."""
    values = config.to_dict().items()
    names = [name for name, value in values if isinstance(value, int) and not isinstance(value, bool) and value > 0]
    return [getattr(config, name) for name in names if "window" in name or "attention_chunk" in name]


def _untried_window(calls: list[AttentionCall], config: Any) -> str | None:
    """A window too long to try, of which no attention call is told."""
    longest = getattr(config, "max_position_embeddings", None) or _LONGEST_WINDOW
    windows = [window for window in _windows(config) if _LONGEST_WINDOW < window < longest]
    if not windows or getattr(config, "layer_types", None) or any(call.sliding_window for call in calls):
        return None
    return f"its configuration has a window of {windows[0]} tokens, of which no attention call is told"


def _lost_mask(call: AttentionCall, config: Any) -> str | None:
    """What this attention call is told by its mask alone, and packed attention would not know."""
    layer, kinds = getattr(call.module, "layer_idx", None), getattr(config, "layer_types", None) or ()
    kind = kinds[layer] if isinstance(layer, int) and layer < len(kinds) else ""
    if call.sliding_window is None and ("sliding" in kind or "chunked" in kind):
        return f"layer {layer} has {kind}, of which its attention is told by a mask alone; packed rows have no mask"
    if call.attention_mask is None or call.attention_mask.dim() < 4:  # flash attention is told by arguments alone
        return None
    mask = call.attention_mask
    keys = mask.shape[-1]
    sees = mask if mask.dtype == torch.bool else mask == 0
    told = visible(call.queries, keys, call.sliding_window, mask.device)
    biased = mask.dtype != torch.bool and bool((mask[sees.logical_not()] > torch.finfo(mask.dtype).min / 2).any())
    if biased or not bool((sees == told).all()):
        return "an attention mask says more than that rows are causal; packed rows have no mask"
    return None
