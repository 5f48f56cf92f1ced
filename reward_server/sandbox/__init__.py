"""Runs programs that nobody trusts: a model wrote them.

    runs        the values: limits, what is to be run, how it ended
    backends    how a process is confined: sandlock, bubblewrap, none
    inside/     what runs within the confinement: the program's side, the tests' side
    running     one run: the pipes, the deadline, a program's talk with its test
    folders     what a program wrote: how much, and away with it
    runner      the process in which one run after another goes on
    pool        the server's side: runners started, asked, killed, replaced
    attacks     what must be stopped, tried before a server serves

Knows nothing of scorers, groups or scores: it is handed a program and input or a test, and tells how that ended.
"""
