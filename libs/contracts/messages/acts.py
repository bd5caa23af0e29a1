"""What an operator has done at the broker itself, past every HTTP service: told to the stewards, for the audit log."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from contracts.fields import By, Id, Tenant

WHAT_PATTERN = r"[a-z][a-z-]{0,31}"


class OperatorAct(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One act, as its line in the audit log has it. `by` is what the operator's machine says of them, and no proof."""

    what: Annotated[str, Meta(pattern=rf"^{WHAT_PATTERN}\Z")]
    by: By
    tenant: Tenant | None = None
    task: Id | None = None
