"""Who may ask a server with a page: checks of Host, Origin and token before any request is answered."""

import hmac
import ipaddress
import socket
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from typing import NamedTuple
from urllib.parse import parse_qs, urlsplit

from starlette.responses import PlainTextResponse
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
"""Of every response of a page's own server."""
API_HEADERS = {
    name: HEADERS[name] for name in ("x-content-type-options", "cache-control", "cross-origin-resource-policy")
}
"""Of responses to programs."""
PAGE = "/"
"""Path of the page. Any site may link to it; everything else is for its own scripts, and for programs."""

Refuse = Callable[[int, str, Mapping[str, str] | None], ASGIApp]
"""Makes a response from a status, a sentence and headers."""


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


def refuse_in_words(status: int, what: str, headers: Mapping[str, str] | None = None) -> ASGIApp:
    """Return a refusal as plain text."""
    return PlainTextResponse(f"{what}\n", status, headers)


class _Asked(NamedTuple):
    """The headers of a request that decide; None where one is missing."""

    host: str | None
    origin: str | None
    site: str | None
    authorization: str | None
    cookie: str | None
    ours: str | None


_NAMES = {
    b"host": "host",
    b"origin": "origin",
    b"sec-fetch-site": "site",
    b"authorization": "authorization",
    b"cookie": "cookie",
    HEADER.encode(): "ours",
}
_UNLIKE_HOSTS = frozenset("@/?#\\ ")
"""Characters of other parts of an address."""
_NOTHING = dict[str, str | None].fromkeys(_Asked._fields)


