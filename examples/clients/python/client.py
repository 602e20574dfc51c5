"""A service that calls Countersign: the way of an account, as a program goes it.

It registers NAME@example.com, logs in, asks whom the token speaks for,
refreshes, and logs out. Two calls are refused on the way, as they must be.
../README.md says how to make the stubs and run it.

usage: client.py NAME
"""

import os
import pathlib
import sys
import uuid

import grpc
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from countersign.v1 import auth_pb2, auth_pb2_grpc, token_pb2, token_pb2_grpc

ADDRESS = os.environ.get("COUNTERSIGN_ADDRESS", "127.0.0.1:50051")
SERVICE_CONFIG = pathlib.Path(__file__).resolve().parent.parent / "service_config.json"
DEADLINE_SECONDS = 10
PASSWORD = "a long walk by the sea"


class Surprise(Exception):
    """Countersign answered, and it was not what this program came for."""


class CallError(Exception):
    """A call that failed. Programs look at the reason; messages are for people and may change."""

    def __init__(self, method, error):
        # Both stay empty where nothing of Countersign's answered.
        self.reason = ""
        self.request_id = ""
        status = rpc_status.from_call(error)
        for detail in status.details if status else ():
            info, request = error_details_pb2.ErrorInfo(), error_details_pb2.RequestInfo()
            if detail.Unpack(info) and info.domain == "countersign":
                self.reason = info.reason
            elif detail.Unpack(request):
                self.request_id = request.request_id
        super().__init__(
            f"{method}: {error.code().name} {self.reason or '(no reason)'}: {error.details()}"
            f" [x-request-id {self.request_id or 'unknown'}]"
        )


def call(stub, method, request):
    """One call, with a deadline and an id that finds it in Countersign's log."""
    metadata = [("x-request-id", f"python-{uuid.uuid4()}")]
    try:
        return getattr(stub, method)(request, timeout=DEADLINE_SECONDS, metadata=metadata)
    except grpc.RpcError as error:
        raise CallError(method, error) from error


def must_be_refused(reason, stub, method, request):
    try:
        call(stub, method, request)
    except CallError as error:
        if error.reason != reason:
            raise
        print("refused    ", error)
        return
    raise Surprise(f"{method} was not refused with {reason}")


def walk(channel, name):
    auth = auth_pb2_grpc.AuthServiceStub(channel)
    tokens = token_pb2_grpc.TokenServiceStub(channel)
    email = f"{name}@example.com"

    # With a request_id of its own a creating call may be repeated: it has its effect once.
    request = auth_pb2.RegisterRequest(email=email, password=PASSWORD, request_id=str(uuid.uuid4()))
    user = call(auth, "Register", request).user
    print("registered ", user.user_id)

    pair = call(auth, "Login", auth_pb2.LoginRequest(identifier=email, password=PASSWORD)).tokens
    print("logged in  ", pair.session_id)

    caller = call(tokens, "ValidateToken", token_pb2.ValidateTokenRequest(token=pair.access_token)).caller
    if caller.subject != user.user_id:
        raise Surprise(f"the token speaks for {caller.subject}")
    kind = token_pb2.CallerKind.Name(caller.kind)
    print("validated  ", caller.subject, kind, "until", caller.expires_at.ToJsonString())

    pair = call(auth, "Refresh", auth_pb2.RefreshRequest(refresh_token=pair.refresh_token)).tokens
    print("refreshed  ", pair.session_id)

    wrong = auth_pb2.LoginRequest(identifier=email, password="a short walk by the sea")
    must_be_refused("LOGIN_FAILED", auth, "Login", wrong)

    call(auth, "Logout", auth_pb2.LogoutRequest(refresh_token=pair.refresh_token))
    print("logged out ", pair.session_id)
    ended = auth_pb2.RefreshRequest(refresh_token=pair.refresh_token)
    must_be_refused("REFRESH_TOKEN_INVALID", auth, "Refresh", ended)


def main():
    if len(sys.argv) != 2:
        raise SystemExit("usage: client.py NAME")
    # gRPC itself repeats, by this policy, what is worth repeating.
    options = [("grpc.service_config", SERVICE_CONFIG.read_text(encoding="utf-8"))]
    # Beyond the loopback address: grpc.secure_channel with grpc.ssl_channel_credentials().
    with grpc.insecure_channel(ADDRESS, options) as channel:
        try:
            walk(channel, sys.argv[1])
        except (CallError, Surprise) as error:
            raise SystemExit(f"failed      {error}") from error


if __name__ == "__main__":
    main()
