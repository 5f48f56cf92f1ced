"""Plain values as a line of JSON, and back: the values that a program and its test exchange.

Owns both directions. Decoding creates values of Python's own types and nothing else, so that no value of a program
brings an `__eq__` of its own. An object that is not plain stays in its process, and only a number for it travels.
"""

from __future__ import annotations

TYPE_CHECKING = False  # importing typing would take longer than all else here
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any


def dumps(value: Any, keep: Callable[[Any], int]) -> bytes:
    """One line. `keep` is handed an object that is not plain and returns a number for it, or raises."""
    return to_json(_encode(value, keep)).encode() + b"\n"


def loads(line: bytes, take: Callable[[int, str], Any]) -> Any:
    """The value of a line. `take` is handed an object's number and type name. Raises any error if there is no value."""
    return _decode(_from_json(line.decode()), take)


def _codec() -> tuple[Callable[[Any], str], Callable[[str], Any]]:
    """The C parts of `json` alone: its Python part imports `re` and `enum`, which takes half the time of a test."""
    try:
        half: Any = __import__("_json")
        encode = half.make_encoder(None, None, half.encode_basestring_ascii, None, ":", ",", False, False, True)
        decode = half.make_scanner(_Json)
        assert decode('[1, {"a": null}]', 0)[0] == [1, {"a": None}]
        assert "".join(encode([1, {"a": None}], 0)) == '[1,{"a":null}]'
    except Exception:  # another version of Python
        whole = __import__("json")
        return whole.dumps, whole.loads
    return (lambda value: "".join(encode(value, 0))), (lambda text: decode(text, 0)[0])


class _Json:
    """What `json.scanner` asks of a decoder (CPython 3.11, Modules/_json.c, scanner_new)."""

    strict = True
    object_hook = object_pairs_hook = None
    parse_float = float
    parse_int = int
    parse_constant = float


to_json, _from_json = _codec()


def _encode(value: Any, keep: Callable[[Any], int]) -> Any:
    """Subclasses (Counter, a named tuple, an IntEnum) travel as the plain type beneath."""
    if value is None or value is True or value is False:
        return value
    for kind, encode in _SCALARS:
        if isinstance(value, kind):
            return encode(value)
    if isinstance(value, dict):
        return {"dict": [[_encode(key, keep), _encode(item, keep)] for key, item in value.items()]}
    for kind in (list, tuple, set, frozenset):
        if isinstance(value, kind):
            items = [_encode(item, keep) for item in value]
            return items if kind is list else {kind.__name__: items}
    return _encode_other(value, keep)


def _encode_other(value: Any, keep: Callable[[Any], int]) -> Any:
    """Decides by the names of module and type: importing the types takes time, and few programs use them."""
    kind = (type(value).__module__, type(value).__name__)
    if kind in (("decimal", "Decimal"), ("fractions", "Fraction")):
        return {kind[1]: str(value)}
    if kind[0] == "numpy" and hasattr(value, "tolist"):
        return _encode(value.tolist(), keep)
    return {"object": [keep(value), kind[1]]}


def _encode_int(value: int) -> Any:
    """Hexadecimal beyond 63 bits, since Python refuses to convert long decimal numbers."""
    number = int.__int__(value)
    return number if abs(number) < 1 << 63 else {"int": hex(number)}


_SCALARS: tuple[tuple[type, Callable[[Any], Any]], ...] = (
    (str, str.__str__),
    (int, _encode_int),
    (float, lambda value: {"float": float.__repr__(value)}),
    (complex, lambda value: {"complex": [repr(value.real), repr(value.imag)]}),
    (bytes, lambda value: {"bytes": value.hex()}),
    (bytearray, lambda value: {"bytearray": value.hex()}),
)


def _decode(value: Any, take: Callable[[int, str], Any]) -> Any:
    if isinstance(value, list):
        return [_decode(item, take) for item in value]
    if not isinstance(value, dict):
        return value
    ((kind, body),) = value.items()
    if kind == "object":
        return take(*body)
    if kind == "dict":
        return {_decode(key, take): _decode(item, take) for key, item in body}
    if kind in _SEQUENCES:
        return _SEQUENCES[kind](_decode(item, take) for item in body)
    return _PARSERS[kind](body)


_SEQUENCES: dict[str, Callable[[Any], Any]] = {"tuple": tuple, "set": set, "frozenset": frozenset}
_PARSERS: dict[str, Callable[[Any], Any]] = {
    "int": lambda body: int(body, 16),
    "float": float,
    "complex": lambda body: complex(float(body[0]), float(body[1])),
    "Decimal": lambda body: __import__("decimal").Decimal(body),
    "Fraction": lambda body: __import__("fractions").Fraction(body),
    "bytes": bytes.fromhex,
    "bytearray": bytearray.fromhex,
}
