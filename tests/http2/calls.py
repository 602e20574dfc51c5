"""What gRPC asks of a server: messages, metadata and paths, of callers who write
them by hand."""

import gzip

from hyperframe import frame as frames
from server import case, flood
from wire import (
    GET_JWKS,
    LIST_USERS,
    LOGIN,
    PROTOCOL_ERROR,
    VALIDATE,
    WHOAMI,
    check,
    field,
    message,
    request,
)

OK = 0
INVALID_ARGUMENT = 3
DEADLINE_EXCEEDED = 4
RESOURCE_EXHAUSTED = 8
UNIMPLEMENTED = 12
UNAUTHENTICATED = 16

A_LOGIN = message(field(1, "ana@example.com") + field(2, "not the password at all"))


@case
def a_message_that_is_too_large_exhausts(server):
    """64 KiB are let in, whatever they say."""
    with server.connect() as c:
        fits = c.call(request(), message(field(15, b"x" * (65536 - 4))))
        check(fits.code == OK, f"64 KiB: {fits}")
        for size in (65537, 100_000, 5_000_000):
            answer = c.call(request(), message(b"x" * size))
            check(answer.code == RESOURCE_EXHAUSTED, f"{size} bytes: {answer}")
        server.must_serve(c)


@flood
def messages_that_unpack_to_much(server):
    """No compression is taken, so nothing is unpacked."""
    bomb = gzip.compress(b"\0" * 10_000_000)
    with server.connect() as c:
        for encoding, flag, code in [
            ("gzip", 1, UNIMPLEMENTED),
            ("deflate", 1, UNIMPLEMENTED),
            ("zstd", 1, UNIMPLEMENTED),
            ("what", 0, UNIMPLEMENTED),
            ("identity", 1, INVALID_ARGUMENT),
            (None, 1, INVALID_ARGUMENT),
        ]:
            for _ in range(10):
                answer = c.call(request(VALIDATE, grpc_encoding=encoding), message(bomb, flag))
                check(answer.code == code, f"{encoding}: {answer}")
        server.must_serve(c)


@case
def what_is_no_message_is_refused(server):
    with server.connect() as c:
        for what, data in {
            "nothing": b"",
            "half a prefix": b"\0\0",
            "a prefix alone": b"\0\0\0\0\5",
            "half a message": message(b"\x0a\3abc")[:-2],
            "two messages": message() * 2,
            "a message and half of another": message() + b"\0\0\0\0\5ab",
            "another flag": message(compressed=2),
            "a length of 4 GiB": b"\0\xff\xff\xff\xff" + b"x",
        }.items():
            answer = c.call(request(VALIDATE), data)
            check(answer.code in (INVALID_ARGUMENT, RESOURCE_EXHAUSTED, UNAUTHENTICATED), f"{what}: {answer}")
            check(what != "two messages" or answer.code == INVALID_ARGUMENT, f"{what}: {answer}")
        server.must_serve(c)


@case
def a_message_that_is_broken_off_reaches_nobody(server):
    """By a reset, and by the end of the connection."""
    with server.connect() as c:
        stream = c.open(request(VALIDATE), message(b"x" * 100)[:50], end=False)
        c.send(frames.RstStreamFrame(stream, 8))
        server.must_serve(c)
        check(stream not in c.answers, c.answers)
    with server.connect() as c:
        c.open(request(VALIDATE), message(b"x" * 100)[:50], end=False)
    server.must_serve()


