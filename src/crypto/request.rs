//! MACs that make a later request fit an earlier one: page tokens, device
//! tokens, the bodies of requests that carry a `request_id`, and the names of
//! failed logins.
//!
//! A page token is authenticated, not encrypted: it holds what the page before
//! it showed. It is bound to a scope, the caller and the filter, so that it
//! continues the list that it came from and no other. The MAC over a body is
//! keyed because bodies hold passwords, which a plain digest would let a
//! reader of the database guess at; so are names.
//!
//! A device token says that somebody has logged in to an account, and tells that
//! device from others. It opens nothing.

use aws_lc_rs::{
    digest::{SHA256, digest},
    hmac,
};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use jiff::Timestamp;
use uuid::Uuid;

use super::{
    seal::Sealer,
    secret_key::{Ring, equal, mac},
};
use crate::{
    domain::{
        Identifier, UserId,
        signing_key::{Purpose, SecretKey},
        throttle::ThrottleKey,
    },
    error::{Error, Reason, Result},
};

const VERSION: u8 = 1;
const PAGE: &[u8] = b"countersign page token v1\0";
const BODY: &[u8] = b"countersign request body v1\0";
const NAME: &[u8] = b"countersign login name v1\0";
const DEVICE: &[u8] = b"countersign device token v1\0";
const DEVICE_COUNT: &[u8] = b"countersign device count v1\0";
const ACCOUNT: &[u8] = b"countersign account count v1\0";
const TOKEN_MAC: usize = 16;

/// What a device token starts with.
const DEVICE_PREFIX: &str = "csd_";

/// A longer text is no page token.
const MOST_CHARACTERS: usize = 1024;

/// The keys of page tokens, device tokens, request bodies and login names.
#[derive(Debug)]
pub struct RequestKeys {
    ring: Ring,
    /// Counts failed logins.
    count: Ring,
}

/// A device from which somebody has logged in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Device {
    /// To which account.
    pub user_id: UserId,
    /// The least epoch that its sessions could have then.
    pub epoch: i64,
    /// What failed logins from it are counted by.
    pub key: ThrottleKey,
}

impl RequestKeys {
    /// Opens the keys of requests among these; fails if there is none.
    pub fn open(keys: &[SecretKey], sealer: &Sealer) -> Result<Self> {
        Ok(Self {
            ring: Ring::open(keys, Purpose::Request, sealer)?,
            count: Ring::open(keys, Purpose::Throttle, sealer)?,
        })
    }

    /// The MAC of a request's whole body under the key that makes.
    pub fn body_mac(&self, now: Timestamp, method: &str, body: &[u8]) -> [u8; 32] {
        body_mac(self.ring.maker(now).1, method, body)
    }

    /// Whether `mac` is of this body, under whichever key it was made.
    pub fn is_body_mac(&self, method: &str, body: &[u8], mac: &[u8]) -> bool {
        self.ring
            .keys()
            .any(|key| equal(&body_mac(key, method, body), mac))
    }

    /// What failed logins under this name are counted by.
    pub fn throttle_key(&self, name: &Identifier) -> ThrottleKey {
        ThrottleKey(mac(self.count.first(), &[NAME, name.as_str().as_bytes()]))
    }

    /// What passwords are counted by that somebody tries who is logged in.
    pub fn account_key(&self, user_id: UserId) -> ThrottleKey {
        ThrottleKey(mac(self.count.first(), &[ACCOUNT, user_id.0.as_bytes()]))
    }

    /// A token for the device from which somebody has logged in, while the least
    /// epoch of the account's sessions is `epoch`; `id` is random.
    pub fn device_token(
        &self,
        now: Timestamp,
        user_id: UserId,
        epoch: i64,
        id: [u8; 16],
    ) -> String {
        let body = [user_id.0.as_bytes().as_slice(), &epoch.to_be_bytes(), &id].concat();
        let token = self.token(now, &body, device_mac);
        format!("{DEVICE_PREFIX}{token}")
    }

    /// The device that a token was made for; none if it is not one of ours.
    pub fn device(&self, text: &str) -> Option<Device> {
        let (key, body) = self.opened(text.strip_prefix(DEVICE_PREFIX)?, device_mac)?;
        let (user_id, rest) = body.split_first_chunk()?;
        let (epoch, id) = rest.split_first_chunk()?;
        Some(Device {
            user_id: UserId(Uuid::from_bytes(*user_id)),
            epoch: i64::from_be_bytes(*epoch),
            key: ThrottleKey(mac(key, &[DEVICE_COUNT, id])),
        })
    }

