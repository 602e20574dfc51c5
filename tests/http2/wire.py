"""HTTP/2 over a raw socket, with nothing that keeps a client polite: frames go
out as they are given, and what comes back is told as it came."""

import contextlib
import select
import socket
import struct
import time

import hpack
from hyperframe import frame as frames

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

# RFC 9113, section 7.
NO_ERROR = 0x0
PROTOCOL_ERROR = 0x1
FLOW_CONTROL_ERROR = 0x3
STREAM_CLOSED = 0x5
FRAME_SIZE_ERROR = 0x6
REFUSED_STREAM = 0x7
CANCEL = 0x8
COMPRESSION_ERROR = 0x9
ENHANCE_YOUR_CALM = 0xB

# How long an answer may take on a busy machine.
PATIENCE = 30


class Surprise(Exception):
    """What was seen is not what should be."""


class Closed(Exception):
    """The server has closed the connection."""


def check(holds, *seen):
    if not holds:
        raise Surprise("; ".join(map(str, seen)))


class Answer:
    """What came back on a stream."""

    def __init__(self):
        self.headers = {}
        self.trailers = {}
        self.data = b""
        self.reset = None
        self.ended = False

    @property
    def http(self):
        return int(self.headers.get(":status", 0))

    @property
    def code(self):
        """The gRPC code, in the trailers or in headers alone."""
        code = self.trailers.get("grpc-status", self.headers.get("grpc-status"))
        return None if code is None else int(code)

    def __repr__(self):
        if self.reset is not None:
            return f"reset {self.reset}"
        said = self.trailers.get("grpc-message", self.headers.get("grpc-message", ""))
        return f"HTTP {self.http}, code {self.code} {said}" + ("" if self.ended else ", not ended")


