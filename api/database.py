"""The HTTP API's access to the database: one short transaction per call, in a thread."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Event
from typing import TypeVar

from sqlalchemy import Connection, Engine
from sqlmodel import Session

T = TypeVar("T")


class _AbandonedError(RuntimeError):
    """A transaction is rolled back because its request was already answered."""


class Database:
    """Runs database work in as many threads as there are connections, so that no thread waits for one."""

    def __init__(self, engine: Engine, threads: int) -> None:
        self.engine = engine
        self._autocommit = engine.execution_options(isolation_level="AUTOCOMMIT")
        self._threads = ThreadPoolExecutor(threads, "database")

    async def __call__(self, work: Callable[[Session], T]) -> T:
        """Run some work in one transaction, committed unless the work raises. Its rows stay readable."""
        abandoned = Event()
        try:
            return await asyncio.get_running_loop().run_in_executor(
                self._threads, self._transaction, work, abandoned
            )
        except asyncio.CancelledError:
            # The caller receives a timeout as its response, so nothing may be committed after it.
            abandoned.set()
            raise

    async def read(self, work: Callable[[Connection], T]) -> T:
        """Run one query without a transaction: beginning and ending one would double its duration."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, self._read, work)

    def _read(self, work: Callable[[Connection], T]) -> T:
        with self._autocommit.connect() as connection:
            return work(connection)

    def _transaction(self, work: Callable[[Session], T], abandoned: Event) -> T:
        with Session(self.engine, expire_on_commit=False) as session, session.begin():
            result = work(session)
            if abandoned.is_set():
                raise _AbandonedError
            return result

    def close(self) -> None:
        """Wait for the work in progress, and close the connections."""
        self._threads.shutdown(cancel_futures=True)
        self.engine.dispose()