    /// A token that continues a list after `cursor`. `scope` is all that must
    /// be the same on the next call: caller and filter, or a digest of them.
    pub fn page_token(&self, now: Timestamp, scope: &[u8], cursor: &[u8]) -> String {
        self.token(now, cursor, |key, cursor| page_mac(key, scope, cursor))
    }

    /// The cursor in a page token that was made for the same scope; fails with
    /// `PAGE_TOKEN_INVALID`.
    pub fn open_page_token(&self, scope: &[u8], text: &str) -> Result<Vec<u8>> {
        self.opened(text, |key, cursor| page_mac(key, scope, cursor))
            .map(|(_, cursor)| cursor)
            .ok_or_else(|| Error::new(Reason::PageTokenInvalid))
    }

    fn token(
        &self,
        now: Timestamp,
        body: &[u8],
        mac: impl Fn(&hmac::Key, &[u8]) -> [u8; TOKEN_MAC],
    ) -> String {
        let (id, key) = self.ring.maker(now);
        let token = [
            &[VERSION],
            id.to_be_bytes().as_slice(),
            &mac(key, body),
            body,
        ]
        .concat();
        URL_SAFE_NO_PAD.encode(token)
    }

    /// What a token holds, and the key that it was made under.
    fn opened(
        &self,
        text: &str,
        mac: impl Fn(&hmac::Key, &[u8]) -> [u8; TOKEN_MAC],
    ) -> Option<(&hmac::Key, Vec<u8>)> {
        if text.len() > MOST_CHARACTERS {
            return None;
        }
        let token = URL_SAFE_NO_PAD.decode(text).ok()?;
        let (&version, rest) = token.split_first()?;
        let (&id, rest) = rest.split_first_chunk()?;
        let (found, body) = rest.split_first_chunk::<TOKEN_MAC>()?;
        let key = self.ring.get(i32::from_be_bytes(id))?;
        (version == VERSION && equal(&mac(key, body), found)).then(|| (key, body.to_vec()))
    }
}

/// Stands for a workload where ids of users stand, as what callers have asked for
/// is kept by caller. A digest: nobody finds another name with the same.
pub fn workload_id(name: &str) -> Uuid {
    let digest = digest(&SHA256, name.as_bytes());
    let first = digest.as_ref().first_chunk().copied().unwrap_or_default();
    uuid::Builder::from_custom_bytes(first).into_uuid()
}

fn body_mac(key: &hmac::Key, method: &str, body: &[u8]) -> [u8; 32] {
    mac(
        key,
        &[BODY, &length(method.as_bytes()), method.as_bytes(), body],
    )
}

fn page_mac(key: &hmac::Key, scope: &[u8], cursor: &[u8]) -> [u8; TOKEN_MAC] {
    mac(key, &[PAGE, &length(scope), scope, cursor])
}

fn device_mac(key: &hmac::Key, body: &[u8]) -> [u8; TOKEN_MAC] {
    mac(key, &[DEVICE, body])
}

