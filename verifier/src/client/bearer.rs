//! The credential by which a validator may follow the feed.

use std::path::PathBuf;
use std::{fmt, fs};

use tonic::Request;
use tonic::metadata::{Ascii, MetadataValue};

use super::Lost;

/// Where the credential comes from.
#[derive(Clone, Default)]
pub enum Bearer {
    /// None: a client certificate of the endpoint stands for it.
    #[default]
    None,
    /// An API key or an access token.
    Text(String),
    /// A file that holds one; read again for each connection, so that it can be rotated.
    File(PathBuf),
}

impl Bearer {
    /// The credential as a header's value, as it is now.
    pub(super) fn read(&self) -> Result<Option<MetadataValue<Ascii>>, Lost> {
        let text = match self {
            Self::None => return Ok(None),
            Self::Text(text) => text.clone(),
            // Small and local.
            Self::File(path) => fs::read_to_string(path)
                .map_err(|error| Lost::Credential(format!("{}: {error}", path.display())))?,
        };
        let value = MetadataValue::try_from(format!("Bearer {}", text.trim()));
        let mut value = value.map_err(|_| Lost::Credential("it is no header value".to_owned()))?;
        value.set_sensitive(true);
        Ok(Some(value))
    }
}

/// Says where it comes from, never what it is.
impl fmt::Debug for Bearer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("None"),
            Self::Text(_) => f.write_str("Text(…)"),
            Self::File(path) => f.debug_tuple("File").field(path).finish(),
        }
    }
}

/// A request that carries the credential.
pub(super) fn with_bearer<M>(message: M, bearer: Option<&MetadataValue<Ascii>>) -> Request<M> {
    let mut request = Request::new(message);
    if let Some(bearer) = bearer {
        request
            .metadata_mut()
            .insert("authorization", bearer.clone());
    }
    request
}
