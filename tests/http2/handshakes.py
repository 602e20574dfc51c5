"""TLS: which versions, which protocol, and that nothing else is let in. The server
of these cases has a certificate."""

import ssl

from server import case, flood
from wire import PREFACE, check, message, request


def client(server, alpn=("h2",)):
    tls = ssl.create_default_context(cafile=server.certificate)
    tls.set_alpn_protocols(alpn)
    return tls


@case
def tls_1_2_and_1_3_are_served(server):
    for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
        tls = client(server, ("h2", "http/1.1"))
        tls.minimum_version = tls.maximum_version = version
        with server.connect(tls=tls) as c:
            check(c.socket.selected_alpn_protocol() == "h2", c.socket.selected_alpn_protocol())
            answer = c.call(request(scheme="https"), message())
            check(answer.code == 0, answer)


@case
def older_tls_is_refused(server):
    for version in (ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1):
        tls = client(server)
        # OpenSSL would refuse by itself.
        tls.set_ciphers("ALL:@SECLEVEL=0")
        tls.minimum_version = tls.maximum_version = version
        refused(server, tls)


@case
def weak_ciphers_are_refused(server):
    """Section 9.2.2: nothing without forward secrecy or with CBC."""
    for ciphers in ("AES128-GCM-SHA256", "ECDHE-RSA-AES128-SHA:ECDHE-ECDSA-AES128-SHA", "AES256-SHA"):
        tls = client(server)
        tls.set_ciphers(f"{ciphers}:@SECLEVEL=0")
        tls.maximum_version = ssl.TLSVersion.TLSv1_2
        refused(server, tls)


@case
def another_protocol_than_h2_is_refused(server):
    """By the alert that RFC 7301 has for it, section 3.2."""
    for alpn in (("http/1.1",), ("h3", "spdy/3"), ("h2c",)):
        refused(server, client(server, alpn), "no application protocol")


@case
def plaintext_is_refused(server):
    with server.connect(begin=False) as c:
        c.send_bytes(PREFACE)
        try:
            seen = c.socket.recv(4096)
        except ConnectionError:
            seen = b""
        # An alert of TLS, or nothing.
        check(not seen or seen[0] == 0x15, f"{seen!r}")


def refused(server, tls, why="alert"):
    """By the server, which says so."""
    try:
        with server.connect(tls=tls):
            pass
    except ssl.SSLError as error:
        check(why in str(error).lower(), f"{why}: {error}")
    else:
        check(False, f"{why}: let in")


@flood
def handshakes_that_are_not_finished(server):
    """Silence, half a hello, nonsense."""
    hello = ssl.MemoryBIO()
    begun = client(server).wrap_bio(ssl.MemoryBIO(), hello, server_hostname="localhost")
    try:
        begun.do_handshake()
    except ssl.SSLWantReadError:
        pass
    hello = hello.read()
    opened = []
    for sent in (b"", hello[:50], hello, b"\x16\x03\x01\xff\xff" + b"\0" * 100) * 50:
        c = server.connect(begin=False)
        c.send_bytes(sent)
        opened.append(c)
    for c in opened:
        c.socket.settimeout(15)
        try:
            while c.socket.recv(65536):
                pass
        except ConnectionError:
            pass
        c.socket.close()
