// A service that calls Countersign: the way of an account, as a program goes it.
//
// It registers NAME@example.com, logs in, asks whom the token speaks for,
// refreshes, and logs out. Two calls are refused on the way, as they must be.
// ../README.md says how to make the stubs and run it.
//
// usage: npm start -- NAME

import { randomUUID } from "node:crypto";
import { readFileSync } from "node:fs";

import { Client, credentials, Metadata, type MethodDefinition, type ServiceError, status } from "@grpc/grpc-js";

import { AuthServiceService, LoginRequest, LogoutRequest, RefreshRequest, RegisterRequest } from "./gen/countersign/v1/auth.js";
import { CallerKind, TokenServiceService, ValidateTokenRequest } from "./gen/countersign/v1/token.js";
import { ErrorInfo, RequestInfo } from "./gen/google/rpc/error_details.js";
import { Status } from "./gen/google/rpc/status.js";

const ADDRESS = process.env.COUNTERSIGN_ADDRESS ?? "127.0.0.1:50051";
// As seen from dist/, where the compiled program is.
const SERVICE_CONFIG = new URL("../../service_config.json", import.meta.url);
const DEADLINE_MS = 10_000;
const PASSWORD = "a long walk by the sea";

/** Countersign answered, and it was not what this program came for. */
class Surprise extends Error {}

/** A call that failed. Programs look at the reason; messages are for people and may change. */
class CallError extends Error {
  readonly reason: string;

  constructor(path: string, error: ServiceError) {
    // Both stay empty where nothing of Countersign's answered.
    let reason = "";
    let requestId = "";
    const [encoded] = error.metadata?.get("grpc-status-details-bin") ?? [];
    const details = encoded instanceof Buffer ? Status.decode(encoded).details : [];
    for (const { typeUrl, value } of details) {
      if (typeUrl.endsWith("/google.rpc.ErrorInfo")) {
        const info = ErrorInfo.decode(value);
        if (info.domain === "countersign") reason = info.reason;
      } else if (typeUrl.endsWith("/google.rpc.RequestInfo")) {
        requestId = RequestInfo.decode(value).requestId;
      }
    }
    const method = path.slice(path.lastIndexOf("/") + 1);
    super(
      `${method}: ${status[error.code]} ${reason || "(no reason)"}: ${error.details}` +
        ` [x-request-id ${requestId || "unknown"}]`,
    );
    this.reason = reason;
  }
}

class Countersign {
  // One channel for all services. Beyond the loopback address: credentials.createSsl().
  readonly #client = new Client(ADDRESS, credentials.createInsecure(), {
    // gRPC itself repeats, by this policy, what is worth repeating.
    "grpc.service_config": readFileSync(SERVICE_CONFIG, "utf8"),
  });

  /** One call, with a deadline and an id that finds it in Countersign's log. */
  call<Request, Response>(method: MethodDefinition<Request, Response>, request: Request): Promise<Response> {
    const metadata = new Metadata();
    metadata.set("x-request-id", `typescript-${randomUUID()}`);
    const options = { deadline: Date.now() + DEADLINE_MS };
    return new Promise((resolve, reject) => {
      this.#client.makeUnaryRequest(
        method.path,
        method.requestSerialize,
        method.responseDeserialize,
        request,
        metadata,
        options,
        (error, response) => {
          if (error) reject(new CallError(method.path, error));
          else if (response === undefined) reject(new Surprise(`${method.path} sent nothing`));
          else resolve(response);
        },
      );
    });
  }

  async mustBeRefused<Request, Response>(
    reason: string,
    method: MethodDefinition<Request, Response>,
    request: Request,
  ): Promise<void> {
    try {
      await this.call(method, request);
    } catch (error) {
      if (!(error instanceof CallError) || error.reason !== reason) throw error;
      console.log("refused    ", error.message);
      return;
    }
    throw new Surprise(`${method.path} was not refused with ${reason}`);
  }

  close(): void {
    this.#client.close();
  }
}

/** A part of a message that the server always sends. */
function sent<Part>(part: Part | undefined): Part {
  if (part === undefined) throw new Surprise("a part of the answer is missing");
  return part;
}

async function walk(countersign: Countersign, name: string): Promise<void> {
  const email = `${name}@example.com`;

  // With a request_id of its own a creating call may be repeated: it has its effect once.
  const registered = await countersign.call(
    AuthServiceService.register,
    RegisterRequest.fromPartial({ email, password: PASSWORD, requestId: randomUUID() }),
  );
  const user = sent(registered.user);
  console.log("registered ", user.userId);

  const login = LoginRequest.fromPartial({ identifier: email, password: PASSWORD });
  let pair = sent((await countersign.call(AuthServiceService.login, login)).tokens);
  console.log("logged in  ", pair.sessionId);

  const validate = ValidateTokenRequest.fromPartial({ token: pair.accessToken });
  const caller = sent((await countersign.call(TokenServiceService.validateToken, validate)).caller);
  if (caller.subject !== user.userId) throw new Surprise(`the token speaks for ${caller.subject}`);
  console.log("validated  ", caller.subject, CallerKind[caller.kind], "until", sent(caller.expiresAt).toISOString());

  const refresh = RefreshRequest.fromPartial({ refreshToken: pair.refreshToken });
  pair = sent((await countersign.call(AuthServiceService.refresh, refresh)).tokens);
  console.log("refreshed  ", pair.sessionId);

  const wrong = LoginRequest.fromPartial({ identifier: email, password: "a short walk by the sea" });
  await countersign.mustBeRefused("LOGIN_FAILED", AuthServiceService.login, wrong);

  await countersign.call(AuthServiceService.logout, LogoutRequest.fromPartial({ refreshToken: pair.refreshToken }));
  console.log("logged out ", pair.sessionId);
  const ended = RefreshRequest.fromPartial({ refreshToken: pair.refreshToken });
  await countersign.mustBeRefused("REFRESH_TOKEN_INVALID", AuthServiceService.refresh, ended);
}

const [name] = process.argv.slice(2);
if (name === undefined) {
  console.error("usage: npm start -- NAME");
  process.exit(1);
}
const countersign = new Countersign();
try {
  await walk(countersign, name);
} catch (error) {
  if (!(error instanceof CallError || error instanceof Surprise)) throw error;
  console.error("failed     ", error.message);
  process.exitCode = 1;
} finally {
  countersign.close();
}
