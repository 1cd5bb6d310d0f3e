"""JobService, and google.longrunning.Operations over the same jobs."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

from google.longrunning import operations_pb2, operations_pb2_grpc
from google.protobuf import empty_pb2

from memoryd.api import convert
from memoryd.api.caller import tenant
from memoryd.api.pages import fitting
from memoryd.errors import InvalidArgument
from memoryd.jobs import JobRunner
from memoryd.store.base import Ledger
from memoryd.v1 import jobs_pb2, jobs_pb2_grpc

_WAIT_SECONDS = 30.0


class JobServicer(jobs_pb2_grpc.JobServiceServicer):
    """What Operations do not offer: watching and retrying."""

    def __init__(self, ledger: Ledger, jobs: JobRunner) -> None:
        self._ledger = ledger
        self._jobs = jobs

    async def WatchJob(self, request: jobs_pb2.WatchJobRequest, context: Any) -> AsyncIterator[jobs_pb2.JobMetadata]:
        async with contextlib.aclosing(self._jobs.watch(tenant(), convert.last(request.name))) as states:
            async for job in states:
                yield convert.job_metadata(job)

    async def RetryJob(self, request: jobs_pb2.RetryJobRequest, context: Any) -> operations_pb2.Operation:
        job = await asyncio.to_thread(self._ledger.retry_job, tenant(), convert.last(request.name))
        self._jobs.wake()
        return convert.operation(job)


class OperationsServicer(operations_pb2_grpc.OperationsServicer):
    """google.longrunning.Operations. Its requests carry no rules of ours, so names are checked here."""

    def __init__(self, ledger: Ledger, jobs: JobRunner) -> None:
        self._ledger = ledger
        self._jobs = jobs

    async def GetOperation(self, request: Any, context: Any) -> operations_pb2.Operation:
        return convert.operation(await asyncio.to_thread(self._ledger.get_job, tenant(), _job_id(request.name)))

    async def ListOperations(self, request: Any, context: Any) -> operations_pb2.ListOperationsResponse:
        if request.page_size < 0 or request.page_size > 1000:
            raise InvalidArgument("page_size: must be between 0 and 1000", reason="INVALID_FIELD")
        if request.filter:  # ignored, it would give jobs that were not asked for
            raise InvalidArgument("filter: must be empty, jobs are listed all and oldest first", reason="INVALID_FIELD")
        return await fitting(
            request.page_size,
            lambda size: self._ledger.list_jobs(tenant(), size, request.page_token),
            lambda page: operations_pb2.ListOperationsResponse(
                operations=[convert.operation(j) for j in page.items], next_page_token=page.next_token
            ),
        )

    async def CancelOperation(self, request: Any, context: Any) -> empty_pb2.Empty:
        await self._jobs.cancel(tenant(), _job_id(request.name))
        return empty_pb2.Empty()

    async def WaitOperation(self, request: Any, context: Any) -> operations_pb2.Operation:
        """Returns when the job ends or the timeout is over, whichever is first, with the state of then."""
        job_id = _job_id(request.name)
        seconds = float(request.timeout.seconds) if request.HasField("timeout") else _WAIT_SECONDS  # of any size
        seconds += request.timeout.nanos / 1e9
        job = await asyncio.to_thread(self._ledger.get_job, tenant(), job_id)
        with contextlib.suppress(TimeoutError):
            async with (
                asyncio.timeout(max(0.0, seconds)),
                contextlib.aclosing(self._jobs.watch(tenant(), job_id)) as states,
            ):
                async for state in states:
                    job = state
        return convert.operation(job)


def _job_id(name: str) -> str:
    prefix, _, job = name.partition("/")
    if prefix != "operations" or not job or "/" in job:
        raise InvalidArgument("name: must be operations/{operation}", reason="INVALID_FIELD")
    return job
