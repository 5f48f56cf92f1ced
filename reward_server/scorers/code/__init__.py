r"""The scorer `code`: does the program in a completion pass the tests of a column?

    options     what a configuration may say
    programs    which part of a completion is the program
    shapes      which values of a column are which tests: one shape a family of data sets
    outputs     which outputs and values are the same
    machine     the interpreter that runs the programs, and what is installed for it
    scorer      the runs, and what they are worth

The program of a completion:

1. After a `</think>`, only what follows it is read.
2. It is the last fenced block that is tagged `python`, `python3` or `py`. Where none is, it is the last block without a
   tag. A block that is not closed (a completion that was cut off, or ended at a stop string) counts where there is no
   closed one of its kind. Without any block it is the whole text, unless `extract: fenced` asks for a block.
3. With an entry point, a completion that does not define that function is the rest of the prompt's code (HumanEval).

The tests, by the shape of the column's value. A text that is JSON is read as such; keys whose value is null do not
count; several columns bring the tests of all of them:

- `{"inputs": [...], "outputs": [...]}` (APPS, TACO), `{"input": [...], "output": [...]}` (CodeContests) or
  `[{"input": ..., "output": ..., "testtype": "stdin"}, ...]` (LiveCodeBench): each input is given on standard input,
  and standard output has to be the output (`compare` says how). The exit code has to be 0.
- The same with `"fn_name"` (APPS, TACO, prime) or `"testtype": "functional"` (LiveCodeBench): the function of that
  name, or the method of `class Solution`, is called. An input is a list of arguments, or text with one JSON value a
  line. The function has to return the output: a tuple is equal to a list, and where all outputs of a column are lists
  of one, the element is accepted as well (APPS).
- `"assert f(1) == 2"` or a list of such texts, each a test (MBPP): Python that raises if the program is wrong. With an
  entry point, a test that defines `check` is followed by `check(<that function of the program>)` (HumanEval).

Every other value is INVALID: a shape that is not known is never worth a number. Pickled tests are refused, too.

Every test gets a process of its own; what one does cannot help or hurt another. After a test that ran into the time
limit the others are not run and count as failed.

What a program cannot do, however it tries:

- see what is expected. Expected outputs and values never leave the server. A test that asserts runs in a second
  process, and the program's process learns the arguments of calls and nothing else.
- pass by ending early, by printing a verdict, by patching what a test uses, or by an `__eq__`. What it answers travels
  as plain values, which are compared where none of its code runs. An object of a class of its own is equal only to
  itself. The program gets copies of the arguments, so a test does not see what it does to them.
- get a failure instead of a score. Whatever a program does is worth a number; the statuses FAILED and INVALID are left
  for the sandbox and the test. A program may lie about the reason of its failure.

A test should neither rely on a function of the program that is not under test, nor `eval` what the program returned. In
a test, the names of Python and the modules of its standard library never come from the program.
"""

from reward_server.scorers.code.options import CodeOptions
from reward_server.scorers.code.scorer import CodeScorer, Verdict

__all__ = ["CodeOptions", "CodeScorer", "Verdict"]
