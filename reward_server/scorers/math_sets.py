"""What the comparing of math-verify leaves undecided and is cheap to decide: sets against inequalities, and i² = -1.

Owns the translation of bounds (0 < x < 1) into sets, and of the symbol i into the imaginary unit. Does no algebra: a
bound must have a lone symbol on one side and a number on the other. Knows nothing of where answers come from.
"""

from __future__ import annotations

from typing import Any

_DIGITS = 30
_TOLERANCE = 1e-12


def are_same_bounds(one: Any, other: Any) -> bool:
    """Whether two expressions are the same set of numbers, of which at least one is written as a bound of a variable.

    Two bounds must be of the same variable; a set has none, so (0, 1) is 0 < x < 1 and 0 < y < 1.
    """
    one_bound, other_bound = _as_bound(one), _as_bound(other)
    if one_bound is None or other_bound is None:
        return False
    (one_name, one_set), (other_name, other_set) = one_bound, other_bound
    if one_name is None and other_name is None:
        return False
    return (one_name == other_name or None in (one_name, other_name)) and _plain(one_set) == _plain(other_set)


def are_same_complex(one: Any, other: Any) -> bool:
    """Whether two expressions without any symbol but i are the same complex number, to 12 places."""
    import sympy  # type: ignore[import-untyped]  # noqa: PLC0415 - only where it runs

    if not (isinstance(one, sympy.Expr) and isinstance(other, sympy.Expr)):
        return False
    symbols = one.free_symbols | other.free_symbols
    if {symbol.name for symbol in symbols} != {"i"}:
        return False
    unit = dict.fromkeys(symbols, sympy.I)
    values = [sympy.N(value.subs(unit), _DIGITS) for value in (one, other)]
    if not all(value.is_number and value.is_finite for value in values):
        return False
    return bool(abs(values[0] - values[1]) <= _TOLERANCE * max(1, abs(values[0])))


def _plain(numbers: Any) -> Any:
    """The set with its numbers worked out, and decimals as fractions."""
    import sympy  # noqa: PLC0415 - only where it runs

    decimals = {number: sympy.Rational(str(number)) for number in numbers.atoms(sympy.Float)}
    return numbers.xreplace(decimals).doit()


def _as_bound(value: Any) -> tuple[str | None, Any] | None:
    """The variable, None for a set, and the set of real numbers; None for what is neither."""
    import sympy  # noqa: PLC0415 - only where it runs
    from sympy.core.relational import Relational  # type: ignore[import-untyped]  # noqa: PLC0415

    if isinstance(value, (sympy.Interval, sympy.Union)):
        return None, value
    if isinstance(value, Relational):
        return _of_relation(value)
    if isinstance(value, sympy.And):
        return _joined(value.args, sympy.Intersection)
    if isinstance(value, sympy.Or) or (isinstance(value, sympy.FiniteSet) and _holds_relations(value)):
        return _joined(value.args, sympy.Union)
    return None


def _holds_relations(value: Any) -> bool:
    """How math-verify reads "x < 0 or x > 1": as a set of two inequalities."""
    from sympy.core.relational import Relational  # noqa: PLC0415 - only where it runs

    return all(isinstance(part, Relational) for part in value.args)


def _joined(parts: Any, join: Any) -> tuple[str | None, Any] | None:
    bounds = [_of_relation(part) for part in parts]
    names = {bound[0] for bound in bounds if bound is not None}
    if None in bounds or len(names) != 1:
        return None
    return names.pop(), join(*(bound[1] for bound in bounds if bound is not None))


def _of_relation(relation: Any) -> tuple[str | None, Any] | None:
    """The set of a bound such as x < 1, 1 ≥ x, x ≠ 2 or x ∈ (0, 1)."""
    import sympy  # noqa: PLC0415 - only where it runs

    symbol, value = relation.lhs, relation.rhs
    relation_of = type(relation)
    if not symbol.is_Symbol:
        symbol, value, relation_of = value, symbol, type(relation.reversed)
    if not getattr(symbol, "is_Symbol", False):
        return None
    if isinstance(relation, sympy.Eq) and isinstance(value, (sympy.Interval, sympy.Union)):
        return symbol.name, value
    if getattr(value, "free_symbols", {None}) or not getattr(value, "is_extended_real", False):
        return None
    bounded = {
        sympy.StrictLessThan: lambda: sympy.Interval.open(-sympy.oo, value),
        sympy.LessThan: lambda: sympy.Interval(-sympy.oo, value),
        sympy.StrictGreaterThan: lambda: sympy.Interval.open(value, sympy.oo),
        sympy.GreaterThan: lambda: sympy.Interval(value, sympy.oo),
        sympy.Unequality: lambda: sympy.Union(
            sympy.Interval.open(-sympy.oo, value), sympy.Interval.open(value, sympy.oo)
        ),
    }
    return (symbol.name, bounded[relation_of]()) if relation_of in bounded else None
