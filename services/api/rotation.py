"""New certificates, keys, authorities and revocation lists take effect without a restart.

    keeper ── look ──▶ judged (`material.py`) ──▶ TLS of new connections (`Credentials`)
                                             └──▶ every call, new or running (`revocation.py`, `gate.py`)

Here: that way, what the log says of it, and warnings of what ends soon. Not here: the rules, which are pure. What is in
force when, and for whom: docs/security.md, "Rotation and revocation".
"""

import asyncio
import time
from collections.abc import Callable
from contextlib import aclosing
from typing import Final

import grpc
import structlog
from cryptography import x509

from common.config.settings import Security
from common.expiry import Expiry, expiries, is_soon
from common.quantities import format_time_ns
from common.tls import ServerMaterial, ServerSources
from services.api.gate import Gate
from services.api.keeper import Keeper
from services.api.looks import Look
from services.api.material import Material, Part, Problem, judged, readings_of
from services.api.revocation import Trust

log = structlog.get_logger(__name__)

REMINDER_S: Final = 86_400.0


class Credentials:
    """What gRPC shows in its next handshake. gRPC asks in a thread of its own, before each one."""

    def __init__(self, pem: ServerMaterial) -> None:
        self._first = self._latest = self._shown = _configuration(pem)

    def replace(self, pem: ServerMaterial) -> None:
        """From the next handshake on."""
        self._latest = _configuration(pem)

    def grpc_credentials(self) -> grpc.ServerCredentials:
        """For one port, with client certificates required."""
        return grpc.dynamic_ssl_server_credentials(
            self._first,
            self._fetch,  # type: ignore[arg-type]  # None means "no change"; the stubs do not know it
            require_client_authentication=True,
        )

    def _fetch(self) -> grpc.ServerCertificateConfiguration | None:
        latest = self._latest  # read once: it may be replaced between two lines
        if latest is self._shown:
            return None
        self._shown = latest
        return latest


class Rotation:
    """Keeps `gate` and `credentials` at what the files hold. `now_ns`: Unix nanoseconds."""

    def __init__(
        self,
        material: Material,
        *,
        keeper: Keeper,
        sources: ServerSources,
        security: Security,
        credentials: Credentials,
        gate: Gate,
        now_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self.material = material
        self._keeper = keeper
        self._sources = sources
        self._warning_days = security.expiry_warning_days
        self._credentials = credentials
        self._gate = gate
        self._now_ns = now_ns
        self._seen_authorities: set[x509.Certificate] = set(material.authorities)
        self._last_look: Look | None = None
        self._counters = dict.fromkeys(
            ("certificates_taken", "certificates_refused", "revoked_calls_cut", "keepers_lost"), 0
        )
        gate.trust_from_now_on(Trust(material.lists, material.authorities))

    @property
    def counters(self) -> dict[str, int]:
        """What docs/operations.md calls the counters of api, as far as they are about certificates."""
        return dict(self._counters)

    def certificates(self) -> tuple[Expiry, ...]:
        """When the server's certificate and its authorities' end."""
        pem = self.material.pem
        return expiries({"server": pem.cert, "ca": pem.ca}, now_ns=self._now_ns(), warning_days=self._warning_days)

    def look_now(self) -> None:
        """Look at the files at once: what SIGHUP does."""
        if not self._keeper.look_now():
            log.error("there is no keeper: certificate files cannot be looked at", what_to_do="restart joblet-api")

    async def follow(self) -> None:
        """Take what the keeper sees, for ever. Without one (any more) what is in force stays."""
        watched = self._keeper.pid != 0
        if watched:
            log.info("certificate files are watched", keeper=self._keeper.pid)
        async with aclosing(self._keeper.looks()) as looks:
            async for look in looks:
                try:
                    await self.take(look)
                except Exception:  # the boundary of a task: our own mistake about one file must not end every stream
                    log.exception("a change of certificate files is not taken; what was in force stays")
        while watched:
            # Its right cannot be had again (keeper.py), and to end for it would break every stream there is.
            self._counters["keepers_lost"] = 1
            log.error(
                "the keeper has ended: changed certificates and revocations will not take effect",
                what_to_do="restart joblet-api when its streams may be interrupted; jobs go on meanwhile",
            )
            await asyncio.sleep(REMINDER_S)
        await asyncio.Event().wait()

    async def remind(self) -> None:
        """Warn of what ends soon: now, and once a day."""
        while True:
            self._warn()
            await asyncio.sleep(REMINDER_S)

    async def take(self, look: Look) -> None:
        """Put in force what is good of it. One at a time."""
        # In a thread: parsing and signing take up to a tenth of a second.
        now, problems = await asyncio.to_thread(judged, look, self.material, self._sources)
        self._take(look, now, problems)

    def _take(self, look: Look, now: Material, problems: tuple[Problem, ...]) -> None:
        before, self.material = self.material, now
        last, self._last_look = self._last_look, look
        for part, error in problems:
            if last is None or readings_of(part, last) != readings_of(part, look):
                self._counters["certificates_refused"] += 1
                log.error(
                    "a change of certificate files is not taken; what was in force stays",
                    part=part.value,
                    why=error.message,
                    what_to_do=error.detail,
                )
        if now == before:
            return
        self._counters["certificates_taken"] += 1
        if now.pem[:3] != before.pem[:3]:
            self._credentials.replace(now.pem)
        self._seen_authorities.update(now.authorities)
        left = self._seen_authorities.difference(now.authorities)
        trust = Trust(now.lists, now.authorities, authority_left=bool(left))
        cut = self._gate.trust_from_now_on(trust)
        self._counters["revoked_calls_cut"] += cut
        log.info("changed certificate files are in force", parts=_changed(before, now), calls_cut=cut)
        self._warn()

    def _warn(self) -> None:
        for name, subject, not_after_ns, soon in self.certificates():
            if soon:
                log.warning(
                    "a certificate ends soon, or has ended",
                    certificate=name,
                    subject=subject,
                    not_after=format_time_ns(not_after_ns),
                    what_to_do="renew it with: joblet certs renew",
                )
        for remark in self.material.remarks:
            log.warning("a revocation list is not as it should be", why=remark)
        for one in self.material.lists:
            due_ns = one.next_update_ns
            if due_ns and is_soon(due_ns, now_ns=self._now_ns(), warning_days=self._warning_days):
                log.warning(
                    "a revocation list is due for renewal; it counts all the same",
                    issuer=one.issuer.rfc4514_string(),
                    next_update=format_time_ns(due_ns),
                    what_to_do="make it anew with: joblet certs revoke, or your CA's own tool",
                )


def _configuration(pem: ServerMaterial) -> grpc.ServerCertificateConfiguration:
    return grpc.ssl_server_certificate_configuration([(pem.key, pem.cert)], root_certificates=pem.ca)


def _changed(before: Material, now: Material) -> str:
    changed = (
        (Part.PAIR, before.pem[:2] != now.pem[:2]),
        (Part.AUTHORITIES, before.pem.ca != now.pem.ca),
        (Part.LISTS, before.pem.crl != now.pem.crl),
    )
    return ", ".join(part.value for part, is_changed in changed if is_changed)
