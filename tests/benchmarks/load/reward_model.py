"""What parts (a) and (b) share: a small reward model, groups of completions, the targets that score them, a report.

The model is a Qwen2 with random weights and a tokenizer of bytes: of 0.4 M parameters in float32 on the CPU, of 0.4 B
in bfloat16 on a GPU. A group is a prompt of 40 tokens and 8 completions of log-normal lengths (median 100, sigma 1, at
most 1,000 tokens): heavy-tailed, as those of sampled reasoning are. No two are alike. Without a GPU one CPU core plays
the device in every target: torch computes in one thread.

Legend: G completions of a group.
"""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import json
import math
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

sys.path.append(str(Path(__file__).parents[3]))

from reward_server.client import AsyncRewardClient
from reward_server.scorers.batched import Sample, batches
from reward_server.scorers.classifier import ClassifierScorer
from reward_server.scorers.registry import build, parse_options
from reward_server.types import Completion, Group, GroupScores
from tests.benchmarks.load.settings import Settings, table
from tests.support.builders import make_tokenizer

G = 8
PROMPT_TOKENS = 40
MEDIAN_TOKENS, SIGMA, MOST_TOKENS = 100, 1.0, 1000
MAX_BATCH_TOKENS = {"cpu": 4096, "cuda": 16384}
_TIMEOUT_S = 300.0
_SMALL = {
    **{"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2},
    **{"num_attention_heads": 4, "num_key_value_heads": 4},
}
_QWEN_0_5B = {
    **{"hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24},
    **{"num_attention_heads": 14, "num_key_value_heads": 2},
}


def save_model(folder: Path, device: str = "cpu") -> str:
    """The reward model and its tokenizer, in a folder that from_pretrained loads and that is named after the device."""
    import torch  # noqa: PLC0415 - the clients of other parts do without
    from transformers import Qwen2Config, Qwen2ForSequenceClassification  # noqa: PLC0415

    torch.manual_seed(0)
    torch.set_num_threads(1)
    tokenizer = make_tokenizer()
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        max_position_embeddings=2048,
        num_labels=1,
        pad_token_id=tokenizer.pad_token_id,
        **(_QWEN_0_5B if device == "cuda" else _SMALL),
    )
    model = Qwen2ForSequenceClassification(config)
    (model.bfloat16() if device == "cuda" else model).save_pretrained(folder / device)
    tokenizer.save_pretrained(folder / device)
    return str(folder / device)


def options(model: str) -> dict[str, Any]:
    """The scorer, for a server's configuration."""
    return {
        "type": "classifier",
        "name": "rm",
        "model": model,
        "device": Path(model).name,
        "max_batch_tokens": MAX_BATCH_TOKENS[Path(model).name],
        "timeout_s": 120,
    }


def make_groups() -> Iterator[Group]:
    """Groups without end, no two alike."""
    rng = random.Random(0)
    for number in itertools.count():
        lengths = [
            min(MOST_TOKENS, max(4, round(rng.lognormvariate(math.log(MEDIAN_TOKENS), SIGMA)))) for _ in range(G)
        ]
        completions = tuple(Completion("".join(rng.choices("abcdefgh ", k=length))) for length in lengths)
        yield Group(f"{number:0{PROMPT_TOKENS}d}", completions, run_id="bench", group_id=str(number))


# ------------------------------------------------------------------------------------------------------------- targets


@dataclass(frozen=True)
class Turn:
    """What a target got done in its turn, and what its model computed for it; padding included where it says so."""

    completions: int
    wall_s: float
    batches: int
    rows: int
    tokens: int
    padded_tokens: int
    busy_s: float
    """Seconds in which the model computed."""
    cpu_s: float
    """Processor seconds of the process that holds the model."""
    idle_s: float
    """Seconds in which the model did not compute while completions waited for it."""

    @property
    def rate(self) -> float:
        return self.completions / self.wall_s


class Target(Protocol):
    """Something that scores groups."""

    name: str

    async def turn(self, settings: Settings) -> Turn: ...


class InProcess:
    """The model in this process, without a service."""

    def __init__(self, name: str, model: str):
        self.name = name
        self.scorer = build(parse_options(options(model)))
        assert isinstance(self.scorer, ClassifierScorer)
        self.scorer.load()
        self._groups = make_groups()
        self._counts: list[tuple[int, int, int, float]] = []

    def samples(self, group: Group) -> list[Sample]:
        return [item for item in self.scorer.prepare(group) if isinstance(item, Sample)]

    def compute(self, samples: Sequence[Sample]) -> None:
        """One batch."""
        began = time.perf_counter()
        self.scorer.outputs([sample.data for sample in samples])
        lengths = [sample.tokens for sample in samples]
        took_s = time.perf_counter() - began
        computed = max(lengths) * len(lengths) if self.scorer.pads else sum(lengths)
        self._counts.append((len(lengths), sum(lengths), computed, took_s))

    def ended(self, completions: int, began: tuple[float, float]) -> Turn:
        rows, tokens, padded, busy_s = map(sum, zip(*self._counts, strict=True))
        wall_s, cpu_s = time.perf_counter() - began[0], time.process_time() - began[1]
        turn = Turn(completions, wall_s, len(self._counts), rows, tokens, padded, busy_s, cpu_s, wall_s - busy_s)
        self._counts.clear()
        return turn


class Alone(InProcess):
    """A loop that scores one request after another, its G completions as one padded batch: what a script does."""

    def __init__(self, name: str, model: str):
        from reward_server.scorers.model_trial import Choice  # noqa: PLC0415 - it loads torch

        super().__init__(name, model)
        self.scorer.models.choice = Choice("padded", "a script pads")

    async def turn(self, settings: Settings) -> Turn:
        began, completions = (time.perf_counter(), time.process_time()), 0
        while time.perf_counter() < began[0] + settings.seconds:
            self.compute(self.samples(next(self._groups)))
            completions += G
        return self.ended(completions, began)


class Offline(InProcess):
    """Every completion known beforehand, all of them sorted by length: nothing that serves can be faster."""

    async def turn(self, settings: Settings) -> Turn:
        groups = list(itertools.islice(self._groups, 2 * settings.callers))
        began = (time.perf_counter(), time.process_time())
        samples = [sample for group in groups for sample in self.samples(group)]
        limit, pads = self.scorer.max_batch_tokens, self.scorer.pads
        for batch in batches([sample.tokens for sample in samples], limit, pads):
            self.compute([samples[row] for row in batch])
        return self.ended(len(samples), began)


class Server:
    """A server in a process of its own that this file's callers load. It counts what it computes."""

    def __init__(self, name: str, process: subprocess.Popen[str], callers: Sequence[Callable[[Group], Any]]):
        self.name = name
        self._process = process
        self.callers = callers
        self._groups = make_groups()

    async def turn(self, settings: Settings) -> Turn:
        """Every caller sends a group when it has the last one's answer. Counted once each has had an answer."""
        answered: list[int] = []
        all_answered = asyncio.Event()
        until = math.inf

        async def loop(caller: int) -> None:
            while time.perf_counter() < until:
                await self.callers[caller](next(self._groups))
                answered.append(caller)
                if not all_answered.is_set() and len(set(answered)) == len(self.callers):
                    all_answered.set()

        loops = [asyncio.create_task(loop(caller)) for caller in range(len(self.callers))]
        await asyncio.wait_for(all_answered.wait(), _TIMEOUT_S)
        began, before, count = time.perf_counter(), self._counts(), len(answered)
        await asyncio.sleep(settings.seconds)
        wall_s, after, count = time.perf_counter() - began, self._counts(), len(answered) - count
        until = 0.0
        await asyncio.gather(*loops)
        return Turn(count * G, wall_s, **{name: after[name] - before[name] for name in before})

    def _counts(self) -> dict[str, float]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write("counts\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())


@contextmanager
def child(*arguments: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A module of this package run as a server: it says where it listens, then its counts for each line of input."""
    command = [sys.executable, "-m", *arguments]
    root = str(Path(__file__).parents[3])
    path = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
    env = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, text=True, env=env, **pipes) as process:
        try:
            assert process.stdout is not None
            yield process, process.stdout.readline().strip()
        finally:
            process.kill()


@asynccontextmanager
async def service(model: str, settings: Settings) -> AsyncIterator[Server]:
    """Our service, and a client of its own for each caller."""
    with child("tests.benchmarks.load.reward_model", model) as (process, endpoint):
        clients = [AsyncRewardClient(endpoint, timeout_s=_TIMEOUT_S) for _ in range(settings.callers)]
        try:
            yield Server("service", process, [_checked(client) for client in clients])
        finally:
            for client in clients:
                await client.close()


def _checked(client: AsyncRewardClient) -> Callable[[Group], Any]:
    async def call(group: Group) -> GroupScores:
        scores = await client.score(group)
        assert None not in scores.rewards(), scores
        return scores

    return call


# ------------------------------------------------------------------------------------------------------------- measure


Results = dict[str, list[Turn]]


async def compare(targets: Sequence[Target], settings: Settings) -> Results:
    """Turns by target, one a round. Each has one before that does not count."""
    results: Results = {target.name: [] for target in targets}
    for target in targets:
        await target.turn(dataclasses.replace(settings, seconds=1.0))
    for _ in range(settings.rounds):
        for target in targets:
            results[target.name].append(await target.turn(settings))
    return results


def report(results: Results) -> None:
    """A line a target: its rate, and what does not depend on the machine."""
    rows = []
    for name, turns in results.items():
        rates = sorted(turn.rate for turn in turns)
        rows.append(
            [
                name,
                f"{statistics.median(rates):.0f}",
                f"{rates[0]:.0f}-{rates[-1]:.0f}",
                f"{_sum(turns, 'tokens') / _sum(turns, 'rows'):.0f}",
                f"{_sum(turns, 'padded_tokens') / _sum(turns, 'rows'):.0f}",
                f"{_sum(turns, 'tokens') / _sum(turns, 'padded_tokens'):.2f}",
                f"{_sum(turns, 'rows') / _sum(turns, 'batches'):.1f}",
                f"{1000 * _sum(turns, 'batches') / _sum(turns, 'rows'):.0f}",
                f"{1000 * _sum(turns, 'cpu_s') / _sum(turns, 'rows'):.2f}",
                f"{_sum(turns, 'busy_s') / _sum(turns, 'wall_s'):.0%}",
                f"{_sum(turns, 'idle_s') / (_sum(turns, 'idle_s') + _sum(turns, 'busy_s')):.1%}",
            ]
        )
    header = "completions/s,range,tokens,computed,fill,rows/call,calls/1000,cpu ms,busy,idle"
    table(["", *header.split(",")], rows)
    print("Of a completion: its tokens, those computed for it (with padding; fill is their ratio), processor time")
    print("of the process that holds the model. Busy: the share of time in which the model computed. Idle: the share")
    print("of the time with completions in which it did not. Rates depend on what else the machine does.")


def ratio(results: Results, of: str, over: str) -> float:
    """Of their rates in the same round, the median over the rounds."""
    return statistics.median(a.rate / b.rate for a, b in zip(results[of], results[over], strict=True))


def _sum(turns: Sequence[Turn], name: str) -> float:
    return sum(getattr(turn, name) for turn in turns)


# --------------------------------------------------------------------------------------------- our service, as a child


async def serve(model: str) -> None:
    """Until its standard input ends."""
    from reward_server.config import config_from_mapping  # noqa: PLC0415 - only this process is a server
    from reward_server.serving.server import RewardServer  # noqa: PLC0415

    server = RewardServer(config_from_mapping({"scorers": [options(model)], "listen": "127.0.0.1:0"}))
    await server.startup()
    print(server.endpoints[0], flush=True)
    stats, names = server.batchers["rm"].stats, ("batches", "rows", "tokens", "padded_tokens", "busy_s", "idle_s")
    while await asyncio.to_thread(sys.stdin.readline):
        counts = {name: getattr(stats, name) for name in names}
        print(json.dumps({**counts, "cpu_s": time.process_time()}), flush=True)
    await server.shutdown()


if __name__ == "__main__":
    import uvloop

    uvloop.run(serve(sys.argv[1]))
