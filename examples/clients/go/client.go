// A service that calls Countersign: the way of an account, as a program goes it.
//
// It registers NAME@example.com, logs in, asks whom the token speaks for,
// refreshes, and logs out. Two calls are refused on the way, as they must be.
// ../README.md says how to make the stubs and run it.
//
// usage: go run . NAME
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"time"

	"github.com/google/uuid"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	countersign "example.com/countersign-client/gen/countersign/v1"
)

const (
	deadline = 10 * time.Second
	password = "a long walk by the sea"
)

// CallError is a call that failed. Programs look at the Reason; messages are for
// people and may change.
type CallError struct {
	Method string
	Status *status.Status
	// Both stay empty where nothing of Countersign's answered.
	Reason, RequestID string
}

func newCallError(method string, err error) *CallError {
	failed := &CallError{Method: path.Base(method), Status: status.Convert(err)}
	for _, detail := range failed.Status.Details() {
		switch detail := detail.(type) {
		case *errdetails.ErrorInfo:
			if detail.Domain == "countersign" {
				failed.Reason = detail.Reason
			}
		case *errdetails.RequestInfo:
			failed.RequestID = detail.RequestId
		}
	}
	return failed
}

func (e *CallError) Error() string {
	return fmt.Sprintf("%s: %s %q: %s [x-request-id %q]",
		e.Method, e.Status.Code(), e.Reason, e.Status.Message(), e.RequestID)
}

// call gives each call a deadline and an id that finds it in Countersign's log.
func call(ctx context.Context, method string, request, reply any, connection *grpc.ClientConn,
	invoke grpc.UnaryInvoker, options ...grpc.CallOption) error {
	ctx, cancel := context.WithTimeout(ctx, deadline)
	defer cancel()
	ctx = metadata.AppendToOutgoingContext(ctx, "x-request-id", "go-"+uuid.NewString())
	if err := invoke(ctx, method, request, reply, connection, options...); err != nil {
		return newCallError(method, err)
	}
	return nil
}

// mustBeRefused takes the error of a call that has to fail with this reason.
func mustBeRefused(reason string, err error) error {
	if err == nil {
		return fmt.Errorf("not refused with %s", reason)
	}
	var failed *CallError
	if !errors.As(err, &failed) || failed.Reason != reason {
		return err
	}
	fmt.Println("refused    ", failed)
	return nil
}

func walk(ctx context.Context, connection *grpc.ClientConn, name string) error {
	auth := countersign.NewAuthServiceClient(connection)
	tokens := countersign.NewTokenServiceClient(connection)
	email := name + "@example.com"

	registered, err := auth.Register(ctx, &countersign.RegisterRequest{
		Email:    email,
		Password: password,
		// With it a creating call may be repeated: it has its effect once.
		RequestId: uuid.NewString(),
	})
	if err != nil {
		return err
	}
	user := registered.GetUser()
	fmt.Println("registered ", user.GetUserId())

	login, err := auth.Login(ctx, &countersign.LoginRequest{Identifier: email, Password: password})
	if err != nil {
		return err
	}
	pair := login.GetTokens()
	fmt.Println("logged in  ", pair.GetSessionId())

	validated, err := tokens.ValidateToken(ctx, &countersign.ValidateTokenRequest{Token: pair.GetAccessToken()})
	if err != nil {
		return err
	}
	caller := validated.GetCaller()
	if caller.GetSubject() != user.GetUserId() {
		return fmt.Errorf("the token speaks for %q", caller.GetSubject())
	}
	until := caller.GetExpiresAt().AsTime().Format(time.RFC3339)
	fmt.Println("validated  ", caller.GetSubject(), caller.GetKind(), "until", until)

	refreshed, err := auth.Refresh(ctx, &countersign.RefreshRequest{RefreshToken: pair.GetRefreshToken()})
	if err != nil {
		return err
	}
	pair = refreshed.GetTokens()
	fmt.Println("refreshed  ", pair.GetSessionId())

	_, err = auth.Login(ctx, &countersign.LoginRequest{Identifier: email, Password: "a short walk by the sea"})
	if err := mustBeRefused("LOGIN_FAILED", err); err != nil {
		return err
	}

	if _, err := auth.Logout(ctx, &countersign.LogoutRequest{RefreshToken: pair.GetRefreshToken()}); err != nil {
		return err
	}
	fmt.Println("logged out ", pair.GetSessionId())
	_, err = auth.Refresh(ctx, &countersign.RefreshRequest{RefreshToken: pair.GetRefreshToken()})
	return mustBeRefused("REFRESH_TOKEN_INVALID", err)
}

func run(name string) error {
	address := os.Getenv("COUNTERSIGN_ADDRESS")
	if address == "" {
		address = "127.0.0.1:50051"
	}
	serviceConfig, err := os.ReadFile("../service_config.json")
	if err != nil {
		return err
	}
	connection, err := grpc.NewClient(address,
		// Beyond the loopback address: credentials.NewTLS.
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		// gRPC itself repeats, by this policy, what is worth repeating.
		grpc.WithDefaultServiceConfig(string(serviceConfig)),
		grpc.WithUnaryInterceptor(call),
	)
	if err != nil {
		return err
	}
	defer connection.Close()
	return walk(context.Background(), connection, name)
}

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: go run . NAME")
		os.Exit(1)
	}
	if err := run(os.Args[1]); err != nil {
		fmt.Fprintln(os.Stderr, "failed     ", err)
		os.Exit(1)
	}
}
