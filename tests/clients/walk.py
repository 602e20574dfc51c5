"""A client in Python, as a team that has only the protos would write one.

Makes stubs from the protos, goes the way of an account from registration to
logout, reads the details of errors as grpcio-status gives them, and prints what
it found as JSON. Any surprise ends it with a traceback.

SERVICE_CONFIG is a file with a client's retry policy.

usage: walk.py ADDRESS PROTOS STUBS SERVICE_CONFIG
"""

import json
import pathlib
import sys

import grpc
from google.protobuf import any_pb2
from google.rpc import error_details_pb2
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)
from grpc_status import rpc_status
from grpc_tools import protoc

EMAIL = "python@example.com"
PASSWORD = "a long walk by the sea"


def make_stubs(protos, stubs):
    files = sorted(str(path) for path in pathlib.Path(protos).rglob("*.proto"))
    well_known = pathlib.Path(protoc.__file__).parent / "_proto"
    code = protoc.main(
        ["protoc", f"-I{protos}", f"-I{well_known}", f"--python_out={stubs}", f"--grpc_python_out={stubs}", *files]
    )
    assert code == 0, "protoc failed"
    sys.path.insert(0, stubs)


def details_of(error):
    """Each detail of an error under the name of its type."""
    status = rpc_status.from_call(error)
    assert status is not None, f"{error} has no details"
    assert status.code == error.code().value[0]
    found = {}
    for detail in status.details:
        assert isinstance(detail, any_pb2.Any)
        name = detail.type_url.rsplit(".", 1)[-1]
        message = getattr(error_details_pb2, name)()
        assert detail.Unpack(message), detail.type_url
        found[name] = message
    return found


def refused(code, reason, call, *arguments, **options):
    """The details of a call that must be refused so."""
    try:
        reply = call(*arguments, **options)
    except grpc.RpcError as error:
        details = details_of(error)
        info = details["ErrorInfo"]
        assert (error.code(), info.reason) == (code, reason), f"{error.code()} {info}"
        assert info.domain == "countersign"
        headers = dict(error.initial_metadata() or ()) | dict(error.trailing_metadata() or ())
        assert details["RequestInfo"].request_id == headers["x-request-id"]
        return details, headers
    raise AssertionError(f"not refused: {reply}")


def main():
    address, protos, stubs, service_config = sys.argv[1:]
    make_stubs(protos, stubs)
    from countersign.v1 import auth_pb2, auth_pb2_grpc, token_pb2, token_pb2_grpc

    found = {}
    policy = pathlib.Path(service_config).read_text(encoding="utf-8")
    with grpc.insecure_channel(address, options=(("grpc.service_config", policy),)) as channel:
        # A policy that cannot be used fails every call.
        tokens = token_pb2_grpc.TokenServiceStub(channel)
        found["keys"] = len(tokens.GetJwks(token_pb2.GetJwksRequest()).keys)
    with grpc.insecure_channel(address) as channel:
        found["services"] = sorted(ProtoReflectionDescriptorDatabase(channel).get_services())
        auth = auth_pb2_grpc.AuthServiceStub(channel)
        tokens = token_pb2_grpc.TokenServiceStub(channel)

        request = auth_pb2.RegisterRequest(email=EMAIL, password=PASSWORD)
        user = auth.Register(request, timeout=10).user
        found["user_id"] = user.user_id
        refused(grpc.StatusCode.ALREADY_EXISTS, "EMAIL_TAKEN", auth.Register, request)
        bad = auth_pb2.RegisterRequest(email="nobody", password=PASSWORD, username="!")
        details, _ = refused(grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST", auth.Register, bad)
        found["violations"] = sorted(v.field for v in details["BadRequest"].field_violations)

        request = auth_pb2.LoginRequest(identifier=EMAIL, password=PASSWORD, device_name="a script")
        pair = auth.Login(request).tokens
        assert pair.token_type == "Bearer"
        validate = token_pb2.ValidateTokenRequest(token=pair.access_token)
        reply, call = tokens.ValidateToken.with_call(validate, metadata=(("x-request-id", "python-1"),))
        found["subject"] = reply.caller.subject
        found["request_id"] = dict(call.initial_metadata())["x-request-id"]
        bearer = (("authorization", f"Bearer {pair.access_token}"),)
        found["whoami"] = auth.WhoAmI(auth_pb2.WhoAmIRequest(), metadata=bearer).user.email
        refused(grpc.StatusCode.UNAUTHENTICATED, "CREDENTIALS_MISSING", auth.WhoAmI, auth_pb2.WhoAmIRequest())

        refresh = auth_pb2.RefreshRequest(refresh_token=pair.refresh_token)
        following = auth.Refresh(refresh).tokens
        assert following.session_id == pair.session_id
        auth.Logout(auth_pb2.LogoutRequest(refresh_token=following.refresh_token))
        validate = token_pb2.ValidateTokenRequest(token=following.access_token)
        refused(grpc.StatusCode.UNAUTHENTICATED, "TOKEN_INVALID", tokens.ValidateToken, validate)

        # The node lets three logins pass in a minute.
        wrong = auth_pb2.LoginRequest(identifier=EMAIL, password="not the password, no")
        for _ in range(2):
            refused(grpc.StatusCode.UNAUTHENTICATED, "LOGIN_FAILED", auth.Login, wrong)
        details, headers = refused(grpc.StatusCode.RESOURCE_EXHAUSTED, "RATE_LIMITED", auth.Login, wrong)
        found["retry_seconds"] = details["RetryInfo"].retry_delay.ToTimedelta().total_seconds()
        found["pushback_ms"] = int(headers["grpc-retry-pushback-ms"])
        found["quota"] = details["QuotaFailure"].violations[0].description
    print(json.dumps(found))


if __name__ == "__main__":
    main()
