"""The server under test: where it is, how much memory it takes, and a good
client that it must go on serving."""

import contextlib
import pathlib
import ssl
import threading
import time

from wire import PATIENCE, Connection, Surprise, check, message, request

# How many times a flood is repeated, and how much more memory than before it the
# server may hold at any moment from then on.
ROUNDS = 4
MORE_KIB = 32 * 1024

CASES = {}


def case(run):
    """Something that is tried once."""
    CASES[run.__name__] = run
    return run


def flood(run):
    """Something that is done over and over, beside a client who must not feel it,
    and that must leave nothing behind."""

    def rounds(server):
        sizes = []
        with server.good_client() as good:
            before = server.settled_kib()
            server.forget_peak()
            for _ in range(ROUNDS):
                run(server)
                good.must_be_served()
                sizes.append(server.settled_kib())
            peak = server.kib("VmHWM:")
        seen = f"{before} KiB before, {peak} at most, {sizes} after each round"
        print(seen)
        check(max(peak, *sizes) <= before + MORE_KIB, seen)

    CASES[run.__name__] = rounds
    return run


class GoodClient:
    """Calls again and again on a connection of its own."""

    def __init__(self, server):
        self.connection = server.connect()
        self.answered = 0
        self.failed = None
        self.over = threading.Event()
        self.thread = threading.Thread(target=self.run, daemon=True)
        self.thread.start()

    def run(self):
        try:
            while not self.over.wait(0.01):
                answer = self.connection.call(request(), message())
                check(answer.code == 0, f"after {self.answered} calls: {answer}")
                self.answered += 1
        except Exception as failed:
            self.failed = failed

    def must_be_served(self):
        """Asks for an answer from now on."""
        before = self.answered
        deadline = time.monotonic() + PATIENCE
        while self.answered < before + 2:
            if self.failed or time.monotonic() > deadline:
                raise Surprise(f"the good client is not served: {self.failed!r} after {self.answered} calls")
            time.sleep(0.005)


class Server:
    def __init__(self, address, pid, token="", certificate="", **_):
        self.address = address
        self.pid = pid
        self.token = token
        self.certificate = certificate

    def connect(self, begin=True, tls=None, **how):
        if begin and self.certificate and not tls:
            tls = ssl.create_default_context(cafile=self.certificate)
            tls.set_alpn_protocols(["h2"])
        return Connection(self.address, begin=begin, tls=tls, **how)

    @contextlib.contextmanager
    def good_client(self):
        good = GoodClient(self)
        try:
            good.must_be_served()
            yield good
            good.must_be_served()
        finally:
            good.over.set()
            good.thread.join(PATIENCE)

    def kib(self, of="VmRSS:"):
        for line in pathlib.Path(f"/proc/{self.pid}/status").read_text().splitlines():
            if line.startswith(of):
                return int(line.split()[1])
        raise Surprise("the server is gone")

    def forget_peak(self):
        """From now on VmHWM is the most that it held since (proc(5))."""
        pathlib.Path(f"/proc/{self.pid}/clear_refs").write_text("5")

    def settled_kib(self):
        """When it has not fallen for a while: connections end a little later, and
        memory is given back later still."""
        least, since = self.kib(), time.monotonic()
        while time.monotonic() < since + 0.5:
            time.sleep(0.05)
            if (now := self.kib()) < least:
                least, since = now, time.monotonic()
        return least

    def must_serve(self, connection=None):
        """A call on this connection, or a new one, is answered."""
        with contextlib.nullcontext(connection) if connection else self.connect() as connection:
            answer = connection.call(request(), message())
            check(answer.code == 0, f"a good call: {answer}")
