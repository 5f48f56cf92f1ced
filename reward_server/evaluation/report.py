"""How the results of `reward-server test` are printed, and written for CI as JUnit XML. Owns text alone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

from reward_server.errors import ConfigError
from reward_server.evaluation.suite import Agreement, Outcome, Report
from reward_server.scorers.base import text_of

_WIDEST = 100


def lines_of(report: Report, seconds: float) -> Iterator[str]:
    """A block for each failure with its texts, the agreement with labels if there is some, and the counts."""
    for outcome in report.outcomes:
        if outcome.problems:
            yield from _failure(outcome)
    if report.agreement:
        yield from _agreement(report.agreement)
    passed = len(report.outcomes) - report.failed
    yield f"{passed} passed, {report.failed} failed in {seconds:.1f} s"


def _failure(outcome: Outcome) -> Iterator[str]:
    group = outcome.case.group
    yield f"FAILED {outcome.case.where}"
    yield f"  prompt: {_short(text_of(group.prompt))}"
    for index, content in enumerate(group.contents()):
        yield f"  completion {index}: {_short(text_of(content))}"
    for problem in outcome.problems:
        yield f"  {problem}"
    yield ""


def _agreement(agreement: dict[str, Agreement]) -> Iterator[str]:
    width = max(len(name) for name in agreement)
    yield "agreement with labels"
    yield f"  {'':{width}}  Spearman  pairs ordered alike"
    for name, found in agreement.items():
        rho = "-" if found.spearman is None else f"{found.spearman:.3f}"
        alike = "-" if found.ordered_alike is None else f"{found.ordered_alike:.0%} of {found.pairs}"
        yield f"  {name:{width}}  {rho:>8}  {alike}"
    yield ""


def _short(text: str) -> str:
    """One line that a terminal shows as text: what cannot be printed is escaped."""
    line = " ".join(text.split())
    line = "".join(char if char.isprintable() else ascii(char)[1:-1] for char in line)
    return repr(line if len(line) <= _WIDEST else f"{line[: _WIDEST - 1]}…")


def write_junit(report: Report, path: Path, seconds: float) -> None:
    """One `testcase` a case. Raises ConfigError if the file cannot be written."""
    suite = ElementTree.Element("testsuite", name="reward-server test", tests=str(len(report.outcomes)))
    suite.set("failures", str(report.failed))
    suite.set("time", f"{seconds:.3f}")
    for outcome in report.outcomes:
        file, _, name = outcome.case.where.partition("::")
        case = ElementTree.SubElement(suite, "testcase", classname=_xml(file), name=_xml(name))
        if outcome.problems:
            failure = ElementTree.SubElement(case, "failure", message=_xml(outcome.problems[0]))
            failure.text = _xml("\n".join(_failure(outcome)))
    try:
        ElementTree.ElementTree(suite).write(path, encoding="utf-8", xml_declaration=True)
    except OSError as error:
        raise ConfigError(f"--junit {path}: {error.strerror}") from error


def _xml(text: str) -> str:
    """Text without the characters that XML 1.0 cannot hold."""
    return "".join(char if char in "\t\n" or (char.isprintable() or char.isspace()) else "�" for char in text)
