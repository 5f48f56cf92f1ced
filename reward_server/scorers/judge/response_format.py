"""Which `response_format` a judge's endpoint takes: set by the options, or found out by its first calls.

Owns the order in which the forms are tried, and the one that was found. Knows nothing of HTTP or verdicts: it is handed
a function that makes a call in a given form.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any, Literal, get_args

from reward_server.scorers.engine_errors import LateError, RefusedError

log = logging.getLogger("reward_server")

Form = Literal["json_schema", "json_object", "none"]
_STRICTEST_FIRST: tuple[Form, ...] = get_args(Form)

Post = Callable[[Form], Awaitable[Any]]


class ResponseFormat:
    """The form of a judge's calls.

    With `auto` a call is made with json_schema. If the endpoint refuses it (400, 422), the same call is made with
    json_object and then with none, and the first form that is answered is kept for the life of the server. A call that
    is refused in every form says nothing of the form: it fails, and the next call begins anew.
    """

    def __init__(self, name: str, asked: Literal["auto"] | Form):
        self._name = name
        self._is_auto = asked == "auto"
        self._found: Form | None = None if asked == "auto" else asked
        self._reason = ""
        self._finding = asyncio.Lock()

    @property
    def form(self) -> Form:
        """The form of the next call."""
        return self._found or _STRICTEST_FIRST[0]

    @property
    def notes(self) -> tuple[str, ...]:
        """What `auto` came to, in a sentence; nothing if the options say the form."""
        if not self._is_auto:
            return ()
        if self._found is None:
            return ("structured_output auto: not known yet, since no call was answered",)
        return (f"structured_output auto: {self._found}{self._reason}",)

    async def ask(self, post: Post, deadline: float) -> Any:
        """The answer of a call in the form that the endpoint takes. Raises what `post` raises, and LateError."""
        form = self.form
        try:
            answer = await post(form)
        except RefusedError as refusal:
            if self._found == form:
                raise
            return await self._ask_weaker(post, form, refusal, deadline)
        self._keep(form)
        return answer

    async def _ask_weaker(self, post: Post, refused: Form, refusal: RefusedError, deadline: float) -> Any:
        try:
            async with asyncio.timeout_at(deadline):
                await self._finding.acquire()
        except TimeoutError as error:
            raise LateError(f"no response_format was found before the deadline; before that, {refusal}") from error
        try:
            return await self._first_answer(post, refused, refusal)
        finally:
            self._finding.release()

    async def _first_answer(self, post: Post, refused: Form, refusal: RefusedError) -> Any:
        if self._found is not None:  # by another call, while this one waited
            if self._found == refused:
                raise refusal
            return await post(self._found)
        for form in _STRICTEST_FIRST[_STRICTEST_FIRST.index(refused) + 1 :]:
            try:
                answer = await post(form)
            except RefusedError:
                continue
            self._keep(form, f", since the endpoint refuses {refused}: {refusal}")
            return answer
        raise refusal

    def _keep(self, form: Form, reason: str = "") -> None:
        if self._found is not None:
            return
        self._found, self._reason = form, reason
        log.log(logging.WARNING if reason else logging.INFO, "scorer %r: %s", self._name, self.notes[0])