@case
def what_is_no_grpc_is_refused(server):
    with server.connect() as c:
        for what, fields, code in [
            ("GET", request(method="GET"), UNIMPLEMENTED),
            ("PUT", request(method="PUT"), UNIMPLEMENTED),
            ("OPTIONS", request(method="OPTIONS"), UNIMPLEMENTED),
            ("a method of one's own", request(method="post"), UNIMPLEMENTED),
            ("no content type", request(content_type=None), INVALID_ARGUMENT),
            ("JSON", request(content_type="application/json"), INVALID_ARGUMENT),
            ("gRPC-Web", request(content_type="application/grpc-web"), INVALID_ARGUMENT),
            ("gRPC with JSON", request(content_type="application/grpc+json"), INVALID_ARGUMENT),
            ("two content types", request(GET_JWKS, ("content-type", "application/grpc")), INVALID_ARGUMENT),
        ]:
            answer = c.call(fields, message())
            check(answer.code == code, f"{what}: {answer}")
        # No body is sent in answer to HEAD, but the code is in the headers anyway.
        answer = c.call(request(method="HEAD"), message())
        check(answer.code == UNIMPLEMENTED, f"HEAD: {answer}")
        server.must_serve(c)


def tricks(path):
    """Other ways to write a path, by which a proxy or a router may be misled."""
    _, service, method = path.split("/")
    return [
        f"{path}?x=1",
        f"{path}?",
        f"{path}/",
        f"{path}//",
        f"/{path}",
        f"//localhost{path}",
        f"/{service}//{method}",
        f"/.{path}",
        f"/x/..{path}",
        f"/{service}/./{method}",
        f"/%2e{path}",
        f"/{service}%2f{method}",
        f"/{service}/%{ord(method[0]):02x}{method[1:]}",
        f"/{service.replace('.', '%2e')}/{method}",
        f"/{service}/{method.lower()}",
        f"/{service.upper()}/{method}",
        f"/{service}\\{method}",
        f"{path};x=1",
        f"{path}#x",
        f"{path}%00",
        f"{path}%20",
        f"{path} ",
        f" {path}",
        f"{path}\t",
        f"http://localhost{path}",
        f"http://other{path}",
        f"https://localhost:1{path}",
        path[1:],
        "*",
    ]


@case
def no_way_of_writing_a_path_evades_authorization(server):
    with server.connect() as c:
        check(c.call(request(LIST_USERS), message()).code == UNAUTHENTICATED)
        for path in tricks(LIST_USERS):
            answer = c.call(request(path), message())
            refused = answer.code in (UNIMPLEMENTED, UNAUTHENTICATED) or answer.reset == PROTOCOL_ERROR
            check(refused or answer.http in (400, 404), f"{path!r}: {answer}")
        for authority in ("other", "localhost:1", "user@localhost", None):
            for host in ("other", None):
                answer = c.call(request(LIST_USERS, authority=authority, host=host), message())
                refused = answer.code == UNAUTHENTICATED or answer.reset == PROTOCOL_ERROR or answer.http == 400
                check(refused, f"{authority!r}, {host!r}: {answer}")
        server.must_serve(c)


@case
def no_way_of_writing_a_path_evades_a_rate_limit(server):
    """The server of this case lets one address log in once a minute."""
    with server.connect() as c:
        check(c.call(request(LOGIN), A_LOGIN).code == UNAUTHENTICATED)
        check(c.call(request(LOGIN), A_LOGIN).code == RESOURCE_EXHAUSTED)
        for path in tricks(LOGIN):
            answer = c.call(request(path), A_LOGIN)
            refused = answer.code in (UNIMPLEMENTED, RESOURCE_EXHAUSTED) or answer.reset == PROTOCOL_ERROR
            check(refused or answer.http in (400, 404), f"{path!r}: {answer}")
        for authority, host in (("other", None), ("localhost", "other"), (None, "other")):
            answer = c.call(request(LOGIN, authority=authority, host=host), A_LOGIN)
            refused = answer.code == RESOURCE_EXHAUSTED or answer.reset == PROTOCOL_ERROR or answer.http == 400
            check(refused, f"{authority!r}, {host!r}: {answer}")
    # Nor does another connection.
    with server.connect() as c:
        check(c.call(request(LOGIN), A_LOGIN).code == RESOURCE_EXHAUSTED)


