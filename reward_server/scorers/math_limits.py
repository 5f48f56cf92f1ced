"""What comparing an answer may cost: limits on its form, checked before any algebra, and on processor time.

Owns which expressions are too large to be worked out, and the clock that stops the others. Knows nothing of where
answers come from or how they are compared.

    is_affordable(value)               False for 9^{9^9}, (x+1)^{1000}, sums and integrals
    with cpu_limit(seconds): …         raises OutOfTimeError
"""

from __future__ import annotations

import contextlib
import math
import signal
import threading
from collections.abc import Iterator
from typing import Any

MAX_BITS = 10_000  # a number of three thousand digits; sympy takes seconds from a hundred thousand on
MAX_TERMS = 200  # of what multiplying out an expression may come to
MAX_HARD_PARTS = 6  # roots and functions; simplifying takes minutes from about seven nested ones on

_REPEAT_S = 0.5


class OutOfTimeError(BaseException):
    """The limit is reached. Not a subclass of Exception, since sympy and math-verify catch those and go on."""


@contextlib.contextmanager
def cpu_limit(seconds: float) -> Iterator[None]:
    """Raises OutOfTimeError in the block once it has used `seconds` of this process's processor time.

    That clock stands still while other processes run, so a busy machine causes no time-outs. A long call of C code is
    not interrupted, and outside the main thread there is no limit: then the service's own time limit ends the process.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    is_running = True

    def ring(*_: object) -> None:
        if is_running:
            raise OutOfTimeError

    previous = signal.signal(signal.SIGVTALRM, ring)
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds, _REPEAT_S)  # again, for a first that was swallowed
    try:
        yield
    finally:
        is_running = False  # first of all: it may ring between these lines
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, previous)


def is_affordable(value: Any) -> bool:
    """Whether this sympy object can be compared in a short time."""
    import sympy  # type: ignore[import-untyped]  # noqa: PLC0415 - only where it runs

    laborious = (sympy.Integral, sympy.Sum, sympy.Product, sympy.Limit, sympy.Derivative)
    if isinstance(value, sympy.MatrixBase):
        return all(is_affordable(entry) for entry in value)
    return (
        not value.has(*laborious)
        and _bits(value) <= MAX_BITS
        and _terms(value) <= MAX_TERMS
        and _hard_parts(value) <= MAX_HARD_PARTS
    )


def _bits(value: Any) -> float:
    """An upper bound of log2 of every number in working out a sympy expression, without working it out."""
    import sympy  # noqa: PLC0415 - only where it runs
    from sympy.functions.combinatorial.factorials import (  # type: ignore[import-untyped]  # noqa: PLC0415
        CombinatorialFunction,
    )

    if isinstance(value, sympy.Rational):
        return max(value.p.bit_length(), value.q.bit_length())
    if not value.args:
        return 2  # e and pi are below 4
    bits = [_bits(part) for part in value.args]
    if isinstance(value, sympy.Pow):
        return bits[0] * 2 ** min(bits[1], 100) if bits[1] > 1 else bits[0] + 1
    if isinstance(value, (sympy.exp, sympy.sinh, sympy.cosh)):
        return 2 * 2 ** min(bits[0], 100)
    if isinstance(value, (CombinatorialFunction, sympy.gamma)):
        return math.inf if max(bits) > 20 else 2 ** max(bits) * max(bits)
    return sum(bits) + 1


def _terms(value: Any) -> float:
    """An upper bound of the number of terms of the expanded expression. A rational part counts as one term."""
    import sympy  # noqa: PLC0415 - only where it runs

    if not value.args or (not _hard_parts(value) and all(leaf.is_Rational for leaf in value.atoms())):
        return 1
    terms = [_terms(part) for part in value.args]
    if isinstance(value, sympy.Add):
        return sum(terms)
    if isinstance(value, sympy.Mul):
        return math.prod(terms)
    if isinstance(value, sympy.Pow) and value.exp.is_Integer:
        power = abs(int(value.exp))
        if power > MAX_TERMS or terms[0] > MAX_TERMS:
            return math.inf
        # Powers of a single term stay one, but dividing by x - 1 makes as many of them as the power says.
        return max(power, math.comb(int(terms[0]) + power - 1, power))
    return max(terms)


def _hard_parts(value: Any) -> int:
    """The number of functions and roots in an expression."""
    import sympy  # noqa: PLC0415 - only where it runs

    def is_hard(part: Any) -> bool:
        return isinstance(part, sympy.Function) or (isinstance(part, sympy.Pow) and not part.exp.is_Integer)

    return sum(is_hard(part) for part in sympy.preorder_traversal(value))
