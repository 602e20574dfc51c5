"""Clients that mean ill: much of what costs them little."""

import time

from hyperframe import frame as frames
from server import flood
from wire import (
    COMPRESSION_ERROR,
    ENHANCE_YOUR_CALM,
    GET_JWKS,
    NO_ERROR,
    PROTOCOL_ERROR,
    REFLECTION,
    STREAM_CLOSED,
    VALIDATE_MANY,
    Closed,
    check,
    field,
    message,
    raw,
    request,
)

MANY = 100_000


def ended(connection, chunks, codes, **how):
    """The flood is ended by the server, with one of these codes."""
    said = connection.flood(chunks, **how)
    if said is None:
        said = connection.until_closed(10)
    check(said in codes, f"ended by {said}, not one of {codes}; saw {connection.counts}")


def calmed(connection, chunks, **how):
    # A server that is in the midst of an answer cannot say so, and what it says is
    # lost where its kernel has not read all of the flood.
    ended(connection, chunks, [ENHANCE_YOUR_CALM, -1], **how)


def of_one(frame, many=MANY):
    """The same frame, over and over."""
    chunk = frame * 1000
    return (chunk for _ in range(many // 1000))


def requests(connection, many, after, **changed):
    """Requests that wait for their message, and what follows each."""
    block = connection.block(request(**changed))
    # From the second on all is in the compression table.
    blocks = [block, connection.block(request(**changed))]
    for _ in range(many // 100):
        chunk = bytearray()
        for _ in range(100):
            stream = connection.stream()
            data = blocks[min(stream // 2, 1)]
            chunk += frames.HeadersFrame(stream, data=data, flags=["END_HEADERS"]).serialize()
            chunk += after(stream)
        yield bytes(chunk)


@flood
def streams_that_are_reset_at_once(server):
    """CVE-2023-44487, "rapid reset"."""
    with server.connect() as c:
        calmed(c, requests(c, 10_000, lambda stream: frames.RstStreamFrame(stream, 8).serialize()))


@flood
def streams_that_are_reset_a_few_at_a_time(server):
    """The same a few at a time, so that each is accepted before it is reset."""
    with server.connect() as c:
        try:
            for _ in range(2000):
                streams = [c.open(request(), end=False) for _ in range(16)]
                # Answered when what came before was read.
                c.ping()
                c.send(*(frames.RstStreamFrame(stream, 8) for stream in streams))
        except Closed:
            pass
        said = c.until_closed(10)
        check(said == ENHANCE_YOUR_CALM, f"ended by {said}, saw {c.counts}")


@flood
def streams_that_are_refused(server):
    with server.connect() as c:
        calmed(c, requests(c, 20_000, lambda stream: b""))


# CVE-2025-8671, "MadeYouReset": the server is made to reset the streams, which
# then no longer count while their calls go on.


@flood
def resets_made_by_a_window_of_nothing(server):
    with server.connect() as c:
        # Taken for an error of the connection at once.
        ended(c, requests(c, 10_000, lambda stream: raw(0x8, 0, stream, b"\0\0\0\0")), [PROTOCOL_ERROR])


@flood
def resets_made_by_a_window_that_overflows(server):
    with server.connect() as c:
        calmed(c, requests(c, 10_000, lambda stream: raw(0x8, 0, stream, b"\x7f\xff\xff\xff")))


@flood
def resets_made_by_a_stream_that_depends_on_itself(server):
    with server.connect() as c:
        itself = lambda stream: raw(0x2, 0, stream, stream.to_bytes(4, "big") + b"\0")
        calmed(c, requests(c, 20_000, itself))


@flood
def resets_made_by_data_after_the_end(server):
    with server.connect() as c:
        end = frames.DataFrame
        twice = lambda stream: end(stream, data=message(), flags=["END_STREAM"]).serialize() * 2
        ended(c, requests(c, 10_000, twice), [ENHANCE_YOUR_CALM, STREAM_CLOSED, PROTOCOL_ERROR])


@flood
def resets_made_by_a_length_that_is_wrong(server):
    with server.connect() as c:
        short = lambda stream: frames.DataFrame(stream, data=message(), flags=["END_STREAM"]).serialize()
        calmed(c, requests(c, 20_000, short, content_length="3"))


@flood
def resets_made_by_bad_headers(server):
    with server.connect() as c:
        calmed(c, requests(c, 20_000, lambda stream: b"", proxy_connection="close"))


# Header blocks. What cannot be unpacked is an error of the connection.

MALFORMED = [ENHANCE_YOUR_CALM, COMPRESSION_ERROR, PROTOCOL_ERROR]


@flood
def continuations_without_end(server):
    """CVE-2024-27316 and its like."""
    with server.connect() as c:
        c.send(frames.HeadersFrame(1, data=c.block(request())))
        calmed(c, of_one(raw(0x9, 0, 1, b"")))


@flood
def continuations_with_headers_without_end(server):
    with server.connect() as c:
        c.send(frames.HeadersFrame(1, data=c.block(request())))
        # A literal that is not indexed: x: 1000 times y.
        header = b"\0\x01x\x7f\xe9\x06" + b"y" * 1000
        ended(c, of_one(raw(0x9, 0, 1, header), 20_000), MALFORMED)


@flood
def a_header_without_end(server):
    """One value that is longer than anything that is kept."""
    with server.connect() as c:
        c.send(frames.HeadersFrame(1, data=c.block(request())))
        # The length of the value: 2^30.
        c.send_bytes(raw(0x9, 0, 1, b"\0\x01x\x7f\x81\xff\xff\xff\x03"))
        ended(c, of_one(raw(0x9, 0, 1, b"y" * 16384), 20_000), MALFORMED)


@flood
def a_header_that_unpacks_to_many(server):
    """The "HPACK bomb": a large entry of the table, named again and again."""
    with server.connect() as c:
        bomb = c.block(request()) + b"\x40\x01x\x7f\xd1\x1e" + b"y" * 4000 + b"\xbe" * 12_000
        calmed(c, [raw(0x1, 0x5, 1, bomb[:16384])])


# Frames that are no calls.


@flood
def pings(server):
    with server.connect() as c:
        calmed(c, of_one(frames.PingFrame(0).serialize()))


@flood
def pings_whose_answers_nobody_reads(server):
    with server.connect(receive_buffer=4096) as c:
        # Who does not read may not hear of the end.
        pings = of_one(frames.PingFrame(0).serialize(), 1_000_000)
        ended(c, pings, [ENHANCE_YOUR_CALM, -1], reading=False, patience=2)


@flood
def answers_to_pings_that_nobody_sent(server):
    with server.connect() as c:
        calmed(c, of_one(frames.PingFrame(0, flags=["ACK"]).serialize()))


@flood
def settings(server):
    with server.connect() as c:
        settings = {frames.SettingsFrame.INITIAL_WINDOW_SIZE: 65535}
        calmed(c, of_one(frames.SettingsFrame(0, settings=settings).serialize()))


@flood
def settings_that_say_nothing(server):
    with server.connect() as c:
        calmed(c, of_one(frames.SettingsFrame(0).serialize()))


@flood
def windows(server):
    with server.connect() as c:
        calmed(c, of_one(frames.WindowUpdateFrame(0, window_increment=1).serialize()))


@flood
def windows_of_a_stream(server):
    with server.connect() as c:
        stream = c.open(request(), end=False)
        calmed(c, of_one(frames.WindowUpdateFrame(stream, window_increment=1).serialize()))


@flood
def priorities(server):
    with server.connect() as c:
        calmed(c, of_one(raw(0x2, 0, 1, b"\0\0\0\0\0")))


@flood
def frames_of_no_known_type(server):
    with server.connect() as c:
        calmed(c, of_one(raw(0xFA, 0, 0, b"")))


@flood
def goodbyes(server):
    with server.connect() as c:
        # The first may end it.
        ended(c, of_one(frames.GoAwayFrame(0).serialize()), [NO_ERROR, ENHANCE_YOUR_CALM, -1])


@flood
def resets_of_a_stream_that_is_over(server):
    with server.connect() as c:
        check(c.call(request(), message()).code == 0)
        calmed(c, of_one(frames.RstStreamFrame(1, 8).serialize()))


@flood
def data_that_is_empty(server):
    """CVE-2019-9518."""
    with server.connect() as c:
        stream = c.open(request(), end=False)
        calmed(c, of_one(frames.DataFrame(stream).serialize()))


@flood
def data_byte_by_byte(server):
    with server.connect() as c:
        stream = c.open(request(VALIDATE_MANY), end=False)
        c.send(frames.DataFrame(stream, data=b"\0" + (1_000_000).to_bytes(4, "big")))
        said = c.flood(of_one(frames.DataFrame(stream, data=b"x").serialize(), 60_000))
        # Unless each was read as it came.
        check(said in (ENHANCE_YOUR_CALM, None), f"ended by {said}, saw {c.counts}")


@flood
def data_that_is_all_padding(server):
    with server.connect() as c:
        stream = c.open(request(), end=False)
        padded = frames.DataFrame(stream, pad_length=255, flags=["PADDED"]).serialize()
        calmed(c, of_one(padded))


# Those who take their time.


@flood
def answers_that_nobody_reads(server):
    """As many calls as there may be, and no window to answer them in."""
    items = b"".join(field(1, field(1, "x")) for _ in range(100))
    for _ in range(4):
        with server.connect(settings={frames.SettingsFrame.INITIAL_WINDOW_SIZE: 0}) as c:
            for _ in range(100):
                c.open(request(VALIDATE_MANY), message(items))
            deadline = time.monotonic() + 30
            while c.counts.get("Headers", 0) < 100 and time.monotonic() < deadline:
                c.receive(1)
            check(c.counts.get("Headers") == 100, f"saw {c.counts}")
            check("Data" not in c.counts, f"saw {c.counts}")


@flood
def large_answers_that_nobody_reads(server):
    """Streams that ask for a file of descriptors, again and again: none is made
    before the one before it is read, so that they are not kept."""
    asked = message(field(4, "countersign.v1.AuthService"))
    with server.connect(settings={frames.SettingsFrame.INITIAL_WINDOW_SIZE: 1}) as c:
        # Whoever reads no answer is not read from either.
        streams = [c.open(request(REFLECTION), asked * 100, end=False) for _ in range(60)]
        deadline = time.monotonic() + 30
        while c.counts.get("Data", 0) < len(streams) and time.monotonic() < deadline:
            c.receive(1)
        check(c.counts.get("Data") == len(streams), f"saw {c.counts}")
        check(c.ping(), "no answer to a ping")


@flood
def messages_that_never_end(server):
    """As many as there may be, each with its first bytes only."""
    for _ in range(8):
        with server.connect() as c:
            for _ in range(100):
                c.open(request(GET_JWKS), message(b"x" * 60_000)[:100], end=False)
            check(c.ping(), "no answer to a ping")


@flood
def connections_that_say_nothing(server):
    """The server of this case waits for 400 ms."""
    silent = [server.connect(begin=False, polite=False) for _ in range(200)]
    for connection in silent:
        with connection:
            check(connection.until_closed() is not None, "still open")


@flood
def connections_that_begin_and_go(server):
    for _ in range(500):
        with server.connect():
            pass
