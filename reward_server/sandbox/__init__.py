"""Runs programs that nobody trusts, because a model wrote them.

    runs        the values: limits, what is to be run, how it ended
    calls       a call of a program's function by name, and the comparison of what it returned
    backends    how a process is confined: sandlock, bubblewrap, none
    inside/     the code that runs in the confined processes: the program's side and the tests' side
    confined    one confined process with its pipes
    pipes       reading and writing of several processes at once
    test_host   the confined process that hosts the tests
    running     the frame of one run: the deadline and the limits
    kinds       the three kinds of runs: with an input, with a call, against a test
    folders     the folders that programs wrote to: their size and their removal
    runner      the process that takes one run after another
    pool        the server's side: starts runners, asks them, kills and replaces them
    attacks     what the sandbox must stop, tried before a server serves

Knows nothing of scorers, groups or scores: it is handed a program and an input, a call or a test, and says how that
ended.
"""
