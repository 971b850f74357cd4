"""Requests that no page of the server's own would make: each is answered, and so is the next one."""

from __future__ import annotations

import socket
import urllib.request
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from clip_distill.photosearch.engine import Engine

testclient = pytest.importorskip("starlette.testclient")
server = pytest.importorskip("clip_distill.photosearch.server")

WORDS = st.one_of(st.text(max_size=30), st.sampled_from(["9" * 400 + ":dog", "1e9:x", "-", "+ +", "2:", "\0", "-a -b"]))
KEYS = st.sampled_from(["q", "k", "first", "like", "folder", "since", "until", "fold", "by", "token", "x"])
PATHS = st.one_of(
    st.sampled_from(["/", "/api/search", "/api/latest", "/api/status", "/photo/1", "/thumb/99999999999999999999"]),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=20).map(lambda text: "/" + quote(text)),
    st.sampled_from(["/../../etc/passwd", "/photo/..%2f..%2fetc%2fpasswd", "//etc/passwd", "/%00", "/thumb/-1"]),
)
HEADERS = st.dictionaries(
    st.sampled_from(["cookie", "authorization", "origin", "sec-fetch-site", "content-type", "range", "host"]),
    st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=40),
    max_size=3,
)


def asked(engine: Engine, token: str | None) -> Any:
    app: Any = server.make_app(engine, {"127.0.0.1"}, token)
    return testclient.TestClient(app, base_url="http://127.0.0.1:8321", raise_server_exceptions=False)


@pytest.mark.parametrize("token", [None, "secret"])
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    path=PATHS,
    query=st.dictionaries(KEYS, WORDS, max_size=4),
    headers=HEADERS,
    body=st.none() | st.binary(max_size=60),
    method=st.sampled_from(["GET", "POST", "PUT", "HEAD", "OPTIONS"]),
)
def test_every_request_is_answered(
    path: str,
    query: dict[str, str],
    headers: dict[str, str],
    body: bytes | None,
    method: str,
    token: str | None,
    engine: Engine,
) -> None:
    client = asked(engine, token)
    try:
        answer = client.request(method, path, params=query, headers=headers, content=body)
    except (ValueError, UnicodeError) as error:  # no client could send it
        assert "server" not in str(error)
        return
    assert answer.status_code < 500, answer.text
    assert b"root:" not in answer.content
    good = client.get("/api/search", params={"q": "red"}, headers={"authorization": f"Bearer {token}"})
    assert good.status_code == 200


def test_clients_that_never_end_their_requests_keep_nobody_waiting(port: int) -> None:
    beginnings = [
        b"GET /api/status HT",
        b"POST /api/search?k=3 HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 999\r\n\r\nx",
    ]
    slow = []
    try:
        for number in range(200):
            connection = socket.create_connection(("127.0.0.1", port), timeout=10)
            connection.sendall(beginnings[number % 2])
            slow.append(connection)
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/api/search?q=red", timeout=30) as answer:
            assert answer.status == 200
    finally:
        for connection in slow:
            connection.close()
