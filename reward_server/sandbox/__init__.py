"""Runs programs that nobody trusts: a model wrote them.

    runs        the values: limits, what is to be run, how it ended
    backends    how a process is confined: sandlock, bubblewrap, none
    inside/     what runs within the confinement: the program's side, the tests' side
    runner      a process that starts confined programs, one run after another
    pool        the server's side: runners started, asked, killed, replaced
    attacks     what must be stopped, tried before a server serves

Knows nothing of scorers, groups or scores: it is handed a program and input or a test, and tells how that ended.
"""
