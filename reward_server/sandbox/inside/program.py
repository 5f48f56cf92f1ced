"""The start of every confined process, and a program that is run: what `python program.py` would do.

Owns the reading of the request, the limits, and the likeness to a script. The request comes on standard input: a line
of numbers, two texts (what is run before the program, and the program), and behind them the program's own standard
input. The first byte on standard output says that the process is up: a process that ends before has not run any
program.
"""

from __future__ import annotations

import posix  # os and site are left to the programs that import them: they take a third of the time to start
import resource
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

READY = b"\x06"


def main() -> None:
    before, program = start()
    sys.argv = ["program.py"]
    names = sys.modules["__main__"].__dict__
    names["__file__"] = "program.py"
    add_what_site_adds()
    add_depth(0)
    execute(before, program, names)


def start() -> list[str]:
    """Sets the limits that the request names. Returns its two texts."""
    header = b""
    while not header.endswith(b"\n"):
        header += posix.read(0, 1) or b"\n"
    cpu_s, memory_bytes, disk_bytes, open_files, processes, *sizes = map(int, header.split())
    texts = [read(size).decode("utf-8", "surrogatepass") for size in sizes]
    if cpu_s:
        limit_cpu(cpu_s)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (disk_bytes, disk_bytes))
    resource.setrlimit(resource.RLIMIT_NOFILE, (open_files, open_files))
    if processes:
        resource.setrlimit(resource.RLIMIT_NPROC, (processes, processes))
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    posix.write(1, READY)
    return texts


def limit_cpu(seconds: int) -> None:
    """Of this process; SIGXCPU at the limit, SIGKILL a second later."""
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))


def read(size: int) -> bytes:
    """Exactly so many bytes of standard input, fewer at its end. Nothing of what follows is read."""
    data = b""
    while len(data) < size and (piece := posix.read(0, size - len(data))):
        data += piece
    return data


def execute(before: str, program: str, names: dict[str, Any]) -> None:
    """Runs the program in these names. What is to run before it may be incomplete, and then does not matter."""
    if before:
        try:
            exec(compile(before, "prompt.py", "exec", dont_inherit=True), names)
        except Exception:
            names.pop("__annotations__", None)
    exec(compile(program, "program.py", "exec", dont_inherit=True), names)


def add_what_site_adds() -> None:
    """`exit`, `quit`, `copyright`, `credits`, `license` and `help`, which Python without `site` does not have."""
    import builtins  # noqa: PLC0415

    if not hasattr(builtins, "exit"):
        import _sitebuiltins as site  # noqa: PLC0415

        eof = "Ctrl-D (i.e. EOF)"
        builtins.exit, builtins.quit = site.Quitter("exit", eof), site.Quitter("quit", eof)
        builtins.copyright = site._Printer("copyright", sys.copyright)
        builtins.credits = site._Printer("credits", "See www.python.org for more information.")
        builtins.license = site._Printer("license", "See https://www.python.org/psf/license/")
        builtins.help = site._Helper()


def add_depth(more: int) -> None:
    """Lets the program recurse as deep as in a script, and so many calls deeper: our own calls are below it here."""
    frame = sys._getframe()
    depth = 1 if sys.version_info >= (3, 12) else 3  # before, each of our `exec` counted, too
    while frame := frame.f_back:  # type: ignore[assignment]
        depth += 1
    sys.setrecursionlimit(sys.getrecursionlimit() + depth + more)
