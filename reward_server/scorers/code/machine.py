"""The interpreter that runs the programs, what is installed for it, and what to say of a package that is not allowed.

Owns the questions to that interpreter. They are asked once, when the scorer loads.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import dataclass

from reward_server.errors import ScorerLoadError
from reward_server.sandbox.runs import Limits, Plan
from reward_server.scorers.code.options import CodeOptions

_MIB = 1 << 20
_QUESTION = "import platform, sys; print(platform.python_version(), sys.prefix, sys.base_prefix, sep='\\n')"
_PACKAGES = "import pkgutil; print(*sorted({module.name for module in pkgutil.iter_modules()}), sep='\\n')"
_WELL_KNOWN = ("numpy", "scipy", "pandas", "sympy", "networkx", "sklearn", "sortedcontainers", "torch")
_NO_MODULE = re.compile(r"No module named '(\w+)")


@dataclass(frozen=True, slots=True)
class Machine:
    """How programs are run, and what they could import if `site_packages` were true."""

    plan: Plan
    python_version: str
    not_allowed: frozenset[str]

    def hint(self, complaint: str) -> str:
        """What to add to a complaint of a module that is not there; empty if nothing helps."""
        match = _NO_MODULE.search(complaint)
        if match is None or match[1] not in self.not_allowed:
            return ""
        return " (it is installed here, and site_packages: true would allow it)"

    def note(self) -> str | None:
        """What programs may not import although it is installed, in a line for people."""
        if not self.not_allowed:
            return None
        named = [name for name in _WELL_KNOWN if name in self.not_allowed]
        examples = f" ({', '.join(named)}, …)" if named else ""
        return (
            f"programs and tests may import Python's standard library only; {len(self.not_allowed)} modules are "
            f"installed here{examples}, and site_packages: true would allow them"
        )


def machine(options: CodeOptions, backend: str) -> Machine:
    """Raises ScorerLoadError for an interpreter that does not run."""
    python = options.python or (sys.executable if options.site_packages else os.path.realpath(sys.executable))
    flags = ("-I", "-B") if options.site_packages else ("-I", "-S", "-B")
    version, *prefixes = _asked(options, (python, *flags, "-c", _QUESTION))
    limits = Limits(
        options.time_limit_s,
        options.memory_mib * _MIB,
        options.max_processes,
        options.max_open_files,
        options.output_kib << 10,
        options.disk_mib * _MIB,
    )
    plan = Plan(backend, (python, *flags), tuple(dict.fromkeys(prefixes)), limits)
    return Machine(plan, version, _not_allowed(options))


def _not_allowed(options: CodeOptions) -> frozenset[str]:
    """The modules that are installed, and that an interpreter without `site` does not find."""
    if options.site_packages:
        return frozenset()
    python = options.python or sys.executable
    with_site, without = (_asked(options, (python, "-I", *flags, "-c", _PACKAGES)) for flags in ((), ("-S",)))
    return frozenset(with_site) - frozenset(without)


def _asked(options: CodeOptions, command: tuple[str, ...]) -> list[str]:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout.splitlines()
    except (OSError, subprocess.SubprocessError) as error:
        raise ScorerLoadError(
            f"scorer {options.name!r}: python {command[0]!r} does not run: {error}; name an interpreter that does"
        ) from error
