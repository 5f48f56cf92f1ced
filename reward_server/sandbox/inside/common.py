"""The names that LeetCode imports for its users, so that programs written for it run without imports of their own.

Owns the table of names and modules. Only what a program uses is imported, since that takes time.
"""

from __future__ import annotations

import builtins

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import CodeType

_MODULES = (
    "bisect collections copy datetime decimal fractions functools heapq io itertools json math operator os queue "
    "random re statistics string sys time typing"
)
_NAMES = {
    "typing": "Any Callable DefaultDict Deque Dict FrozenSet Generator Generic Iterable Iterator List Literal Mapping "
    "NamedTuple NewType NoReturn Optional Protocol Sequence Set Tuple Type TypeVar Union cast overload",
    "collections": "ChainMap Counter OrderedDict UserDict UserList UserString defaultdict deque namedtuple",
    "heapq": "heapify heappop heappush heappushpop heapreplace merge nlargest nsmallest",
    "bisect": "bisect_left bisect_right insort insort_left insort_right",
    "functools": "cache cached_property cmp_to_key lru_cache partial reduce total_ordering wraps",
    "itertools": "accumulate chain combinations combinations_with_replacement compress count cycle dropwhile "
    "filterfalse groupby islice pairwise permutations product repeat starmap takewhile tee zip_longest",
    "math": "acos asin atan atan2 cbrt ceil comb cos degrees dist e exp fabs factorial floor fmod gcd hypot inf "
    "isclose isfinite isinf isnan isqrt lcm log log10 log2 nan perm pi prod radians sin sqrt tan tau trunc",
    "operator": "add and_ attrgetter itemgetter mul neg or_ sub xor",
    "string": "ascii_letters ascii_lowercase ascii_uppercase digits punctuation whitespace",
    "copy": "deepcopy",
    "random": "choice randint shuffle",
    "datetime": "timedelta",
    "dataclasses": "dataclass field",
    "enum": "Enum IntEnum",
    "fractions": "Fraction",
    "decimal": "Decimal",
}
DEPTH = 50_000  # calls that a program may nest, as LiveCodeBench allows them


def add_common_names(text: str) -> None:
    """Makes builtins of those that a program uses: what it defines itself comes first, and none counts as its own."""
    names = builtins.__dict__
    try:
        used = _used(compile(text, "program.py", "exec", dont_inherit=True))
    except (SyntaxError, ValueError):  # left for the program's own run to say
        return
    for module, members in _NAMES.items():
        for name in used.intersection(members.split()):
            names[name] = getattr(__import__(module), name)
    for module in used.intersection(_MODULES.split()):
        names[module] = __import__(module)


def _used(code: CodeType) -> set[str]:
    inner = (constant for constant in code.co_consts if isinstance(constant, type(code)))
    return set(code.co_names).union(*map(_used, inner))
