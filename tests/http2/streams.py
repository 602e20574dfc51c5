"""What HTTP/2 asks of a server (RFC 9113), of one connection at a time: limits,
malformed frames and requests, and how long anything may take."""

import socket
import time

from hyperframe import frame as frames
from server import case
from wire import (
    COMPRESSION_ERROR,
    ENHANCE_YOUR_CALM,
    FLOW_CONTROL_ERROR,
    FRAME_SIZE_ERROR,
    GET_JWKS,
    NO_ERROR,
    PREFACE,
    PROTOCOL_ERROR,
    REFUSED_STREAM,
    WATCH,
    WHOAMI,
    Closed,
    check,
    message,
    raw,
    request,
)


def closed(connection, *codes, timeout=15):
    """Ended by the server, within so long, with one of these codes."""
    said = connection.until_closed(timeout)
    check(said in codes, f"ended by {said}, not one of {codes}; saw {connection.counts}")


@case
def more_streams_than_allowed_are_refused_and_the_connection_lives(server):
    """The server of this case allows 8."""
    with server.connect() as c:
        open_streams = [c.open(request(), end=False) for _ in range(8)]
        for _ in range(100):
            answer = c.answer(c.open(request(), message()))
            check(answer.reset == REFUSED_STREAM, answer)
        for stream in open_streams:
            c.send(frames.DataFrame(stream, data=message(), flags=["END_STREAM"]))
            check(c.answer(stream).code == 0)
        server.must_serve(c)


@case
def what_the_server_says_first(server):
    """The limits of its SETTINGS."""
    with server.connect() as c:
        first = c.receive()
        check(isinstance(first, frames.SettingsFrame), first)
        said = {key: first.settings.get(key) for key in (3, 4, 6)}
        check(said == {3: 128, 4: 65536, 6: 16384}, first.settings)
        check(first.settings.get(5, 16384) == 16384, first.settings)
        check(first.settings.get(8, 0) == 0, "CONNECT with a protocol")


@case
def a_header_list_over_its_limit_is_refused_and_the_connection_lives(server):
    with server.connect() as c:
        for _ in range(20):
            answer = c.call(request(GET_JWKS, ("x-much", "y" * 12_000), ("x-more", "z" * 12_000)), message())
            check(answer.http == 431 or answer.reset is not None, answer)
        server.must_serve(c)


@case
def a_header_list_far_over_its_limit_ends_the_connection(server):
    with server.connect() as c:
        block = c.block(request() + [(f"x-{n}", "y" * 4000) for n in range(20)])
        c.send(frames.HeadersFrame(1, data=block[:16384]))
        parts = [block[i : i + 16384] for i in range(16384, len(block), 16384)]
        for part in parts:
            c.send(frames.ContinuationFrame(1, data=part))
        closed(c, ENHANCE_YOUR_CALM, COMPRESSION_ERROR)


@case
def frames_larger_than_allowed_end_the_connection(server):
    for kind in (0x0, 0x1, 0x4, 0x9, 0xFA):
        with server.connect() as c:
            stream = c.open(request(), end=False)
            c.send_bytes(raw(kind, 0, 0 if kind == 4 else stream, b"\0" * 16386))
            closed(c, FRAME_SIZE_ERROR)


@case
def frames_of_a_wrong_size_end_the_connection(server):
    for what, frame in {
        "PING of 7": raw(0x6, 0, 0, b"1234567"),
        "SETTINGS of 5": raw(0x4, 0, 0, b"12345"),
        "an ACK of SETTINGS with some": raw(0x4, 1, 0, b"\0\3\0\0\0\0"),
        "WINDOW_UPDATE of 3": raw(0x8, 0, 0, b"123"),
        "RST_STREAM of 3": raw(0x3, 0, 1, b"123"),
    }.items():
        with server.connect() as c:
            c.open(request(), end=False)
            c.send_bytes(frame)
            said = c.until_closed(15)
            check(said in (FRAME_SIZE_ERROR, PROTOCOL_ERROR), f"{what}: ended by {said}, saw {c.counts}")


