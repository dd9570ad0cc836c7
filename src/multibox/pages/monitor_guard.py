"""Who may ask the monitor's server: checks of Host, Origin and token before any request is answered."""

import hmac
import ipaddress
import socket
from collections.abc import Iterable
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from multibox.pages.page import policy

HEADER = "x-multibox"
"""A header that scripts of our page send and that no form or link of another page can."""
HEADERS = {
    "x-content-type-options": "nosniff",
    "content-security-policy": f"{policy(True)}; frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
    "cache-control": "no-store",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
}
"""Of every response."""
NO_TOKEN = "This page needs the token that `multibox monitor` printed: open the address as it stands there.\n"


def is_loopback(host: str) -> bool:
    """Return whether all addresses of a host belong to this machine alone."""
    try:
        found = socket.getaddrinfo(host, None)
    except OSError:
        return False
    return all(ipaddress.ip_address(str(address[4][0]).partition("%")[0]).is_loopback for address in found)


def known_names(host: str) -> frozenset[str]:
    """Return the names under which a server bound to `host` may be asked; any address in digits may be used as well."""
    own = {"localhost", host.lower().strip("[]")}
    if not is_loopback(host):
        name = socket.gethostname().lower()
        own |= {name, socket.getfqdn().lower(), f"{name}.local"}
    return frozenset(own)


class Guard:
    """Answers what is not allowed, passes on the rest, and adds `HEADERS` to every response.

    * Host: a page of another site that points its own name at this machine (DNS rebinding) is refused.
    * Origin of a POST: that of our own page; and `HEADER`, which a form cannot send. A browser that says that another
      page asks (Sec-Fetch-Site) gets nothing but the page.
    * Token, if there is one: as bearer, as cookie, or once as `?token=` of the page, which then sets the cookie.

    Args:
        app: What is guarded.
        names: Host names that may stand in an address.
        loopback: Whether the server is bound to this machine alone; then only its own addresses may stand there.
        token: What a browser has to know; None lets everyone in.
        cookie: Name of the cookie; two servers on one host need two.
    """

    def __init__(
        self, app: ASGIApp, *, names: Iterable[str], loopback: bool, token: str | None = None, cookie: str = "multibox"
    ) -> None:
        self.app = app
        self.names = frozenset(names)
        self.loopback = loopback
        self.token = token
        self.cookie = cookie

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: D102 - an ASGI application
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self.app(scope, receive, send)
            return
        request = Request(scope)
        # Only the page itself takes a token from its address; it sets the cookie for all that follows
        shown = request.query_params.get("token") if scope["path"] == "/" else None
        welcome = shown is not None and self._knows(shown)

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers[name] = value
                if welcome:
                    headers.append("set-cookie", f"{self.cookie}={shown}; HttpOnly; SameSite=Strict; Path=/")
            await send(message)

        answer = self._refusal(request, welcome)
        await (self.app if answer is None else answer)(scope, receive, with_headers)

    def _refusal(self, request: Request, welcome: bool) -> Response | None:
        headers = request.headers
        if not self._is_own(headers.get("host", "")):
            return PlainTextResponse("The Host header names no address of this server.\n", 421)
        if self.token is not None and not welcome and not self._is_known(request):
            return PlainTextResponse(NO_TOKEN, 401, {"www-authenticate": "Bearer"})
        # Anybody may link to the page; the rest is for its own scripts and images
        elsewhere = request.url.path != "/" and headers.get("sec-fetch-site", "none") not in ("same-origin", "none")
        if elsewhere or (request.method not in ("GET", "HEAD") and not self._from_own_page(headers)):
            return PlainTextResponse("Only the monitor's own page may ask for this.\n", 403)
        return None

    def _is_own(self, host: str) -> bool:
        try:
            name = (urlsplit(f"//{host}").hostname or "").rstrip(".")
        except ValueError:
            return False
        if name in self.names:
            return True
        try:
            address = ipaddress.ip_address(name)
        except ValueError:
            return False
        return address.is_loopback or not self.loopback

    def _is_known(self, request: Request) -> bool:
        scheme, _, bearer = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer" and self._knows(bearer.strip()):
            return True
        return self._knows(request.cookies.get(self.cookie, ""))

    def _knows(self, token: str) -> bool:
        return self.token is not None and hmac.compare_digest(token.encode("utf-8", "replace"), self.token.encode())

    def _from_own_page(self, headers: Headers) -> bool:
        # A request without Origin comes from no browser; it still has to send the header
        own = [None, *(f"{scheme}://{headers.get('host')}" for scheme in ("http", "https"))]
        return HEADER in headers and headers.get("origin") in own
