"""The database, as the doors use it: one short transaction in a thread."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Event
from typing import TypeVar

from sqlalchemy import Connection, Engine
from sqlmodel import Session

T = TypeVar("T")


class _GivenUpError(RuntimeError):
    """Nobody waits for what a transaction does."""


class Database:
    """As many threads as there are connections, so that no thread waits for one."""

    def __init__(self, engine: Engine, threads: int) -> None:
        self.engine = engine
        self._reading = engine.execution_options(isolation_level="AUTOCOMMIT")
        self._threads = ThreadPoolExecutor(threads, "database")

    async def __call__(self, work: Callable[[Session], T]) -> T:
        """Do some work in one transaction, committed where it ends well; its rows may be read afterwards."""
        given_up = Event()
        try:
            return await asyncio.get_running_loop().run_in_executor(
                self._threads, self._transaction, work, given_up
            )
        except asyncio.CancelledError:
            # Who asked is told that there was no answer in time: what is not committed by now must not be.
            given_up.set()
            raise

    async def read(self, work: Callable[[Connection], T]) -> T:
        """Do one read, in no transaction: to begin and end one would cost as much as the read itself."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, self._read, work)

    def _read(self, work: Callable[[Connection], T]) -> T:
        with self._reading.connect() as connection:
            return work(connection)

    def _transaction(self, work: Callable[[Session], T], given_up: Event) -> T:
        with Session(self.engine, expire_on_commit=False) as session, session.begin():
            done = work(session)
            if given_up.is_set():
                raise _GivenUpError
            return done

    def close(self) -> None:
        """Let what is at work end, and close the connections."""
        self._threads.shutdown(cancel_futures=True)
        self.engine.dispose()