@case
def frames_out_of_place_end_the_connection(server):
    """Each is an error of the connection (sections 5.1.1, 6.x)."""
    block = b"\x83\x87\x84"
    for what, codes, sent in [
        ("DATA on stream 0", [PROTOCOL_ERROR], raw(0x0, 0, 0, b"x")),
        ("HEADERS on stream 0", [PROTOCOL_ERROR], raw(0x1, 5, 0, block)),
        ("HEADERS on an even stream", [PROTOCOL_ERROR], raw(0x1, 5, 2, block)),
        ("DATA on a stream that is idle", [PROTOCOL_ERROR], raw(0x0, 0, 7, b"x")),
        ("RST_STREAM on a stream that is idle", [PROTOCOL_ERROR], raw(0x3, 0, 7, b"\0\0\0\x08")),
        ("WINDOW_UPDATE on a stream that is idle", [PROTOCOL_ERROR], raw(0x8, 0, 7, b"\0\0\0\x01")),
        ("SETTINGS on a stream", [PROTOCOL_ERROR], raw(0x4, 0, 1)),
        ("PING on a stream", [PROTOCOL_ERROR], raw(0x6, 0, 1, b"12345678")),
        ("GOAWAY on a stream", [PROTOCOL_ERROR], raw(0x7, 0, 1, b"\0" * 8)),
        ("PUSH_PROMISE", [PROTOCOL_ERROR], raw(0x5, 4, 1, b"\0\0\0\2" + block)),
        ("CONTINUATION after nothing", [PROTOCOL_ERROR], raw(0x9, 4, 1, block)),
        ("a PING within headers", [PROTOCOL_ERROR], raw(0x1, 1, 1, block) + raw(0x6, 0, 0, b"12345678")),
        ("headers of another stream within headers", [PROTOCOL_ERROR], raw(0x1, 1, 1, block) + raw(0x9, 4, 3)),
        ("padding longer than the frame", [PROTOCOL_ERROR], raw(0x1, 0xD, 1, b"\x40" + block)),
        ("a window of the connection of nothing", [PROTOCOL_ERROR], raw(0x8, 0, 0, b"\0\0\0\0")),
        ("a window of the connection that overflows", [FLOW_CONTROL_ERROR], raw(0x8, 0, 0, b"\x7f\xff\xff\xff")),
        ("SETTINGS of a window that is too large", [FLOW_CONTROL_ERROR, PROTOCOL_ERROR], raw(0x4, 0, 0, b"\0\4\x80\0\0\0")),
        ("SETTINGS of frames that are too small", [PROTOCOL_ERROR], raw(0x4, 0, 0, b"\0\5\0\0\0\1")),
        ("SETTINGS of a push of 2", [PROTOCOL_ERROR], raw(0x4, 0, 0, b"\0\2\0\0\0\2")),
        ("an index that the table does not have", [COMPRESSION_ERROR, PROTOCOL_ERROR], raw(0x1, 5, 1, b"\xff\x00")),
        ("a table larger than allowed", [COMPRESSION_ERROR, PROTOCOL_ERROR], raw(0x1, 5, 1, b"\x3f\xe1\xff\x03" + block)),
        ("Huffman code with EOS in it", [COMPRESSION_ERROR, PROTOCOL_ERROR], raw(0x1, 5, 1, b"\0\x84\xff\xff\xff\xff\1y")),
    ]:
        with server.connect() as c:
            c.send_bytes(sent)
            said = c.until_closed(15)
            check(said in codes, f"{what}: ended by {said}, not one of {codes}; saw {c.counts}")


@case
def more_data_than_the_window_allows_is_refused(server):
    with server.connect() as c:
        stream = c.open(request(), end=False)
        sent = 0
        try:
            while sent < 1_000_000 and stream not in c.answers:
                c.send(frames.DataFrame(stream, data=b"\0" * 16384))
                sent += 16384
        except Closed:
            pass
        # An answer that the message is too large, or the error that it is.
        said = c.until_closed(1)
        answer = c.answers.get(stream)
        check(said in (FLOW_CONTROL_ERROR, ENHANCE_YOUR_CALM, None), f"ended by {said}: {answer}")
        check(said is not None or answer.ended, answer, c.counts)


