//! Logout: by the refresh token, or by the access token of the call.

use super::{Core, record, refresh};
use crate::{
    domain::{Call, audit::Action, trust::TrustChange},
    error::{Reason, Result},
    service::{token, trust},
    store::sessions,
};

/// Ends a session. Ending one that has ended is not an error.
pub async fn logout(core: &Core, call: &Call, refresh_token: Option<&str>) -> Result<()> {
    let presented = match refresh_token {
        Some(text) => Some(refresh::read(core, call, text).await?),
        None => None,
    };
    let session_id = match &presented {
        Some((_, token)) => token.session_id,
        None => call.session_id().ok_or(Reason::CredentialsMissing)?,
    };
    let written = core
        .store
        .write(call, async |tx| {
            let Some(state) = sessions::state(tx, session_id).await? else {
                return Ok(());
            };
            if let Some((keys, token)) = &presented
                && !token.bound_to(&keys.refresh, &state.binding)
            {
                return Err(token::refused());
            }
            if sessions::revoke(tx, session_id, core.now()).await? {
                let event = record::event(core, call, Action::Logout);
                let event = event
                    .about(state.user_id)
                    .by(state.user_id)
                    .session(session_id);
                record::insert(core, tx, &event).await?;
                tx.announce(TrustChange::SessionRevoked { session_id });
            }
            Ok(())
        })
        .await?;
    match written.seq {
        None => trust::reach_head(core, call).await,
        seq => core.trust.reach(seq).await,
    }
}
