"""`reward-server test`: cases are scored, and each says what it expected and got.

Owns the run of cases, the repetition that determinism is tested by, and the agreement with people's labels. Printing is
`report`'s.

Legend: G completions of a case.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from reward_server.errors import InvalidGroupError
from reward_server.evaluation.cases import REWARD, Case
from reward_server.evaluation.expectations import shown
from reward_server.evaluation.scoring import Scoring
from reward_server.evaluation.statistics import ordered_alike, spearman
from reward_server.scorers.loading import did_you_mean
from reward_server.types import GroupScores, Score, ServerInfo, Status


@dataclass(frozen=True)
class Outcome:
    """What became of one case; it passed if there are no problems."""

    case: Case
    problems: tuple[str, ...]


@dataclass(frozen=True)
class Agreement:
    """How a scorer, or the reward, agrees with labels. None where there are too few labels or one side is constant."""

    spearman: float | None
    ordered_alike: float | None
    pairs: int


@dataclass(frozen=True)
class Report:
    """The outcomes in the cases' order, and the agreement with labels by scorer where cases have some."""

    outcomes: tuple[Outcome, ...]
    agreement: dict[str, Agreement] = field(default_factory=dict)

    @property
    def failed(self) -> int:
        return sum(bool(outcome.problems) for outcome in self.outcomes)


async def run_cases(
    cases: Sequence[Case], scoring: Scoring, repeat: int = 1, on_case: Callable[[Outcome], None] = lambda _: None
) -> Report:
    """Scores every case `repeat` times and checks it. Raises InvalidGroupError for a case that cannot be scored."""
    check_names(cases, scoring.info)
    answers: dict[int, list[GroupScores]] = defaultdict(list)
    outcomes: dict[int, Outcome] = {}
    async for number, scores in scoring.run([case.group for case in cases for _ in range(repeat)]):
        index = number // repeat
        answers[index].append(scores)
        if len(answers[index]) == repeat:
            problems = [*_problems(cases[index], answers[index][0]), *_unsteady(answers[index], scoring.info)]
            outcomes[index] = Outcome(cases[index], tuple(problems))
            on_case(outcomes[index])
    first = [answers[index][0] for index in range(len(cases))]
    return Report(tuple(outcomes[index] for index in range(len(cases))), agreement_with_labels(cases, first))


def check_names(cases: Sequence[Case], info: ServerInfo) -> None:
    """Raises InvalidGroupError for a case that expects something of a scorer that there is not."""
    names = [REWARD, *(scorer.name for scorer in info.scorers)]
    for case in cases:
        for name, _ in case.expected:
            if name not in names:
                hint = did_you_mean(name, names) or ";"
                raise InvalidGroupError(
                    f"{case.where}.expect: there is no scorer {name!r}{hint} known: {', '.join(names)}"
                )


def _problems(case: Case, scores: GroupScores) -> Iterator[str]:
    by_name = scores_by_name(scores)
    for name, expectation in case.expected:
        for problem in expectation.problems(by_name[name]):
            yield f"{name}: {problem}"


def scores_by_name(scores: GroupScores) -> dict[str, Sequence[Score]]:
    """G scores by scorer, and the rewards as if they were one more scorer's; a scorer named `reward` hides them."""
    return {REWARD: _rewards(scores), **{scorer.name: scorer.scores for scorer in scores.scorers}}


def _rewards(scores: GroupScores) -> list[Score]:
    found = []
    for index, reward in enumerate(scores.rewards()):
        if reward is not None:
            found.append(Score(Status.OK, reward))
            continue
        failed = [each.scores[index] for each in scores.scorers if each.scores[index].status.is_failure]
        found.append(failed[0] if failed else Score(Status.NOT_APPLICABLE))
    return found


def _unsteady(answers: Sequence[GroupScores], info: ServerInfo) -> Iterator[str]:
    """A line for each completion that a scorer, which calls itself deterministic, scored in two ways."""
    deterministic = {scorer.name for scorer in info.scorers if scorer.deterministic}
    for repeats in zip(*(answer.scorers for answer in answers), strict=True):
        if repeats[0].name not in deterministic:
            continue
        for index, several in enumerate(zip(*(scorer.scores for scorer in repeats), strict=True)):
            ways = list(dict.fromkeys(shown(score) for score in several))
            if len(ways) > 1:
                yield (
                    f"{repeats[0].name}: completion {index}: the scorer calls itself deterministic, and in "
                    f"{len(several)} runs gave {', '.join(ways)}"
                )


def agreement_with_labels(cases: Sequence[Case], answers: Sequence[GroupScores]) -> dict[str, Agreement]:
    """Spearman's ρ over all labelled completions, and the share of pairs within a case that are ordered alike."""
    values: dict[str, list[float]] = defaultdict(list)
    labels: dict[str, list[float]] = defaultdict(list)
    alike: dict[str, float] = defaultdict(float)
    pairs: dict[str, int] = defaultdict(int)
    for case, scores in zip(cases, answers, strict=True):
        for name, scores_G in scores_by_name(scores).items() if case.labels else ():
            both = [
                (score.value, label)
                for score, label in zip(scores_G, case.labels or (), strict=True)
                if score.value is not None
            ]
            own, told = [value for value, _ in both], [label for _, label in both]
            values[name] += own
            labels[name] += told
            same, count = ordered_alike(own, told)
            alike[name] += same
            pairs[name] += count
    return {
        name: Agreement(
            spearman(values[name], labels[name]), alike[name] / pairs[name] if pairs[name] else None, pairs[name]
        )
        for name in values
    }
