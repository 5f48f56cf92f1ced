"""From "module:attribute" or "path/to/file.py:attribute" to the object that it names.

Owns finding and importing user code, the errors of both, and the digest of its source. Knows nothing of scorers, nor of
what the object is used for.
"""

from __future__ import annotations

import ast
import difflib
import functools
import hashlib
import importlib
import importlib.util
import inspect
import os
import sys
import traceback
from collections.abc import Iterable
from importlib.machinery import PathFinder, SourceFileLoader
from pathlib import Path
from types import CodeType, ModuleType, TracebackType
from typing import Any

from reward_server.errors import ScorerLoadError

TARGET_FORMS = "module:attribute or path/to/file.py:attribute"


def split_target(target: str) -> tuple[str, str]:
    """The module or file, and the attribute. Raises ValueError for a target of another form."""
    source, _, attribute = target.rpartition(":")
    if not source or not all(part.isidentifier() for part in attribute.split(".")):
        raise ValueError(f"{target!r} must have the form {TARGET_FORMS}")
    return source, attribute


def load_attribute(target: str, base_dir: Path) -> Any:
    """Imports what `target` names. Relative files and modules are looked up in `base_dir`, then in the working folder.

    Raises ScorerLoadError, with the user's traceback if importing raised.
    """
    source, attribute = split_target(target)
    module = _import_file(source, base_dir, target) if _is_file(source) else _import_module(source, base_dir, target)
    return _attribute_of(module, attribute, target)


def is_async_function(target: str, base_dir: Path) -> bool:
    """Whether the attribute is an `async def` in its module's source. The source is read only: nothing is imported."""
    source, attribute = split_target(target)
    file = find_path(source, base_dir) if _is_file(source) else _file_of_module(source, base_dir)
    if file is None or not file.is_file():
        return False
    try:
        body = ast.parse(file.read_bytes()).body
    except (SyntaxError, ValueError):
        return False  # importing it will say what is wrong
    return any(isinstance(node, ast.AsyncFunctionDef) and node.name == attribute for node in body)


def is_async_callable(function: Any) -> bool:
    """Whether calling `function` gives a coroutine: a function, a partial or an object with an async `__call__`."""
    while isinstance(function, functools.partial):
        function = function.func
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(type(function).__call__)


def find_path(path: str, base_dir: Path) -> Path | None:
    """An existing file or folder: looked up in `base_dir` if relative, then in the working folder."""
    given = Path(path).expanduser()
    candidates = [folder / given for folder in (base_dir, Path.cwd())]
    return next((candidate.resolve() for candidate in candidates if candidate.exists()), None)


