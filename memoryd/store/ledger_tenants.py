"""Tenants, their keys, and what they used."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Connection, RowMapping, func, insert, select, update

from memoryd.core import ApiKey, Tenant, Usage, new_id, now
from memoryd.errors import AlreadyExists, NotFound
from memoryd.store.base import Page
from memoryd.store.ledger_part import LedgerPart, require_tenant
from memoryd.store.paging import read_page
from memoryd.store.schema import api_keys, documents, memories, tenants


class TenantRows(LedgerPart):
    """The part of the ledger that holds tenants, API keys and usage."""

    def create_tenant(self, tenant: str, display_name: str) -> Tenant:
        def change(conn: Connection) -> Tenant:
            if conn.execute(select(tenants.c.tenant).where(tenants.c.tenant == tenant)).first() is not None:
                raise AlreadyExists("there is a tenant of that id")
            return _insert(conn, tenant, display_name)

        return self._db.write(change)

    def ensure_tenant(self, tenant: str) -> None:
        def change(conn: Connection) -> None:
            if conn.execute(select(tenants.c.tenant).where(tenants.c.tenant == tenant)).first() is None:
                _insert(conn, tenant, "")

        self._db.write(change)

    def get_tenant(self, tenant: str) -> Tenant:
        row = self._db.read(lambda conn: conn.execute(select(tenants).where(tenants.c.tenant == tenant)).mappings().first())
        if row is None:
            raise NotFound("no such tenant")
        return _tenant(row)

    def list_tenants(self, page_size: int, page_token: str) -> Page[Tenant]:
        return self._db.read(
            lambda conn: read_page(
                conn,
                select(tenants),
                [tenants.c.create_time, tenants.c.tenant],
                _tenant,
                scope=["tenants"],
                page_size=page_size,
                page_token=page_token,
            )
        )

    def create_key(self, tenant: str, display_name: str, secret_sha256: str, prefix: str) -> ApiKey:
        key = ApiKey(tenant, new_id(), display_name, prefix, now())

        def change(conn: Connection) -> None:
            require_tenant(conn, tenant)
            conn.execute(
                insert(api_keys).values(
                    tenant=tenant,
                    id=key.id,
                    display_name=display_name,
                    prefix=prefix,
                    secret_sha256=secret_sha256,
                    create_time=key.create_time,
                )
            )

        self._db.write(change)
        return key

    def find_key(self, secret_sha256: str) -> ApiKey | None:
        row = self._db.read(
            lambda conn: conn.execute(select(api_keys).where(api_keys.c.secret_sha256 == secret_sha256)).mappings().first()
        )
        return None if row is None else _key(row)

    def list_keys(self, tenant: str) -> Sequence[ApiKey]:
        query = select(api_keys).where(api_keys.c.tenant == tenant).order_by(api_keys.c.create_time, api_keys.c.id)
        return [_key(row) for row in self._db.read(lambda conn: conn.execute(query).mappings().all())]

    def revoke_key(self, tenant: str, key: str) -> None:
        this = (api_keys.c.tenant == tenant) & (api_keys.c.id == key)

        def change(conn: Connection) -> None:
            if conn.execute(select(api_keys.c.id).where(this)).first() is None:
                raise NotFound("no such key")
            conn.execute(update(api_keys).where(this, api_keys.c.revoke_time.is_(None)).values(revoke_time=now()))

        self._db.write(change)

    def add_usage(
        self, tenant: str, *, answers: int = 0, searches: int = 0, prompt_tokens: int = 0, output_tokens: int = 0
    ) -> None:
        statement = (
            update(tenants)
            .where(tenants.c.tenant == tenant)
            .values(
                answers=tenants.c.answers + answers,
                searches=tenants.c.searches + searches,
                prompt_tokens=tenants.c.prompt_tokens + prompt_tokens,
                output_tokens=tenants.c.output_tokens + output_tokens,
            )
        )
        self._db.write(lambda conn: conn.execute(statement))

    def usage(self, tenant: str) -> Usage:
        def query(conn: Connection) -> Usage:
            used = conn.execute(select(tenants).where(tenants.c.tenant == tenant)).mappings().first()
            if used is None:
                return Usage()
            held = conn.execute(
                select(
                    func.count(),
                    func.coalesce(func.sum(documents.c.size_bytes), 0),
                    func.coalesce(func.sum(documents.c.passage_count), 0),
                ).where(documents.c.tenant == tenant, documents.c.tombstone == "")
            ).one()
            count = select(func.count()).select_from(memories)
            return Usage(
                memories=conn.execute(count.where(memories.c.tenant == tenant, memories.c.tombstone == "")).scalar_one(),
                documents=int(held[0]),
                text_bytes=int(held[1]),
                passages=int(held[2]),
                answers=used["answers"],
                searches=used["searches"],
                prompt_tokens=used["prompt_tokens"],
                output_tokens=used["output_tokens"],
            )

        return self._db.read(query)


def _insert(conn: Connection, tenant: str, display_name: str) -> Tenant:
    made = Tenant(tenant, display_name, now())
    conn.execute(insert(tenants).values(tenant=tenant, display_name=display_name, create_time=made.create_time))
    return made


def _tenant(row: RowMapping) -> Tenant:
    return Tenant(row["tenant"], row["display_name"], row["create_time"])


def _key(row: RowMapping) -> ApiKey:
    return ApiKey(row["tenant"], row["id"], row["display_name"], row["prefix"], row["create_time"], row["revoke_time"])