/// Written before a part that another one follows.
fn length(part: &[u8]) -> [u8; 8] {
    (part.len() as u64).to_be_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::{MasterKey, secret_key, testing::Seeded};

    /// A ring of key 1, and the same ring once key 2 is there.
    fn keys() -> (RequestKeys, RequestKeys) {
        let entropy = Seeded::new(1);
        let sealer = Sealer::new(&MasterKey::generate(&entropy).into()).unwrap();
        let make = |id, purpose| {
            let now = Timestamp::from_second(i64::from(id)).unwrap();
            secret_key::generate(id, purpose, now, &entropy, sealer.first()).unwrap()
        };
        let request = Purpose::Request;
        let all = [
            make(1, request),
            make(3, Purpose::Throttle),
            make(2, request),
        ];
        (
            RequestKeys::open(&all[..2], &sealer).unwrap(),
            RequestKeys::open(&all, &sealer).unwrap(),
        )
    }

    /// When all nodes have had the time to hear of both.
    fn now() -> Timestamp {
        Timestamp::from_second(1_000).unwrap()
    }

    #[test]
    fn a_new_key_makes_when_all_have_heard_of_it() {
        let (old, new) = keys();
        let early = Timestamp::from_second(2).unwrap();
        let token = new.page_token(early, b"", b"cursor");
        assert_eq!(old.open_page_token(b"", &token).unwrap(), b"cursor");
        let mac = new.body_mac(early, "Register", b"body");
        assert!(old.is_body_mac("Register", b"body", &mac));
        // Failed logins are counted on.
        let name: Identifier = "ana@example.com".parse().unwrap();
        assert_eq!(old.throttle_key(&name), new.throttle_key(&name));
    }

    #[test]
    fn a_page_token_continues_its_own_list_only() {
        let (old, new) = keys();
        let token = old.page_token(now(), b"ana|active", b"cursor");
        assert_eq!(
            old.open_page_token(b"ana|active", &token).unwrap(),
            b"cursor"
        );
        assert_eq!(
            new.open_page_token(b"ana|active", &token).unwrap(),
            b"cursor"
        );
        for scope in ["", "ben|active", "ana|activ", "ana|activec"] {
            let error = new.open_page_token(scope.as_bytes(), &token).unwrap_err();
            assert_eq!(error.reason(), Reason::PageTokenInvalid, "{scope}");
        }
        let later = new.page_token(now(), b"ana|active", b"cursor");
        assert!(old.open_page_token(b"ana|active", &later).is_err());
    }

    #[test]
    fn an_altered_page_token_is_refused() {
        let (keys, _) = keys();
        let token = keys.page_token(now(), b"scope", b"cursor!!");
        let bytes = URL_SAFE_NO_PAD.decode(&token).unwrap();
        for bit in 0..bytes.len() * 8 {
            let mut altered = bytes.clone();
            altered[bit / 8] ^= 1 << (bit % 8);
            let text = URL_SAFE_NO_PAD.encode(altered);
            assert!(keys.open_page_token(b"scope", &text).is_err(), "bit {bit}");
        }
        // A byte moved from the cursor to the scope.
        let (head, cursor) = bytes.split_at(bytes.len() - b"cursor!!".len());
        let moved = URL_SAFE_NO_PAD.encode([head, &cursor[1..]].concat());
        assert!(keys.open_page_token(b"scopec", &moved).is_err());
        for text in [
            "",
            "A",
            "not base64!",
            &format!("{token}="),
            &"A".repeat(5000),
        ] {
            assert!(keys.open_page_token(b"scope", text).is_err());
        }
    }

    #[test]
    fn a_device_token_is_of_its_account_and_counts_apart() {
        let (old, new) = keys();
        let (ana, ben) = (UserId(Uuid::from_u128(1)), UserId(Uuid::from_u128(2)));
        let token = old.device_token(now(), ana, 5, [7; 16]);
        let device = old.device(&token).unwrap();
        assert_eq!((device.user_id, device.epoch), (ana, 5));
        assert_eq!(new.device(&token), Some(device), "under its own key");
        // One count for each device, and none for a name.
        assert_eq!(
            old.device(&old.device_token(now(), ben, 5, [7; 16]))
                .unwrap()
                .key,
            device.key
        );
        assert_ne!(
            old.device(&old.device_token(now(), ana, 5, [8; 16]))
                .unwrap()
                .key,
            device.key
        );
        assert!(
            old.device(&new.device_token(now(), ana, 5, [7; 16]))
                .is_none()
        );

        let text = token.strip_prefix(DEVICE_PREFIX).unwrap();
        let bytes = URL_SAFE_NO_PAD.decode(text).unwrap();
        for bit in 0..bytes.len() * 8 {
            let mut altered = bytes.clone();
            altered[bit / 8] ^= 1 << (bit % 8);
            let text = format!("{DEVICE_PREFIX}{}", URL_SAFE_NO_PAD.encode(altered));
            assert!(old.device(&text).is_none(), "bit {bit}");
        }
        // Neither stands for the other.
        assert!(old.open_page_token(b"", text).is_err());
        let page = old.page_token(now(), b"", &bytes[21..]);
        for text in [
            "",
            "csd_",
            text,
            &token[..token.len() - 1],
            &format!("csd_{page}"),
        ] {
            assert!(old.device(text).is_none(), "{text}");
        }
    }

    #[test]
    fn a_body_mac_knows_method_body_and_key() {
        let (old, new) = keys();
        let mac = old.body_mac(now(), "Register", b"body");
        assert!(new.is_body_mac("Register", b"body", &mac));
        assert_ne!(new.body_mac(now(), "Register", b"body"), mac);
        assert!(!old.is_body_mac(
            "Register",
            b"body",
            &new.body_mac(now(), "Register", b"body")
        ));
        assert!(!new.is_body_mac("Register", b"bodY", &mac));
        assert!(!new.is_body_mac("CreateUser", b"body", &mac));
        assert!(!new.is_body_mac("Registerb", b"ody", &mac));
        assert!(!new.is_body_mac("Register", b"body", &mac[..31]));
        assert!(!new.is_body_mac("Register", b"body", b""));
    }
}
