//! RoleService.

use countersign_proto::v1::{self, role_service_server::RoleService};
use prost::Message;
use tonic::{Request, Response, Status};
use zeroize::Zeroizing;

use super::{Api, convert};
use crate::{
    domain::Role,
    error::{Error, Result},
    service::{
        once::{Made, Repeatable},
        roles,
    },
};

#[tonic::async_trait]
impl RoleService for Api {
    async fn create_role(
        &self,
        request: Request<v1::CreateRoleRequest>,
    ) -> Result<Response<v1::CreateRoleResponse>, Status> {
        let read = |message: v1::CreateRoleRequest| {
            let body = Zeroizing::new(message.encode_to_vec());
            let (wish, request_id) = convert::create_role(message)?;
            let encode = |role: &Role| created(role.clone()).encode_to_vec();
            Ok((
                wish,
                Repeatable {
                    method: "CreateRole",
                    request_id,
                    body,
                    encode,
                },
            ))
        };
        let made = self.run(request, read, |core, call, (wish, request)| async move {
            roles::create(&core, &call, wish, request).await
        });
        Ok(Response::new(match made.await? {
            Made::Now(role) => created(role),
            Made::Before(reply) => Message::decode(&*reply).map_err(Error::internal)?,
        }))
    }

    async fn list_roles(
        &self,
        request: Request<v1::ListRolesRequest>,
    ) -> Result<Response<v1::ListRolesResponse>, Status> {
        let listing = self.run(
            request,
            convert::list_roles,
            |core, call, page| async move { roles::list(&core, &call, page).await },
        );
        let listing = listing.await?;
        Ok(Response::new(v1::ListRolesResponse {
            roles: listing.items.into_iter().map(convert::role).collect(),
            next_page_token: listing.next_page_token,
        }))
    }

    async fn update_role(
        &self,
        request: Request<v1::UpdateRoleRequest>,
    ) -> Result<Response<v1::UpdateRoleResponse>, Status> {
        let role =
            self.run(
                request,
                convert::update_role,
                |core, call, (name, change)| async move {
                    roles::update(&core, &call, &name, change).await
                },
            );
        let role = Some(convert::role(role.await?));
        Ok(Response::new(v1::UpdateRoleResponse { role }))
    }

    async fn delete_role(
        &self,
        request: Request<v1::DeleteRoleRequest>,
    ) -> Result<Response<v1::DeleteRoleResponse>, Status> {
        let done = self.run(
            request,
            |m| convert::role_name(&m.name),
            |core, call, name| async move { roles::delete(&core, &call, &name).await },
        );
        done.await?;
        Ok(Response::new(v1::DeleteRoleResponse {}))
    }
}

fn created(role: Role) -> v1::CreateRoleResponse {
    v1::CreateRoleResponse {
        role: Some(convert::role(role)),
    }
}