class Guard:
    """Answers what is not allowed, passes on the rest, and adds `HEADERS` to every response.

    * Host: a page of another site that points its own name at this machine (DNS rebinding) is refused.
    * Origin: that of our own page. A browser that says that another site asks (Origin, Sec-Fetch-Site) gets nothing
      but the page. Unless programs may ask, whatever changes something also needs `HEADER`, which no form can send.
    * Token, if there is one: as bearer, as cookie, or once as `?token=` of the page, which then sets the cookie.

    Args:
        app: What is guarded.
        names: Host names that may stand in an address; "*" stands for every name.
        loopback: Whether the server is bound to this machine alone; then only its own addresses may stand there.
        token: What a browser or program has to know; None lets everyone in.
        cookie: Name of the cookie; two servers on one host need two.
        verb: The command that runs the server, for messages.
        programs: Whether requests that come from no browser may change something, too.
        open_paths: Paths for which no token is needed, such as those of health checks.
        refuse: Makes the response of a refusal.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        names: Iterable[str],
        loopback: bool,
        token: str | None = None,
        cookie: str = "multibox",
        verb: str = "monitor",
        programs: bool = False,
        open_paths: Iterable[str] = (),
        refuse: Refuse = refuse_in_words,
    ) -> None:
        self.app = app
        self.names = frozenset(name.lower() for name in names)
        self.loopback = loopback
        self.token = None if token is None else token.encode()
        self.cookie = cookie
        self.verb = verb
        self.programs = programs
        self.open_paths = frozenset(open_paths)
        self.refuse = refuse
        self.page_headers = _encoded(HEADERS)
        self.other_headers = _encoded(API_HEADERS) if programs else self.page_headers
        self._is_own = lru_cache(64)(self._names_us)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: D102 - an ASGI application
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self.app(scope, receive, send)
            return
        # Only the page itself takes a token from its address; it sets the cookie for all that follows
        is_page = scope["path"] == PAGE
        shown = _shown_token(scope) if is_page and self.token is not None else None
        welcome = shown is not None and self._knows(shown)
        headers = self.page_headers if is_page else self.other_headers
        if welcome:
            cookie = f"{self.cookie}={shown}; HttpOnly; SameSite=Strict; Path=/"
            headers = [*headers, (b"set-cookie", cookie.encode("latin-1"))]

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), *headers]
            await send(message)

        answer = self._refusal(scope, welcome)
        await (self.app if answer is None else answer)(scope, receive, with_headers)

    def _refusal(self, scope: Scope, welcome: bool) -> ASGIApp | None:
        asked = _asked(scope)
        # Every browser names a host; only an old program does not
        if not (self.programs and asked.host is None) and not self._is_own(asked.host or ""):
            return self.refuse(421, "The Host header names no address of this server.", None)
        path = scope["path"]
        if self.token is not None and not welcome and path not in self.open_paths and not self._is_known(asked):
            return self.refuse(401, self._wanted(asked, scope), {"www-authenticate": "Bearer"})
        if not self._may_ask(asked, scope):
            return self.refuse(403, f"Only the page of `multibox {self.verb}` may ask for this from a browser.", None)
        return None

    def _wanted(self, asked: _Asked, scope: Scope) -> str:
        """Return what to say to a request without the right token."""
        is_page = scope["path"] == PAGE
        if not self.programs:
            # The address that it printed holds the token
            return (
                f"This page needs the token that `multibox {self.verb}` printed: open the address as it stands there."
            )
        wrong = _bearer(asked) or (is_page and _shown_token(scope))
        what = "The token is wrong" if wrong else "This page needs a token" if is_page else "A token is needed"
        how = "open it as /?token=TOKEN" if is_page else "send the header `Authorization: Bearer TOKEN`"
        return f"{what}: {how}, with the token that MULTIBOX_TOKEN or --token gave to `multibox {self.verb}`."

    def _may_ask(self, asked: _Asked, scope: Scope) -> bool:
        """Tell whether the request comes from our own page or, where they may ask, from a program."""
        reads = scope["method"] in ("GET", "HEAD")
        # Anybody may link to the page; the rest is for its own scripts and images
        if scope["path"] != PAGE and asked.site not in (None, "same-origin", "none"):
            return False
        if self.programs:
            return asked.origin is None or self._is_own_origin(asked)
        # A request without Origin comes from no browser; it still has to send the header
        return reads or (asked.ours is not None and (asked.origin is None or self._is_own_origin(asked)))

    def _is_own_origin(self, asked: _Asked) -> bool:
        return asked.origin in (f"http://{asked.host}", f"https://{asked.host}")

    def _names_us(self, host: str) -> bool:
        if not _UNLIKE_HOSTS.isdisjoint(host):
            return False
        try:
            name = (urlsplit(f"//{host}").hostname or "").rstrip(".")
        except ValueError:
            return False
        if name in self.names or (name and "*" in self.names):
            return True
        try:
            address = ipaddress.ip_address(name)
        except ValueError:
            return False
        return address.is_loopback or not self.loopback

    def _is_known(self, asked: _Asked) -> bool:
        if self._knows(_bearer(asked)):
            return True
        return asked.cookie is not None and self._knows(_cookie(asked.cookie, self.cookie))

    def _knows(self, token: str) -> bool:
        return self.token is not None and hmac.compare_digest(token.encode("utf-8", "replace"), self.token)


def _asked(scope: Scope) -> _Asked:
    found = dict(_NOTHING)
    for name, value in scope["headers"]:
        key = _NAMES.get(name)
        if key is not None:
            found[key] = value.decode("latin-1")
    return _Asked(**found)


def _bearer(asked: _Asked) -> str:
    scheme, _, token = (asked.authorization or "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else ""


def _shown_token(scope: Scope) -> str | None:
    try:
        return parse_qs(scope["query_string"].decode("latin-1"), max_num_fields=20).get("token", [None])[-1]
    except ValueError:
        return None


def _cookie(header: str, name: str) -> str:
    for part in header.split(";"):
        key, _, value = part.strip().partition("=")
        if key == name:
            return value.strip('"')
    return ""


def _encoded(headers: Mapping[str, str]) -> list[tuple[bytes, bytes]]:
    return [(name.encode(), value.encode()) for name, value in headers.items()]
