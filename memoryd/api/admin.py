"""AdminService: tenants, their keys, what they use."""

from __future__ import annotations

import asyncio
from typing import Any

from google.protobuf import empty_pb2

from memoryd.api import caller, convert
from memoryd.api.auth import hash_secret, new_secret
from memoryd.api.pages import USUAL
from memoryd.store.base import Ledger
from memoryd.usage import UsageMeter
from memoryd.v1 import admin_pb2, admin_pb2_grpc

_SHOWN = 11  # characters of a key that may be shown again: `mk_` and 8 more


class AdminServicer(admin_pb2_grpc.AdminServiceServicer):
    """All but the caller's own usage asks for the admin key."""

    def __init__(self, ledger: Ledger, usage: UsageMeter) -> None:
        self._ledger = ledger
        self._usage = usage

    async def CreateTenant(self, request: admin_pb2.CreateTenantRequest, context: Any) -> admin_pb2.Tenant:
        caller.require_admin()
        tenant = await asyncio.to_thread(self._ledger.create_tenant, request.tenant_id, request.display_name)
        return convert.tenant(tenant)

    async def GetTenant(self, request: admin_pb2.GetTenantRequest, context: Any) -> admin_pb2.Tenant:
        caller.require_admin()
        return convert.tenant(await asyncio.to_thread(self._ledger.get_tenant, convert.last(request.name)))

    async def ListTenants(self, request: admin_pb2.ListTenantsRequest, context: Any) -> admin_pb2.ListTenantsResponse:
        caller.require_admin()
        page = await asyncio.to_thread(self._ledger.list_tenants, request.page_size or USUAL, request.page_token)
        return admin_pb2.ListTenantsResponse(tenants=[convert.tenant(t) for t in page.items], next_page_token=page.next_token)

    async def CreateApiKey(self, request: admin_pb2.CreateApiKeyRequest, context: Any) -> admin_pb2.CreateApiKeyResponse:
        caller.require_admin()
        secret = new_secret()
        key = await asyncio.to_thread(
            self._ledger.create_key,
            convert.last(request.parent),
            request.display_name,
            hash_secret(secret),
            secret[:_SHOWN],
        )
        return admin_pb2.CreateApiKeyResponse(api_key=convert.api_key(key), secret=secret)

    async def ListApiKeys(self, request: admin_pb2.ListApiKeysRequest, context: Any) -> admin_pb2.ListApiKeysResponse:
        caller.require_admin()
        tenant = await asyncio.to_thread(self._ledger.get_tenant, convert.last(request.parent))
        keys = await asyncio.to_thread(self._ledger.list_keys, tenant.id)
        return admin_pb2.ListApiKeysResponse(api_keys=[convert.api_key(k) for k in keys])

    async def RevokeApiKey(self, request: admin_pb2.RevokeApiKeyRequest, context: Any) -> empty_pb2.Empty:
        caller.require_admin()
        _, tenant, _, key = request.name.split("/")
        await asyncio.to_thread(self._ledger.revoke_key, tenant, key)
        return empty_pb2.Empty()

    async def GetUsage(self, request: admin_pb2.GetUsageRequest, context: Any) -> admin_pb2.Usage:
        own = not request.name or convert.last(request.name) == caller.current().tenant
        if own:
            tenant = caller.tenant()
        else:
            caller.require_admin()
            tenant = (await asyncio.to_thread(self._ledger.get_tenant, convert.last(request.name))).id
        usage = await asyncio.to_thread(self._usage.usage, tenant)
        return admin_pb2.Usage(
            tenant=f"tenants/{tenant}",
            memories=usage.memories,
            documents=usage.documents,
            text_bytes=usage.text_bytes,
            passages=usage.passages,
            answers=usage.answers,
            searches=usage.searches,
            prompt_tokens=usage.prompt_tokens,
            output_tokens=usage.output_tokens,
        )
