"""`client.admin`: tenants, their keys, what they use. Needs the admin key where the daemon asks for keys."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing

from . import _convert
from ._caller import Caller
from ._records import ApiKey, NewApiKey, Tenant, TenantUsage
from ._transport import drain, finish


class AsyncTenants:
    """`client.admin.tenants`."""

    def __init__(self, caller: Caller) -> None:
        self._caller = caller

    async def create(self, id: str, *, display_name: str = "", timeout: float | None = None) -> Tenant:
        """Creates a tenant."""
        return _convert.tenant(
            await self._caller.unary("AdminService.CreateTenant", timeout=timeout, tenant_id=id, display_name=display_name)
        )

    async def get(self, tenant: str | Tenant, *, timeout: float | None = None) -> Tenant:
        """Reads one tenant."""
        name = _convert.name_of("tenants", tenant)
        return _convert.tenant(await self._caller.unary("AdminService.GetTenant", timeout=timeout, name=name))

    async def list(self, *, page_size: int | None = None, timeout: float | None = None) -> AsyncGenerator[Tenant, None]:
        """Iterates all tenants. `timeout` is for each page."""
        pages = self._caller.pages("AdminService.ListTenants", "tenants", timeout=timeout, page_size=page_size)
        async with aclosing(pages):
            async for tenant in pages:
                yield _convert.tenant(tenant)


class AsyncKeys:
    """`client.admin.keys`."""

    def __init__(self, caller: Caller) -> None:
        self._caller = caller

    async def create(self, tenant: str | Tenant, *, display_name: str = "", timeout: float | None = None) -> NewApiKey:
        """Creates an API key. Keep its secret: nothing shows it again."""
        parent = _convert.name_of("tenants", tenant)
        response = await self._caller.unary(
            "AdminService.CreateApiKey", timeout=timeout, parent=parent, display_name=display_name
        )
        return NewApiKey(key=_convert.api_key(response.api_key), secret=response.secret)

    async def list(self, tenant: str | Tenant, *, timeout: float | None = None) -> list[ApiKey]:
        """A tenant's keys, revoked ones too."""
        parent = _convert.name_of("tenants", tenant)
        response = await self._caller.unary("AdminService.ListApiKeys", timeout=timeout, parent=parent)
        return [_convert.api_key(key) for key in response.api_keys]

    async def revoke(self, key: str | ApiKey, *, timeout: float | None = None) -> None:
        """Revokes a key, given as itself or by its full name, at once."""
        name = key.name if isinstance(key, ApiKey) else key
        await self._caller.unary("AdminService.RevokeApiKey", timeout=timeout, name=name)


class AsyncAdmin:
    """`client.admin`."""

    def __init__(self, caller: Caller) -> None:
        self._caller = caller
        self.tenants = AsyncTenants(caller)
        """Tenants."""
        self.keys = AsyncKeys(caller)
        """API keys."""

    async def usage(self, tenant: str | Tenant | None = None, *, timeout: float | None = None) -> TenantUsage:
        """What a tenant holds and has used; the caller's own where None, which needs no admin key."""
        name = "" if tenant is None else _convert.name_of("tenants", tenant)
        return _convert.tenant_usage(await self._caller.unary("AdminService.GetUsage", timeout=timeout, name=name))


class Tenants:
    """`client.admin.tenants`."""

    def __init__(self, inner: AsyncTenants) -> None:
        self._inner = inner

    def create(self, id: str, *, display_name: str = "", timeout: float | None = None) -> Tenant:
        """Creates a tenant."""
        return finish(self._inner.create(id, display_name=display_name, timeout=timeout))

    def get(self, tenant: str | Tenant, *, timeout: float | None = None) -> Tenant:
        """Reads one tenant."""
        return finish(self._inner.get(tenant, timeout=timeout))

    def list(self, *, page_size: int | None = None, timeout: float | None = None) -> Iterator[Tenant]:
        """Iterates all tenants. `timeout` is for each page."""
        return drain(self._inner.list(page_size=page_size, timeout=timeout))


class Keys:
    """`client.admin.keys`."""

    def __init__(self, inner: AsyncKeys) -> None:
        self._inner = inner

    def create(self, tenant: str | Tenant, *, display_name: str = "", timeout: float | None = None) -> NewApiKey:
        """Creates an API key. Keep its secret: nothing shows it again."""
        return finish(self._inner.create(tenant, display_name=display_name, timeout=timeout))

    def list(self, tenant: str | Tenant, *, timeout: float | None = None) -> list[ApiKey]:
        """A tenant's keys, revoked ones too."""
        return finish(self._inner.list(tenant, timeout=timeout))

    def revoke(self, key: str | ApiKey, *, timeout: float | None = None) -> None:
        """Revokes a key, given as itself or by its full name, at once."""
        return finish(self._inner.revoke(key, timeout=timeout))


class Admin:
    """`client.admin`."""

    def __init__(self, inner: AsyncAdmin) -> None:
        self._inner = inner
        self.tenants = Tenants(inner.tenants)
        """Tenants."""
        self.keys = Keys(inner.keys)
        """API keys."""

    def usage(self, tenant: str | Tenant | None = None, *, timeout: float | None = None) -> TenantUsage:
        """What a tenant holds and has used; the caller's own where None, which needs no admin key."""
        return finish(self._inner.usage(tenant, timeout=timeout))