def source_digest(*values: Any) -> str:
    """Digest of the source files that define these functions, objects or classes. It does not depend on their folders.

    Raises ScorerLoadError if a module's file has changed since this process imported it. A module that is named without
    its file is imported only once, so the digest would describe code that does not run.
    """
    modules = {module.__name__: module for value in values if (module := _defining_module(value)) is not None}
    contents = sorted({_source_as_imported(module) for module in modules.values()})
    return hashlib.sha256(b"\0".join(contents)).hexdigest()[:12]


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """ ", did you mean …?" for the end of a message if a known name is close; else an empty string."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f", did you mean {close[0]!r}?" if close else ""


def user_traceback(error: BaseException) -> str:
    """The traceback of an error from its first frame in user code: without this file's and the importer's frames."""
    frames = error.__traceback__
    while frames is not None and _is_machinery(frames):
        frames = frames.tb_next
    return "".join(traceback.format_exception(type(error), error, frames)).rstrip()


def _is_machinery(frame: TracebackType) -> bool:
    file = frame.tb_frame.f_code.co_filename
    return file in (__file__, importlib.__file__) or file.startswith("<frozen importlib")


# ----------------------------------------------------------------------------------------------------------- importing


def _is_file(source: str) -> bool:
    return source.endswith(".py") or "/" in source or os.sep in source


def _import_file(source: str, base_dir: Path, target: str) -> ModuleType:
    path = find_path(source, base_dir)
    if path is None or not path.is_file():
        raise ScorerLoadError(f"{target}: there is no file {source!r} in {_folders(base_dir)}")
    # One module for each file, however many scorers name it. The digest distinguishes files of the same name, and the
    # content of a file when a configuration is reloaded from its content before.
    content = path.read_bytes()
    name = f"reward_file_{path.stem}_{hashlib.sha256(str(path).encode() + content).hexdigest()[:8]}"
    if name in sys.modules:
        return sys.modules[name]
    _extend_sys_path(path.parent)  # so that the file's siblings can be imported, as when Python runs it
    if path.suffix != ".py":
        raise ScorerLoadError(f"{target}: {path} is not a Python file; give one that ends in .py")
    spec = importlib.util.spec_from_file_location(name, path, loader=_FromSource(name, str(path)))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickle look a class's module up while it is being run
    _as_imported[name] = content
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise ScorerLoadError(f"{target}: importing {path} raised\n{user_traceback(error)}") from error
    return module


class _FromSource(SourceFileLoader):
    """Compiles the file as it is now. Python's cache of bytecode knows a file by its size and the second of its change,
    so a file that is changed twice within a second could run as it was before.
    """

    def get_code(self, fullname: str) -> CodeType:
        path = self.get_filename(fullname)
        code: CodeType = self.source_to_code(self.get_data(path), path)
        return code


def _import_module(name: str, base_dir: Path, target: str) -> ModuleType:
    _extend_sys_path(base_dir, Path.cwd())
    try:
        return importlib.import_module(name)
    except (Exception, SystemExit) as error:
        if isinstance(error, ModuleNotFoundError) and error.name and f"{name}.".startswith(f"{error.name}."):
            raise ScorerLoadError(
                f"{target}: there is no module {error.name!r}, neither installed nor in {_folders(base_dir)}; "
                "install it, or name the file as path/to/file.py:attribute"
            ) from error
        raise ScorerLoadError(f"{target}: importing {name} raised\n{user_traceback(error)}") from error


def _attribute_of(module: ModuleType, attribute: str, target: str) -> Any:
    value: Any = module
    for part in attribute.split("."):
        try:
            value = getattr(value, part)
        except AttributeError as error:
            hint = did_you_mean(part, [name for name in dir(value) if not name.startswith("_")])
            raise ScorerLoadError(f"{target}: {module.__file__} has no attribute {attribute!r}{hint}") from error
        except Exception as error:  # a module that imports its parts when they are asked for
            raise ScorerLoadError(f"{target}: importing {attribute!r} raised\n{user_traceback(error)}") from error
    return value


def _extend_sys_path(*folders: Path) -> None:
    """At the end, so that a file of the user's never hides an installed package."""
    sys.path.extend(folder for folder in dict.fromkeys(map(str, folders)) if folder not in sys.path)


def _folders(base_dir: Path) -> str:
    return " or ".join(dict.fromkeys(str(folder.resolve()) for folder in (base_dir, Path.cwd())))


# -------------------------------------------------------------------------------------------------------------- source


def _file_of_module(name: str, base_dir: Path) -> Path | None:
    """The source file of a module, found without importing it or the packages around it."""
    _extend_sys_path(base_dir, Path.cwd())
    top, *rest = name.split(".")
    try:
        spec = importlib.util.find_spec(top)
    except (ImportError, ValueError):
        return None
    for part in rest:
        if spec is None or spec.submodule_search_locations is None:
            return None
        spec = PathFinder.find_spec(f"{spec.name}.{part}", spec.submodule_search_locations)
    return Path(spec.origin) if spec is not None and spec.origin is not None and spec.has_location else None


def _defining_module(value: Any) -> ModuleType | None:
    while isinstance(value, functools.partial):
        value = value.func
    value = inspect.unwrap(value)
    defined = value if hasattr(value, "__qualname__") else type(value)
    module = sys.modules.get(defined.__module__)
    return module if getattr(module, "__file__", None) else None


# The content of each module's file when this process first read it.
_as_imported: dict[str, bytes] = {}


def _source_as_imported(module: ModuleType) -> bytes:
    content = Path(str(module.__file__)).read_bytes()
    if _as_imported.setdefault(module.__name__, content) != content:
        raise ScorerLoadError(
            f"{module.__file__} has changed since this process imported {module.__name__}: start the server again, or "
            "name the file as path/to/file.py:attribute, which is read anew with each configuration"
        )
    return content
