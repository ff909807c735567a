"""How much of this process one tenant may use at a time.

Everything here is counted in this process alone: of several, each allows as much.
"""

from reattach.errors import QuotaError, UnavailableError
from reattach.ids import TenantId
from reattach.limits import PROCESS_BODY_BYTES, TENANT_BODY_BYTES

_MIB = 1024 * 1024


class Quotas:
    """Counts what each tenant uses, and refuses what is beyond its quota."""

    def __init__(
        self,
        *,
        tenant_body_bytes: int = TENANT_BODY_BYTES,
        process_body_bytes: int = PROCESS_BODY_BYTES,
    ) -> None:
        self._tenant_body_bytes = tenant_body_bytes
        self._process_body_bytes = process_body_bytes
        self._body_bytes: dict[TenantId | None, int] = {}
        self._all_body_bytes = 0

    def hold_body(self, tenant: TenantId | None, size_bytes: int) -> None:
        """Count bytes of a request's body, which are held until ``release_body``.

        Raises QuotaError, UnavailableError; then nothing was counted.
        """
        held_bytes = self._body_bytes.get(tenant, 0) + size_bytes
        if held_bytes > self._tenant_body_bytes:
            raise QuotaError(
                f"The requests that are under way have more than "
                f"{self._tenant_body_bytes // _MIB} MiB of bodies together. Send this one again "
                "when some of them are answered."
            )
        if self._all_body_bytes + size_bytes > self._process_body_bytes:
            raise UnavailableError(
                "The server holds as many large requests as it can. Send this one again."
            )
        self._body_bytes[tenant] = held_bytes
        self._all_body_bytes += size_bytes

    def release_body(self, tenant: TenantId | None, size_bytes: int) -> None:
        """Count these bytes no longer."""
        left_bytes = self._body_bytes.get(tenant, 0) - size_bytes
        if left_bytes > 0:
            self._body_bytes[tenant] = left_bytes
        else:
            self._body_bytes.pop(tenant, None)
        self._all_body_bytes -= size_bytes
