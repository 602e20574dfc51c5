//! Reads what Envoy sends without ever failing: bytes that are no message
//! become the empty one, which is about no request and so is refused. A failure
//! here would be one that a caller can bring about.

use countersign_proto::envoy::service::auth::v3::{CheckRequest, CheckResponse};
use prost::{Message as _, bytes::Buf as _};
use tonic::{
    Status,
    codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder},
};

#[derive(Debug, Clone, Copy)]
pub(super) struct Lenient;

impl Codec for Lenient {
    type Encode = CheckResponse;
    type Decode = CheckRequest;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        *self
    }

    fn decoder(&mut self) -> Self {
        *self
    }
}

impl Decoder for Lenient {
    type Item = CheckRequest;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<CheckRequest>, Status> {
        // All of it, so that nothing is left that would be taken for more.
        let bytes = from.copy_to_bytes(from.remaining());
        Ok(Some(CheckRequest::decode(bytes).unwrap_or_default()))
    }
}

impl Encoder for Lenient {
    type Item = CheckResponse;
    type Error = Status;

    fn encode(&mut self, item: CheckResponse, into: &mut EncodeBuf<'_>) -> Result<(), Status> {
        item.encode(into)
            .map_err(|error| crate::error::Error::internal(error).into())
    }
}
