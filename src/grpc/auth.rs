//! AuthService.

use countersign_proto::v1::{self, auth_service_server::AuthService};
use prost::Message;
use tonic::{Request, Response, Status};
use zeroize::Zeroizing;

use super::{Api, convert};
use crate::{
    domain::User,
    error::{Error, Result},
    service::{
        login, logout,
        once::{Made, Repeatable},
        password, refresh, register, users,
    },
};

#[tonic::async_trait]
impl AuthService for Api {
    async fn register(
        &self,
        request: Request<v1::RegisterRequest>,
    ) -> Result<Response<v1::RegisterResponse>, Status> {
        let read = |message: v1::RegisterRequest| {
            let body = Zeroizing::new(message.encode_to_vec());
            let (wish, request_id) = convert::register(message)?;
            let encode = |user: &User| registered(user.clone()).encode_to_vec();
            Ok((
                wish,
                Repeatable {
                    method: "Register",
                    request_id,
                    body,
                    encode,
                },
            ))
        };
        let made = self.run(request, read, |core, call, (wish, request)| async move {
            register::register(&core, &call, wish, request).await
        });
        Ok(Response::new(match made.await? {
            Made::Now(user) => registered(user),
            Made::Before(reply) => Message::decode(&*reply).map_err(Error::internal)?,
        }))
    }

    async fn login(
        &self,
        request: Request<v1::LoginRequest>,
    ) -> Result<Response<v1::LoginResponse>, Status> {
        let done = self.run(request, convert::login, |core, call, wish| async move {
            login::login(&core, &call, wish).await
        });
        let login::LoggedIn {
            tokens,
            device_token,
        } = done.await?;
        let tokens = convert::pair(&tokens);
        Ok(Response::new(v1::LoginResponse {
            result: Some(v1::login_response::Result::Tokens(tokens)),
            device_token,
        }))
    }

    async fn refresh(
        &self,
        request: Request<v1::RefreshRequest>,
    ) -> Result<Response<v1::RefreshResponse>, Status> {
        let pair = self.run(
            request,
            convert::refresh,
            |core, call, (token, audiences)| async move {
                refresh::refresh(&core, &call, &token, audiences).await
            },
        );
        let tokens = Some(convert::pair(&pair.await?));
        Ok(Response::new(v1::RefreshResponse { tokens }))
    }

    async fn logout(
        &self,
        request: Request<v1::LogoutRequest>,
    ) -> Result<Response<v1::LogoutResponse>, Status> {
        let done = self.run(request, convert::logout, |core, call, token| async move {
            logout::logout(&core, &call, token.as_deref()).await
        });
        done.await?;
        Ok(Response::new(v1::LogoutResponse {}))
    }

    async fn who_am_i(
        &self,
        request: Request<v1::WhoAmIRequest>,
    ) -> Result<Response<v1::WhoAmIResponse>, Status> {
        let found = self.run(request, Ok, |core, call, _| async move {
            let user = users::own(&core, &call).await?;
            Ok((user, call.caller))
        });
        let (user, caller) = found.await?;
        Ok(Response::new(v1::WhoAmIResponse {
            user: user.map(convert::user),
            caller: caller.map(|caller| convert::caller(&caller)),
        }))
    }

    async fn change_password(
        &self,
        request: Request<v1::ChangePasswordRequest>,
    ) -> Result<Response<v1::ChangePasswordResponse>, Status> {
        let pair = self.run(
            request,
            convert::change_password,
            |core, call, (current, new)| async move {
                password::change(&core, &call, &current, &new).await
            },
        );
        let tokens = Some(convert::pair(&pair.await?));
        Ok(Response::new(v1::ChangePasswordResponse { tokens }))
    }
}

fn registered(user: User) -> v1::RegisterResponse {
    v1::RegisterResponse {
        user: Some(convert::user(user)),
    }
}
