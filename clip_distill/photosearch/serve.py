"""Run the server: a socket, the names it goes by, a token where others can reach it, the index behind it."""

from __future__ import annotations

import ipaddress
import secrets
import socket
import threading
import webbrowser

import psutil
import uvicorn

from clip_distill.photosearch.engine import Engine
from clip_distill.photosearch.server import make_app
from clip_distill.system.errors import Error, InvalidValue
from clip_distill.system.talk import on_terminal, say

PORT = 8321
WAITING = 2048  # connections that the system holds until they are taken


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach it."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def bound(host: str, port: int | None) -> socket.socket:
    """A socket that listens; without a port, the usual one, or any free one.

    Raises:
        InvalidValue: The port is taken, or the host is none of this machine.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    for wanted in (port,) if port is not None else (PORT, 0):
        opened = socket.socket(family, socket.SOCK_STREAM)
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            opened.bind((host, wanted))
            opened.listen(WAITING)
            return opened
        except OSError as error:
            opened.close()
            reason = error
    raise InvalidValue(f"--host {host} --port {port}: expected an address to listen at, found: {reason}")


def names_of(host: str) -> set[str]:
    """What a request may call this server."""
    if is_loopback(host):
        return {"127.0.0.1", "localhost", "[::1]", host}
    addresses = {each.address.split("%")[0] for found in psutil.net_if_addrs().values() for each in found}
    ips = {f"[{address}]" if ":" in address else address for address in addresses}
    return {"localhost", host, socket.gethostname().lower(), socket.getfqdn().lower()} | ips


def serve(engine: Engine, host: str, port: int | None, token: str | None, show: bool) -> None:
    """Serve until interrupted; the index is brought up to date meanwhile.

    Args:
        engine: What answers.
        host: Where to listen; elsewhere than on loopback a token is needed, and made where none is given.
        port: None for the usual one, or any that is free.
        token: What every request must bring.
        show: Open the page in a browser.

    Raises:
        InvalidValue: The address can't be listened at.
    """
    if token is None and not is_loopback(host):
        token = secrets.token_urlsafe(16)
    listening = bound(host, port)
    shown = "127.0.0.1" if host in ("0.0.0.0", "::") else f"[{host}]" if ":" in host else host
    address = f"http://{shown}:{listening.getsockname()[1]}/" + (f"?token={token}" if token else "")
    say(f"search your photos at {address} (Ctrl-C ends)")

    def follow() -> None:
        try:
            state = engine.bring_up_to_date()
            say(state.line(), *state.skips.lines())
        except Error as error:
            engine.state.error = str(error)
            say(f"indexing stopped: {error}")

    behind = threading.Thread(target=follow, daemon=True)
    behind.start()
    if show and on_terminal():
        webbrowser.open(address)
    options = uvicorn.Config(
        make_app(engine, names_of(host), token),
        log_level="warning",
        server_header=False,
        date_header=False,
        lifespan="off",
        timeout_graceful_shutdown=2,
    )
    try:
        uvicorn.Server(options).run(sockets=[listening])
    finally:
        engine.stop.set()
        behind.join()  # the batch at hand is kept
