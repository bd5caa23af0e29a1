"""Secrets taken out of texts that others have written: a server's error may repeat the key that it was shown.

`hidden` is what this process hides in every line of its log.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Final
from urllib.parse import quote

MASKED: Final = "[secret]"
SECRET_CHARACTERS_MIN: Final = 8
"""Shorter texts are left alone: they are words of any line, and would be no secrets for long."""


class Mask:
    """Masks some secrets, as they are and as JSON and URLs write them, in whatever case."""

    def __init__(self, secrets: Iterable[str] = (), shown: str = MASKED) -> None:
        self._shown = shown
        found = {form for secret in secrets for part in (secret, *secret.split()) for form in _forms(part)}
        # Of one that begins another the longer one counts.
        self._forms = sorted(found, key=len, reverse=True)
        pattern = "|".join(re.escape(form) for form in self._forms)
        self._pattern = re.compile(pattern, re.IGNORECASE) if pattern else None

    def __call__(self, text: str) -> str:
        """The text without the secrets."""
        return text if self._pattern is None else self._pattern.sub(lambda _: self._shown, text)

    def literals(self) -> list[bytes]:
        """What is looked for, for who looks in bytes first."""
        return [form.encode() for form in self._forms]


def _forms(secret: str) -> set[str]:
    if len(secret) < SECRET_CHARACTERS_MIN:
        return set()
    return {secret, json.dumps(secret)[1:-1], json.dumps(secret, ensure_ascii=False)[1:-1], quote(secret, safe="")}


HIDDEN_MAX: Final = 1_000
"""So many secrets are looked for in each line, the newest ones: what was rotated away may still be told for a while."""


class _Hidden:
    """The secrets of this process, and what finds them. It is one for each process, as its log is."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.mask = Mask()
        self.raw: list[bytes] = []
        """What a line in lower case has, if it has a secret."""


hidden: Final = _Hidden()


def hide(secrets: Iterable[str]) -> None:
    """Let no line have these secrets from now on, nor those that were hidden before.

    No line should: this is for the one that nobody has thought of, such as an error that quotes a stranger.
    """
    texts = list(dict.fromkeys([*secrets, *hidden.texts]))[:HIDDEN_MAX]
    if texts == hidden.texts:
        return
    hidden.texts = texts
    hidden.mask = Mask(hidden.texts)
    hidden.raw = [literal.lower() for literal in hidden.mask.literals()]