@case
def what_is_not_known_is_passed_over(server):
    """Types of frames, settings and flags (sections 4.1, 5.5, 6.5.2)."""
    with server.connect(settings={0xF000: 7}) as c:
        for kind in (0xA, 0xB, 0xC, 0x10, 0x42, 0xFE):
            c.send_bytes(raw(kind, 0xFF, 0, b"what?") + raw(kind, 0, 9, b""))
        c.send_bytes(raw(0x6, 0xFE, 0, b"12345678"))
        server.must_serve(c)


@case
def priorities_are_passed_over(server):
    with server.connect() as c:
        c.send(frames.PriorityFrame(1, depends_on=0, stream_weight=7), frames.PriorityFrame(9, depends_on=1))
        server.must_serve(c)


@case
def malformed_requests_are_refused(server):
    """Section 8.1.1. An error of the stream, or, where the compressed block itself is
    taken for wrong, of the connection."""
    good = request()
    for what, fields in {
        "two :path": [*good[:4], (":path", "/countersign.v1.AuthService/WhoAmI"), *good[4:]],
        "two :method": [(":method", "GET"), *good],
        "two :scheme": [*good[:4], (":scheme", "http"), *good[4:]],
        "two :authority": [*good[:4], (":authority", "other"), *good[4:]],
        "no :method": request(method=None),
        "no :scheme": request(scheme=None),
        "no :path": request(None),
        "an empty :path": request(""),
        "a :path that begins with no slash": request("countersign.v1.TokenService/GetJwks"),
        "a pseudo-header after the others": [*good, (":path", "/")],
        "a pseudo-header of answers": [(":status", "200"), *good],
        "a pseudo-header that is none": [(":what", "x"), *good],
        "an uppercase name": [*good, ("X-Upper", "x")],
        "a name with a space": [*good, ("x y", "x")],
        "a name with a colon": [*good, ("x:y", "x")],
        "an empty name": [*good, ("", "x")],
        "a value with a line feed": [*good, ("x-value", "a\nb")],
        "a value with a carriage return": [*good, ("x-value", "a\rb")],
        "a value with a NUL": [*good, ("x-value", "a\0b")],
        "connection": [*good, ("connection", "close")],
        "keep-alive": [*good, ("keep-alive", "1")],
        "proxy-connection": [*good, ("proxy-connection", "close")],
        "transfer-encoding": [*good, ("transfer-encoding", "chunked")],
        "upgrade": [*good, ("upgrade", "h2c")],
        "te: gzip": request(te="gzip"),
        "a length that is none": [*good, ("content-length", "x")],
        "a length that is negative": [*good, ("content-length", "-5")],
        "a length that is wrong": [*good, ("content-length", "3")],
        "two lengths that differ": [*good, ("content-length", "5"), ("content-length", "6")],
        "CONNECT with a path": request(method="CONNECT"),
    }.items():
        with server.connect() as c:
            try:
                answer = c.call(fields, message())
            except Closed:
                check(c.farewell() == PROTOCOL_ERROR, f"{what}: ended by {c.farewell()}")
            else:
                # It may be answered, but then as the bad request that it is.
                refused = answer.reset == PROTOCOL_ERROR or answer.http == 400
                check(refused, f"{what}: {answer}")
                server.must_serve(c)


@case
def trailers_are_not_headers(server):
    """What comes after a message changes nothing about the call."""
    with server.connect() as c:
        stream = c.open(request(), message(), end=False)
        fields = [(":path", WHOAMI), ("content-type", "application/json"), ("grpc-timeout", "0S")]
        c.send(frames.HeadersFrame(stream, data=c.block(fields), flags=["END_HEADERS", "END_STREAM"]))
        answer = c.answer(stream)
        check(answer.code == 0 or answer.reset == PROTOCOL_ERROR, answer)
        server.must_serve(c)


# Time. Each server of these cases is short of it in one way: it gives a preface
# 400 ms, or an idle connection or an answer to a ping a second. So nothing else ends
# the connection.


