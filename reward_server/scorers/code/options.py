"""The options of the scorer `code`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from reward_server.scorers.base import ScorerOptions

Columns = str | tuple[str, ...]


class CodeOptions(ScorerOptions):
    """Options of `code`."""

    timeout_s: float = Field(
        300.0,
        gt=0,
        description="Seconds that the programs of one group may take together; beyond it they get no score. A slow "
        "program is not meant to come here: time_limit_s ends it.",
    )
    column: Columns = Field(
        "tests",
        description="Column with the tests, or a list of columns whose tests are taken together: inputs and outputs, "
        "calls of a function, or Python that asserts.",
    )
    entry_point_column: str | None = Field(
        None,
        description="Column with the name of the function under test: text (HumanEval's `entry_point`), or an object "
        "with `func_name` or `fn_name` (LiveCodeBench's `metadata`). A test's `check` is called with that function.",
    )
    entry_point: str | None = Field(
        None, description="Name of the function under test, where no column has it and it is the same in every row."
    )
    setup_column: str | None = Field(
        None,
        description="Column with Python that is put before each test that asserts: text or a list of texts, as MBPP's "
        "`test_setup_code` and `test_imports`.",
    )
    prompt_column: str | None = Field(
        None,
        description="Column with the code that a completion goes on with, where that is not the prompt itself: "
        "imports, helpers and the head of the function. Used with an entry point only.",
    )
    common_names: bool = Field(
        True,
        description="Whether a program finds what LeetCode imports for its users (List, deque, heapq, inf, …) and may "
        "recurse 50,000 calls deep, where a test calls its function by name or its class is `Solution`. Programs that "
        "are run as scripts never do.",
    )
    sandbox: Literal["sandlock", "bubblewrap", "none"] = Field(
        "sandlock",
        description="What confines the programs. none confines nothing: they may do what the server's user may.",
    )
    score: Literal["share", "all"] = Field(
        "share", description="share: the share of tests passed. all: 1 if every test passed, 0 if one did not."
    )
    extract: Literal["auto", "fenced"] = Field(
        "auto",
        description="auto: the last fenced block of Python, or the whole text without any block. fenced: only a block "
        "counts.",
    )
    compare: Literal["lines", "tokens", "exact", "float", "unordered"] = Field(
        "lines",
        description="How an output is compared. lines: spaces at the ends of lines and empty last lines do not count. "
        "tokens: only the words count. exact: every character counts. float: as tokens, but numbers need to be only as "
        "close as rtol and atol say; two integers must be equal. unordered: as lines, in any order. Of what a function "
        "returns, floats are compared by rtol and atol unless this is exact.",
    )
    rtol: float = Field(
        1e-6,
        ge=0,
        allow_inf_nan=False,
        description="Relative tolerance: a float may differ by rtol × the expected one.",
    )
    atol: float = Field(1e-6, ge=0, allow_inf_nan=False, description="Absolute tolerance: a float may differ by this.")
    time_limit_s: float = Field(
        4.0,
        gt=0,
        le=600,
        description="Seconds of processor time a test; by the clock, twice that and one second more, where "
        "waiting for a processor does not count.",
    )
    memory_mib: int = Field(512, ge=64, description="Memory of a process, in MiB of address space.")
    max_processes: int = Field(1, ge=1, le=512, description="Processes at once. 1: threads, but no child processes.")
    max_open_files: int = Field(64, ge=16, le=4096, description="Open files at once.")
    output_kib: int = Field(1024, ge=1, description="What a program may print, standard error included, in KiB.")
    disk_mib: int = Field(16, ge=1, description="What a program may write to its temporary folder, in MiB.")
    parallel: int | None = Field(
        None, ge=1, description="Programs that run at once; as many as there are processors if unset."
    )
    python: str | None = Field(None, description="Interpreter that runs the programs; the server's own if unset.")
    site_packages: bool = Field(
        False,
        description="Whether programs and tests may import what is installed for that interpreter (numpy, …), and read "
        "all of it. The tests of HumanEval+ and MBPP+ import numpy.",
    )

    @field_validator("column")
    @classmethod
    def _is_named(cls, column: Columns) -> Columns:
        if not column or not all(column):
            raise ValueError("name at least one column with tests")
        return column

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns with the tests."""
        return (self.column,) if isinstance(self.column, str) else self.column
