"""When credentials end, and with them the streams that they have opened."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from contracts.access import KeyRecord, hash_of, new_key
from mesh.access.key_door import identity_of

END = datetime(2030, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize("end", [END, None])
def test_a_key_lets_in_until_it_expires(end: datetime | None) -> None:
    key = new_key()
    record = KeyRecord(
        id=key.id, tenant="acme", scopes=["read"], hash=hash_of(key.secret), created_at=END, by="test", expires_at=end
    )
    assert identity_of(record).until == end