@case
def a_preface_that_never_comes_or_is_another(server):
    for what, sent in {
        "nothing": b"",
        "half of it": PREFACE[:12],
        "all but the end of its settings": PREFACE + b"\0\0\0\4\0\0\0\0",
        "another": b"PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n" + raw(0x4, 0, 0),
        "HTTP/1.1": b"GET / HTTP/1.1\r\nhost: x\r\n\r\n",
        "an upgrade": b"GET / HTTP/1.1\r\nhost: x\r\nconnection: upgrade, http2-settings\r\nupgrade: h2c\r\n"
        b"http2-settings: AAMAAABkAAQAAP__\r\n\r\n",
        "a handshake of TLS": b"\x16\x03\x01\x00\x05\x01\x00\x00\x01\x00",
        "zeros": b"\0" * 100,
    }.items():
        with server.connect(begin=False) as c:
            c.send_bytes(sent)
            c.socket.settimeout(15)
            seen = b""
            try:
                while data := c.socket.recv(4096):
                    seen += data
            except ConnectionError:
                pass
            except TimeoutError:
                check(False, f"{what}: still open after {seen!r}")
            check(b"HTTP/1" not in seen, f"{what}: {seen!r}")
    server.must_serve()


@case
def a_preface_byte_by_byte_is_cut(server):
    """Before its last byte, however steadily they come."""
    with server.connect(begin=False) as c:
        try:
            for byte in PREFACE + raw(0x4, 0, 0):
                c.send_bytes(bytes([byte]))
                time.sleep(0.1)
        except Closed:
            return
        check(False, "all of it was waited for")


@case
def headers_that_come_slowly_are_cut(server):
    """A block that is begun lets nothing else through, so no ping is answered."""
    with server.connect(polite=False) as c:
        c.send(frames.HeadersFrame(1, data=c.block(request())))
        try:
            for byte in raw(0x9, 0, 1, b"\0" * 1000)[:80]:
                c.send_bytes(bytes([byte]))
                c.receive(0.2)
            check(False, f"still open, saw {c.counts}")
        except Closed:
            pass


@case
def headers_of_http_1_that_come_slowly_are_cut(server):
    """The server of this case serves gRPC-Web, and so HTTP/1.1."""
    with server.connect(begin=False) as c:
        try:
            c.send_bytes(b"POST /countersign.v1.TokenService/GetJwks HTTP/1.1\r\nhost: x\r\n")
            for _ in range(100):
                c.send_bytes(b"x-slow: y\r\n")
                time.sleep(0.1)
            check(False, "still open")
        except Closed:
            pass
    server.must_serve()


@case
def an_idle_connection_is_closed_and_never_one_with_a_call(server):
    with (
        server.connect() as busy,
        server.connect() as idle,
        server.connect() as pinging,
        server.connect(begin=False) as without_settings,
    ):
        without_settings.send_bytes(PREFACE + raw(0x6, 0, 0, b"12345678"))
        stream = busy.open(request(WATCH), message())
        began = time.monotonic()
        while "Data" not in busy.counts:
            busy.receive()
        closed(idle, NO_ERROR)
        # The library takes it for a connection (section 3.4 does not); it is an idle one.
        closed(without_settings, NO_ERROR)
        # Whoever only pings does not call.
        try:
            while time.monotonic() < began + 15:
                pinging.ping()
                time.sleep(0.1)
            check(False, "pings keep a connection open")
        except Closed:
            check(pinging.farewell() == NO_ERROR, pinging.farewell())
        while time.monotonic() < began + 4:
            busy.receive(0.1)
        server.must_serve(busy)
        check(stream not in busy.answers or not busy.answers[stream].ended, busy.answers)


@case
def who_answers_no_ping_is_gone(server):
    with server.connect(polite=False) as c:
        c.open(request(WATCH), message())
        check(c.until_closed(15) is not None, f"still open, saw {c.counts}")


@case
def who_has_said_all_is_gone(server):
    """Half-open: whoever closes its side has no use for the other (section 9.1)."""
    with server.connect() as c:
        c.open(request(WATCH), message())
        c.socket.shutdown(socket.SHUT_WR)
        c.polite = False
        check(c.until_closed(15) is not None, f"still open, saw {c.counts}")