@case
def credentials_are_one_value_or_none(server):
    good = f"Bearer {server.token}"
    with server.connect() as c:
        check(c.call(request(WHOAMI, ("authorization", good)), message()).code == OK)
        for what, values in {
            "the same twice": [good, good],
            "a bad one after it": [good, "Bearer x"],
            "a bad one before it": ["Bearer x", good],
            "an empty one after it": [good, ""],
            "two in one": [f"{good}, {good}"],
            "a scheme alone": ["Bearer"],
            "no scheme": [server.token],
            "another scheme": [f"Basic {server.token}"],
            "a tab": [f"Bearer\t{server.token}"],
        }.items():
            fields = request(WHOAMI) + [("authorization", value) for value in values]
            answer = c.call(fields, message())
            check(answer.code == UNAUTHENTICATED, f"{what}: {answer}")
        # In trailers it comes too late.
        stream = c.open(request(WHOAMI), message(), end=False)
        block = c.block([("authorization", good)])
        c.send(frames.HeadersFrame(stream, data=block, flags=["END_HEADERS", "END_STREAM"]))
        answer = c.answer(stream)
        check(answer.code == UNAUTHENTICATED, f"in trailers: {answer}")
        server.must_serve(c)


@case
def odd_metadata_harms_nobody(server):
    """Nothing here is read, and none of it is a fault."""
    with server.connect() as c:
        for name, value in [
            ("x-odd-bin", "!!! no base64 !!!"),
            ("x-odd-bin", "AA==, ====, \xff"),
            ("x-odd-bin", ""),
            ("grpc-trace-bin", "%%%"),
            ("grpc-tags-bin", "x"),
            ("grpc-previous-rpc-attempts", "-1"),
            ("grpc-accept-encoding", "what,ever"),
            ("grpc-status", "0"),
            ("x-bytes", b"\xff\xfe\x80"),
            ("cookie", "a=b; c"),
            ("traceparent", "00-what"),
            ("x-request-id", "x" * 2000),
            ("x-forwarded-for", "1.2.3.4, what"),
        ]:
            answer = c.call(request(GET_JWKS, (name, value)), message())
            check(answer.code == OK, f"{name}: {answer}")


@case
def a_timeout_is_taken_as_it_is_written(server):
    with server.connect() as c:
        for timeout, code in {
            "-1S": INVALID_ARGUMENT,
            "+1S": INVALID_ARGUMENT,
            "1": INVALID_ARGUMENT,
            "S": INVALID_ARGUMENT,
            "": INVALID_ARGUMENT,
            "1.5S": INVALID_ARGUMENT,
            "100000000S": INVALID_ARGUMENT,
            "18446744073709551616n": INVALID_ARGUMENT,
            "1s": INVALID_ARGUMENT,
            "1S, 2S": INVALID_ARGUMENT,
            "0S": DEADLINE_EXCEEDED,
            "0n": DEADLINE_EXCEEDED,
            "99999999H": OK,
            "10S": OK,
        }.items():
            answer = c.call(request(grpc_timeout=timeout), message())
            check(answer.code == code, f"{timeout!r}: {answer}")
        twice = c.call(request(GET_JWKS, ("grpc-timeout", "1S"), ("grpc-timeout", "2S")), message())
        check(twice.code == INVALID_ARGUMENT, f"twice: {twice}")


@case
def a_deadline_that_passes_is_exceeded_and_not_cancelled(server):
    """With a deadline, and without one by the time that a message may take."""
    with server.connect() as c:
        for timeout in ("100m", "1S", None):
            answer = c.answer(c.open(request(grpc_timeout=timeout), message(b"x" * 9)[:7], end=False))
            check(answer.code == DEADLINE_EXCEEDED, f"{timeout}: {answer}")
        server.must_serve(c)


@case
def an_answer_before_the_end_of_a_request_stops_it(server):
    """The rest of a message that nobody will read is not waited for (section 8.1)."""
    with server.connect() as c:
        stream = c.open(request(LIST_USERS, content_type="application/json"), message()[:3], end=False)
        answer = c.answer(stream)
        check(answer.code == INVALID_ARGUMENT or answer.reset is not None, answer)
        # What was on its way is no fault.
        c.send(frames.DataFrame(stream, data=b"x" * 100, flags=["END_STREAM"]))
        server.must_serve(c)
