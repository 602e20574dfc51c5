//! AuditService. Its stream is pulled by its reader: the log is read when the
//! reader asks, so that one who stops reading costs nothing.

use std::{pin::Pin, sync::Arc, time::Duration};

use countersign_proto::v1::{self, audit_service_server::AuditService};
use countersign_verifier::{Rejection, Verifier};
use futures_util::{Stream, stream};
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, service::Routes};

use super::{Api, call, convert};
use crate::{
    domain::{Call, call::MESSAGE_BYTES},
    error::{Error, Reason, Result},
    service::audit::read,
};

/// How often a stream looks for more.
const EVERY: Duration = Duration::from_secs(1);

/// How often a stream says that there is nothing new.
const HEARTBEAT: Duration = Duration::from_secs(10);

/// The service. Clones share it.
#[derive(Debug, Clone)]
pub struct AuditApi {
    api: Api,
    verifier: Arc<Verifier>,
    draining: CancellationToken,
}

/// One who follows the log.
struct Reader {
    service: AuditApi,
    call: Call,
    /// What the reader has seen.
    position: i64,
    /// When the next message is due, also without events.
    due: Instant,
}

impl AuditApi {
    /// The service over these rules. Streams end when `draining` is cancelled, and
    /// when the verifier finds that their credential is good no more.
    pub fn new(api: Api, verifier: Arc<Verifier>, draining: CancellationToken) -> Self {
        Self {
            api,
            verifier,
            draining,
        }
    }

    /// Adds the service to the routes.
    pub fn routes(self, routes: Routes) -> Routes {
        let audit = v1::audit_service_server::AuditServiceServer::new(self);
        routes.add_service(audit.max_decoding_message_size(MESSAGE_BYTES))
    }
}

impl Reader {
    async fn step(mut self) -> Result<Option<(v1::WatchEventsResponse, Self)>, Status> {
        let message = self.next().await?;
        Ok(Some((message, self)))
    }

    /// The next message; an error ends the stream.
    async fn next(&mut self) -> Result<v1::WatchEventsResponse> {
        loop {
            self.recheck()?;
            let Api { core, work } = &self.service.api;
            let (core, call, position) = (Arc::clone(core), self.call.clone(), self.position);
            let reading = async move { read::after(&core, &call, position).await };
            let events = work.run(reading).await?;
            if !events.is_empty() || self.due <= Instant::now() {
                let last = events.last().and_then(|shown| shown.event.position);
                self.position = last.unwrap_or(self.position);
                self.due = Instant::now() + HEARTBEAT;
                return Ok(v1::WatchEventsResponse {
                    events: events.into_iter().map(convert::audit_event).collect(),
                    position: self.position,
                });
            }
            tokio::select! {
                biased;
                () = self.service.draining.cancelled() => return Err(Error::not_ready()),
                () = sleep(EVERY) => {}
            }
        }
    }

    /// The credential that opened the stream must be good still.
    fn recheck(&self) -> Result<()> {
        let caller = self
            .call
            .caller
            .as_ref()
            .ok_or(Reason::CredentialsMissing)?;
        match self.service.verifier.recheck(caller) {
            Ok(()) => Ok(()),
            Err(Rejection::NotReady) => Err(Error::not_ready()),
            Err(_) => Err(Reason::TokenInvalid.into()),
        }
    }
}

#[tonic::async_trait]
impl AuditService for AuditApi {
    type WatchEventsStream =
        Pin<Box<dyn Stream<Item = Result<v1::WatchEventsResponse, Status>> + Send>>;

    async fn list_events(
        &self,
        request: Request<v1::ListEventsRequest>,
    ) -> Result<Response<v1::ListEventsResponse>, Status> {
        let listing =
            self.api.run(
                request,
                convert::list_events,
                |core, call, (filter, page)| async move {
                    read::list(&core, &call, &filter, page).await
                },
            );
        let listing = listing.await?;
        Ok(Response::new(v1::ListEventsResponse {
            events: listing
                .items
                .into_iter()
                .map(convert::audit_event)
                .collect(),
            next_page_token: listing.next_page_token,
        }))
    }

    async fn watch_events(
        &self,
        request: Request<v1::WatchEventsRequest>,
    ) -> Result<Response<Self::WatchEventsStream>, Status> {
        let call = call(request.extensions())?;
        let position = self.api.run(
            request,
            |m| match m.after_position {
                Some(..0) => Err(Error::invalid("after_position", "must not be negative")),
                position => Ok(position),
            },
            |core, call, position| async move { read::follow(&core, &call, position).await },
        );
        let reader = Reader {
            service: self.clone(),
            position: position.await?,
            call,
            due: Instant::now(),
        };
        let stream = stream::try_unfold(reader, Reader::step);
        Ok(Response::new(Box::pin(stream)))
    }

    async fn verify_log(
        &self,
        request: Request<v1::VerifyLogRequest>,
    ) -> Result<Response<v1::VerifyLogResponse>, Status> {
        let checked = self.api.run(
            request,
            convert::verify_log,
            |core, call, (after, anchor)| async move {
                read::check(&core, &call, after, anchor.as_ref()).await
            },
        );
        let read::Checked { report, public_key } = checked.await?;
        Ok(Response::new(v1::VerifyLogResponse {
            fault: report.fault.map(|fault| v1::AuditFault {
                kind: fault.what.name().to_owned(),
                batch: fault.batch.unwrap_or_default(),
                position: fault.position.unwrap_or_default(),
                event_id: fault.id.map(|id| id.to_string()).unwrap_or_default(),
                description: fault.to_string(),
            }),
            batch: report.batches,
            position: report.records,
            complete: report.complete,
            anchor: report
                .newest
                .map(|newest| newest.anchor())
                .unwrap_or_default(),
            public_key,
            expired_position: report.expired.map_or(0, |expired| expired.position),
            unchained: report.unchained,
            unsealed: report.unsealed,
        }))
    }
}
