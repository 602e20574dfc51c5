//! One stream of one node: how it is opened, what it is acknowledged by, and why it may be lost.

use std::time::Duration;

use countersign_proto::v1::{
    self, trust_service_client::TrustServiceClient, watch_trust_response::Event,
};
use thiserror::Error;
use tokio::time::timeout;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::{Channel, Endpoint};
use tonic::{Status, Streaming};

use super::bearer::with_bearer;
use crate::wire::Malformed;

/// The largest message: a snapshot's part, or the deltas of one batch.
const MOST_BYTES: usize = 16 * 1024 * 1024;

/// A stream that has said welcome.
pub(super) struct Stream {
    /// Number of the node.
    pub(super) node: usize,
    client: TrustServiceClient<Channel>,
    bearer: Option<MetadataValue<Ascii>>,
    pub(super) messages: Streaming<v1::WatchTrustResponse>,
    id: String,
    /// Of the node's knowledge, as it was opened.
    pub(super) age: Duration,
}

/// Why a stream was given up, or never opened.
#[derive(Debug, Error)]
pub(super) enum Lost {
    #[error("the node cannot be reached: {0}")]
    Unreachable(#[from] tonic::transport::Error),
    #[error("the node ended the stream: {0}")]
    Ended(#[from] Status),
    #[error("the node says nothing")]
    Quiet,
    #[error("{0}")]
    Malformed(#[from] Malformed),
    #[error("the node is of another issuer")]
    Issuer,
    #[error("the node lacks what is known here")]
    Behind,
    #[error("the credential cannot be read: {0}")]
    Credential(String),
}

impl Stream {
    /// Opens a stream to the node of that number and waits for its welcome.
    pub(super) async fn open(
        node: usize,
        endpoint: &Endpoint,
        bearer: Option<MetadataValue<Ascii>>,
        request: v1::WatchTrustRequest,
    ) -> Result<Self, Lost> {
        let channel = endpoint.connect().await?;
        let mut client = TrustServiceClient::new(channel).max_decoding_message_size(MOST_BYTES);
        let request = with_bearer(request, bearer.as_ref());
        let mut messages = client.watch_trust(request).await?.into_inner();
        let first = messages.message().await?.ok_or(Lost::Quiet)?;
        let age = age(&first)?;
        let Some(Event::Welcome(welcome)) = first.event else {
            return Err(Lost::Malformed(Malformed("welcome")));
        };
        Ok(Self {
            node,
            client,
            bearer,
            messages,
            id: welcome.stream_id,
            age,
        })
    }

    /// Whether the node has taken it. If not, the next heartbeat makes us try again.
    pub(super) async fn acknowledge(&mut self, seq: Option<i64>) -> bool {
        let request = v1::AckTrustRequest {
            stream_id: self.id.clone(),
            seq: seq.unwrap_or_default(),
        };
        let request = with_bearer(request, self.bearer.as_ref());
        let answer = timeout(Duration::from_secs(1), self.client.ack_trust(request)).await;
        if let Ok(Err(status)) = &answer {
            tracing::debug!(%status, "an acknowledgement failed");
        }
        matches!(answer, Ok(Ok(_)))
    }
}

/// How old what a message says was when it was sent.
pub(super) fn age(message: &v1::WatchTrustResponse) -> Result<Duration, Malformed> {
    let age = message.age.ok_or(Malformed("age"))?;
    Duration::try_from(age).map_err(|_| Malformed("age"))
}