class Connection:
    """One connection. Acknowledges SETTINGS and PING, and opens the window again for
    what it has read, unless told not to."""

    def __init__(self, address, settings=None, begin=True, tls=None, polite=True, receive_buffer=None):
        host, port = address.rsplit(":", 1)
        self.socket = socket.socket()
        if receive_buffer:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.socket.settimeout(PATIENCE)
        self.socket.connect((host, int(port)))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if tls:
            self.socket = tls.wrap_socket(self.socket, server_hostname="localhost")
        self.polite = polite
        self.encoder = hpack.Encoder()
        self.decoder = hpack.Decoder()
        self.unread = bytearray()
        self.next_stream = 1
        self.answers = {}
        self.counts = {}
        self.goaway = None
        # Of the connection, of a new stream, and what was given or taken since.
        self.window = self.first_window = 65535
        self.windows = {}
        if begin:
            self.send_bytes(PREFACE)
            self.send(frames.SettingsFrame(0, settings=settings or {}))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.socket.close()

    # Sending.

    def send_bytes(self, data):
        try:
            self.socket.sendall(data)
        except (ConnectionError, TimeoutError) as error:
            raise Closed(f"while sending: {error!r}") from error

    def send(self, *many):
        self.send_bytes(b"".join(frame.serialize() for frame in many))

    def stream(self):
        stream = self.next_stream
        self.next_stream += 2
        return stream

    def block(self, fields):
        return self.encoder.encode(fields, huffman=False)

    def open(self, fields, data=None, end=True):
        """Begins a request: its stream."""
        stream = self.stream()
        block = self.block(fields)
        parts = [block[i : i + 16384] for i in range(0, len(block), 16384)]
        begin = frames.HeadersFrame(stream, data=parts[0])
        if data is None and end:
            begin.flags.add("END_STREAM")
        many = [begin, *(frames.ContinuationFrame(stream, data=part) for part in parts[1:])]
        many[-1].flags.add("END_HEADERS")
        self.send(*many)
        if data is not None:
            self.send_data(stream, data, end)
        return stream

    def send_data(self, stream, data, end=True):
        """As the windows let it in, or until there is an answer."""
        while True:
            window = min(self.window, self.first_window + self.windows.get(stream, 0), 16384)
            if window > 0 or not data:
                part, data = data[:window], data[window:]
                self.window -= len(part)
                self.windows[stream] = self.windows.get(stream, 0) - len(part)
                self.send(frames.DataFrame(stream, data=part, flags=["END_STREAM"] if end and not data else []))
            elif self.receive() is None:
                raise Surprise(f"no window for {len(data)} bytes, saw {self.counts}")
            if not data or (stream in self.answers and self.answers[stream].ended):
                return

    # Receiving.

    def receive(self, timeout=PATIENCE):
        """The next frame; none if there is none for so long."""
        deadline = time.monotonic() + timeout
        while True:
            found = self.parse()
            if found is not None:
                self.note(found)
                return found
            left = deadline - time.monotonic()
            if left <= 0 or not self.fill(left):
                return None

    def fill(self, timeout):
        self.socket.settimeout(max(timeout, 0.001))
        try:
            data = self.socket.recv(65536)
        except TimeoutError:
            return False
        except OSError as error:
            raise Closed(f"{error!r}") from error
        finally:
            with contextlib.suppress(OSError):
                self.socket.settimeout(PATIENCE)
        if not data:
            raise Closed(f"in order, with GOAWAY {self.farewell()}")
        self.unread += data
        return True

    def parse(self):
        if len(self.unread) < 9:
            return None
        length = int.from_bytes(self.unread[:3], "big")
        if len(self.unread) < 9 + length:
            return None
        found, _ = frames.Frame.parse_frame_header(memoryview(bytes(self.unread[:9])))
        found.parse_body(memoryview(bytes(self.unread[9 : 9 + length])))
        del self.unread[: 9 + length]
        return found

    def note(self, found):
        kind = type(found).__name__.removesuffix("Frame")
        self.counts[kind] = self.counts.get(kind, 0) + 1
        if isinstance(found, frames.GoAwayFrame):
            self.goaway = found
        elif isinstance(found, frames.WindowUpdateFrame):
            if found.stream_id:
                self.windows[found.stream_id] = self.windows.get(found.stream_id, 0) + found.window_increment
            else:
                self.window += found.window_increment
        elif isinstance(found, (frames.SettingsFrame, frames.PingFrame)) and "ACK" not in found.flags:
            if isinstance(found, frames.SettingsFrame):
                self.first_window = found.settings.get(frames.SettingsFrame.INITIAL_WINDOW_SIZE, 65535)
            if self.polite:
                acknowledged = type(found)(0, flags=["ACK"])
                if isinstance(found, frames.PingFrame):
                    acknowledged.opaque_data = found.opaque_data
                with contextlib.suppress(Closed):
                    self.send(acknowledged)
        elif found.stream_id:
            answer = self.answers.setdefault(found.stream_id, Answer())
            if isinstance(found, frames.HeadersFrame):
                fields = dict(self.decoder.decode(found.data))
                (answer.trailers if answer.headers else answer.headers).update(fields)
            elif isinstance(found, frames.DataFrame):
                answer.data += found.data
                if self.polite and found.data:
                    with contextlib.suppress(Closed):
                        self.send(frames.WindowUpdateFrame(0, window_increment=len(found.data)))
            elif isinstance(found, frames.RstStreamFrame):
                answer.reset = found.error_code
            answer.ended |= "END_STREAM" in found.flags or answer.reset is not None

    def answer(self, stream, timeout=PATIENCE):
        """How a stream ends."""
        deadline = time.monotonic() + timeout
        while not (stream in self.answers and self.answers[stream].ended):
            if self.receive(deadline - time.monotonic()) is None:
                raise Surprise(f"stream {stream} has no answer: {self.answers.get(stream)}, saw {self.counts}")
        return self.answers.pop(stream)

    def call(self, fields, data=None):
        return self.answer(self.open(fields, data))

    def until_closed(self, timeout=PATIENCE):
        """Reads on until the server closes; none if it does not, else with which
        code it said good-bye (-1 if with none)."""
        deadline = time.monotonic() + timeout
        try:
            while time.monotonic() < deadline:
                self.receive(deadline - time.monotonic())
        except Closed:
            return self.farewell()
        return None

    def farewell(self):
        return -1 if self.goaway is None else self.goaway.error_code

    def flood(self, chunks, reading=True, patience=PATIENCE):
        """Sends until all is sent or the server closes. Returns as
        `until_closed` does. Without reading it is also over when the server takes
        no more for so long."""
        # Nothing of our own may come between the parts of a frame.
        self.polite = False
        try:
            for chunk in chunks:
                rest = memoryview(chunk)
                while rest:
                    read, write, _ = select.select([self.socket] if reading else [], [self.socket], [], patience)
                    if not read and not write:
                        return None
                    if read and self.fill(0.001):
                        self.drain()
                    if write:
                        self.socket.setblocking(False)
                        try:
                            rest = rest[self.socket.send(rest) :]
                        except BlockingIOError:
                            pass
                        finally:
                            self.socket.settimeout(PATIENCE)
        except (Closed, OSError):
            # What it said before it closed is still there to be read.
            with contextlib.suppress(Closed, OSError):
                while self.fill(1):
                    self.drain()
            self.drain()
            return self.farewell()
        return None

    def drain(self):
        while (found := self.parse()) is not None:
            self.note(found)

    def ping(self, timeout=PATIENCE):
        """Whether the connection lives."""
        seen = self.counts.get("Ping", 0)
        self.send(frames.PingFrame(0, opaque_data=b"are you?"))
        deadline = time.monotonic() + timeout
        while self.counts.get("Ping", 0) == seen:
            if self.receive(deadline - time.monotonic()) is None:
                return False
        return True


def raw(kind, flags, stream, payload=b""):
    """A frame that hyperframe would not make."""
    return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload


# gRPC.


def message(payload=b"", compressed=0):
    return bytes([compressed]) + struct.pack(">I", len(payload)) + payload


def field(number, payload):
    """A length-delimited field of a protobuf message."""
    if isinstance(payload, str):
        payload = payload.encode()
    size = len(payload)
    length = bytearray()
    while size >= 0x80:
        length.append(size & 0x7F | 0x80)
        size >>= 7
    length.append(size)
    return bytes([number << 3 | 2]) + bytes(length) + payload


GET_JWKS = "/countersign.v1.TokenService/GetJwks"
LOGIN = "/countersign.v1.AuthService/Login"
WHOAMI = "/countersign.v1.AuthService/WhoAmI"
LIST_USERS = "/countersign.v1.UserService/ListUsers"
VALIDATE = "/countersign.v1.TokenService/ValidateToken"
VALIDATE_MANY = "/countersign.v1.TokenService/ValidateTokens"
REFLECTION = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo"
WATCH = "/grpc.health.v1.Health/Watch"


def request(path=GET_JWKS, *more, **changed):
    """The fields of a good request. `changed` replaces (or with None removes)
    those that are there, `_` standing for `-`; `more` comes after them."""
    fields = {
        ":method": "POST",
        ":scheme": "http",
        ":path": path,
        ":authority": "localhost",
        "content-type": "application/grpc",
        "te": "trailers",
    }
    for name, value in changed.items():
        name = name.replace("_", "-")
        fields[f":{name}" if f":{name}" in fields else name] = value
    return [(name, value) for name, value in fields.items() if value is not None] + list(more)
