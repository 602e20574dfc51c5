//! UserService.

use countersign_proto::v1::{self, user_service_server::UserService};
use prost::Message;
use tonic::{Request, Response, Status};
use zeroize::Zeroizing;

use super::{Api, convert};
use crate::{
    domain::User,
    error::{Error, Result},
    service::{
        once::{Made, Repeatable},
        password, users,
    },
};

#[tonic::async_trait]
impl UserService for Api {
    async fn create_user(
        &self,
        request: Request<v1::CreateUserRequest>,
    ) -> Result<Response<v1::CreateUserResponse>, Status> {
        let read = |message: v1::CreateUserRequest| {
            let body = Zeroizing::new(message.encode_to_vec());
            let (wish, request_id) = convert::create_user(message)?;
            let encode = |user: &User| created(user.clone()).encode_to_vec();
            Ok((
                wish,
                Repeatable {
                    method: "CreateUser",
                    request_id,
                    body,
                    encode,
                },
            ))
        };
        let made = self.run(request, read, |core, call, (wish, request)| async move {
            users::create(&core, &call, wish, request).await
        });
        Ok(Response::new(match made.await? {
            Made::Now(user) => created(user),
            Made::Before(reply) => Message::decode(&*reply).map_err(Error::internal)?,
        }))
    }

    async fn get_user(
        &self,
        request: Request<v1::GetUserRequest>,
    ) -> Result<Response<v1::GetUserResponse>, Status> {
        let user = self.run(
            request,
            |m| convert::user_id(&m.user_id),
            |core, call, id| async move { users::get(&core, &call, id).await },
        );
        let user = Some(convert::user(user.await?));
        Ok(Response::new(v1::GetUserResponse { user }))
    }

    async fn batch_get_users(
        &self,
        request: Request<v1::BatchGetUsersRequest>,
    ) -> Result<Response<v1::BatchGetUsersResponse>, Status> {
        let found = self.run(
            request,
            |m| convert::user_ids(&m),
            |core, call, ids| async move { users::get_batch(&core, &call, &ids).await },
        );
        let (users, missing) = found.await?;
        Ok(Response::new(v1::BatchGetUsersResponse {
            users: users.into_iter().map(convert::user).collect(),
            missing_user_ids: missing.iter().map(ToString::to_string).collect(),
        }))
    }

    async fn list_users(
        &self,
        request: Request<v1::ListUsersRequest>,
    ) -> Result<Response<v1::ListUsersResponse>, Status> {
        let listing =
            self.run(
                request,
                convert::list_users,
                |core, call, (filter, page)| async move {
                    users::list(&core, &call, &filter, page).await
                },
            );
        let listing = listing.await?;
        Ok(Response::new(v1::ListUsersResponse {
            users: listing.items.into_iter().map(convert::user).collect(),
            next_page_token: listing.next_page_token,
        }))
    }

    async fn update_user(
        &self,
        request: Request<v1::UpdateUserRequest>,
    ) -> Result<Response<v1::UpdateUserResponse>, Status> {
        let user = self.run(
            request,
            convert::update_user,
            |core, call, (id, change)| async move { users::update(&core, &call, id, change).await },
        );
        let user = Some(convert::user(user.await?));
        Ok(Response::new(v1::UpdateUserResponse { user }))
    }

    async fn delete_user(
        &self,
        request: Request<v1::DeleteUserRequest>,
    ) -> Result<Response<v1::DeleteUserResponse>, Status> {
        let done = self.run(
            request,
            |m| convert::user_id(&m.user_id),
            |core, call, id| async move { users::delete(&core, &call, id).await },
        );
        done.await?;
        Ok(Response::new(v1::DeleteUserResponse {}))
    }

    async fn disable_user(
        &self,
        request: Request<v1::DisableUserRequest>,
    ) -> Result<Response<v1::DisableUserResponse>, Status> {
        let user = self.run(
            request,
            |m| convert::user_id(&m.user_id),
            |core, call, id| async move { users::disable(&core, &call, id).await },
        );
        let user = Some(convert::user(user.await?));
        Ok(Response::new(v1::DisableUserResponse { user }))
    }

    async fn enable_user(
        &self,
        request: Request<v1::EnableUserRequest>,
    ) -> Result<Response<v1::EnableUserResponse>, Status> {
        let user = self.run(
            request,
            |m| convert::user_id(&m.user_id),
            |core, call, id| async move { users::enable(&core, &call, id).await },
        );
        let user = Some(convert::user(user.await?));
        Ok(Response::new(v1::EnableUserResponse { user }))
    }

    async fn unlock_user(
        &self,
        request: Request<v1::UnlockUserRequest>,
    ) -> Result<Response<v1::UnlockUserResponse>, Status> {
        let user = self.run(
            request,
            |m| convert::user_id(&m.user_id),
            |core, call, id| async move { users::unlock(&core, &call, id).await },
        );
        let user = Some(convert::user(user.await?));
        Ok(Response::new(v1::UnlockUserResponse { user }))
    }

    async fn set_password(
        &self,
        request: Request<v1::SetPasswordRequest>,
    ) -> Result<Response<v1::SetPasswordResponse>, Status> {
        let read = |m: v1::SetPasswordRequest| convert::set_password(&m);
        let done = self.run(request, read, |core, call, (id, new)| async move {
            password::set(&core, &call, id, &new).await
        });
        done.await?;
        Ok(Response::new(v1::SetPasswordResponse {}))
    }

    async fn grant_role(
        &self,
        request: Request<v1::GrantRoleRequest>,
    ) -> Result<Response<v1::GrantRoleResponse>, Status> {
        let read = |m: v1::GrantRoleRequest| convert::user_and_role(&m.user_id, &m.role);
        let user = self.run(request, read, |core, call, (id, role)| async move {
            users::grant(&core, &call, id, &role).await
        });
        let user = Some(convert::user(user.await?));
        Ok(Response::new(v1::GrantRoleResponse { user }))
    }

    async fn revoke_role(
        &self,
        request: Request<v1::RevokeRoleRequest>,
    ) -> Result<Response<v1::RevokeRoleResponse>, Status> {
        let read = |m: v1::RevokeRoleRequest| convert::user_and_role(&m.user_id, &m.role);
        let user = self.run(request, read, |core, call, (id, role)| async move {
            users::revoke(&core, &call, id, &role).await
        });
        let user = Some(convert::user(user.await?));
        Ok(Response::new(v1::RevokeRoleResponse { user }))
    }
}

fn created(user: User) -> v1::CreateUserResponse {
    v1::CreateUserResponse {
        user: Some(convert::user(user)),
    }
}
