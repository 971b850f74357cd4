"""A thousand clients at once on loopback, each once: none is left without an answer."""

from __future__ import annotations

import asyncio
import resource
from collections.abc import Iterator

import pytest

CLIENTS = 1000


@pytest.fixture
def many_files() -> Iterator[None]:
    """Both ends of all connections are in this process."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 4 * CLIENTS)), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def one(port: int, number: int, together: asyncio.Barrier) -> bytes:
    """The status line of one client's answer, whose body came whole."""
    await together.wait()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    asked = f"GET /api/search?q=dog+{number % 50}&k=5 HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nConnection: close\r\n\r\n"
    writer.write(asked.encode())
    await writer.drain()
    head, _, body = (await reader.read()).partition(b"\r\n\r\n")
    writer.close()
    assert body.startswith(b"[{") and body.endswith(b"}]")
    return head.split(b"\r\n", 1)[0]


def test_nobody_is_left_without_an_answer(many_files: None, port: int) -> None:
    async def all_of_them() -> list[bytes]:
        together = asyncio.Barrier(CLIENTS)
        return await asyncio.wait_for(asyncio.gather(*(one(port, n, together) for n in range(CLIENTS))), 120)

    assert asyncio.run(all_of_them()) == [b"HTTP/1.1 200 OK"] * CLIENTS
