"""The one door by which a scorer's kind enters: built-in names, entry points, "module:attribute".

Owns the lookup from `type` to class and from a mapping to a built scorer. Knows no scorer but by name: a built-in kind
is imported when it is asked for, so a server without classifiers never loads torch.
"""

from __future__ import annotations
