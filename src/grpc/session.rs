//! SessionService.

use countersign_proto::v1::{self, session_service_server::SessionService};
use tonic::{Request, Response, Status};

use super::{Api, convert};
use crate::{error::Result, service::sessions};

#[tonic::async_trait]
impl SessionService for Api {
    async fn list_sessions(
        &self,
        request: Request<v1::ListSessionsRequest>,
    ) -> Result<Response<v1::ListSessionsResponse>, Status> {
        let listing = self.run(
            request,
            convert::list_sessions,
            |core, call, (owner, page)| async move {
                let listing = sessions::list(&core, &call, owner, page).await?;
                Ok((listing, call.session_id()))
            },
        );
        let (listing, current) = listing.await?;
        let sessions = listing.items.into_iter();
        Ok(Response::new(v1::ListSessionsResponse {
            sessions: sessions
                .map(|session| convert::session(session, current))
                .collect(),
            next_page_token: listing.next_page_token,
        }))
    }

    async fn revoke_session(
        &self,
        request: Request<v1::RevokeSessionRequest>,
    ) -> Result<Response<v1::RevokeSessionResponse>, Status> {
        let read = |m: v1::RevokeSessionRequest| convert::session_id(&m.session_id);
        let done = self.run(request, read, |core, call, id| async move {
            sessions::revoke(&core, &call, id).await
        });
        done.await?;
        Ok(Response::new(v1::RevokeSessionResponse {}))
    }

    async fn revoke_all_sessions(
        &self,
        request: Request<v1::RevokeAllSessionsRequest>,
    ) -> Result<Response<v1::RevokeAllSessionsResponse>, Status> {
        let read = |m: v1::RevokeAllSessionsRequest| {
            Ok((convert::optional_user_id(&m.user_id)?, m.keep_current))
        };
        let count = self.run(
            request,
            read,
            |core, call, (owner, keep_current)| async move {
                sessions::revoke_all(&core, &call, owner, keep_current).await
            },
        );
        let revoked_count = i32::try_from(count.await?).unwrap_or(i32::MAX);
        Ok(Response::new(v1::RevokeAllSessionsResponse {
            revoked_count,
        }))
    }
}
