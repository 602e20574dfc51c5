//! What makes the audit log tell when it was altered: a MAC for each record, a
//! link that binds it to all before it, and signed checkpoints.
//!
//! All of it comes from the keys of one purpose. MACs and links need the secret,
//! so that whoever can only write rows cannot mend a chain that they broke.
//! Checkpoints are signed (Ed25519, by a seed that is derived from the secret),
//! so that an anchor is judged by who has only the public key.
//!
//! Addresses and user agents are not in a record but their digest is, with a
//! random salt: they can be erased without breaking anything.

use std::collections::BTreeMap;

use aws_lc_rs::{
    digest::{SHA256, digest},
    hmac,
    signature::{ED25519, Ed25519KeyPair, KeyPair as _, UnparsedPublicKey},
};
use jiff::Timestamp;
use zeroize::Zeroizing;

use super::{
    seal::Sealer,
    secret_key::{Ring, equal, mac},
};
use crate::{
    domain::{
        AuditEvent,
        audit::{Checkpoint, Origin, Record, Seal, SealedEvent},
        signing_key::{Purpose, SecretKey},
    },
    error::{Error, Result},
};

const RECORD: &[u8] = b"countersign audit record v1\0";
const ORIGIN: &[u8] = b"countersign audit origin v1\0";
const LINK: &[u8] = b"countersign audit link v1\0";
const SEED: &[u8] = b"countersign audit signing seed v1\0";
const CHECKPOINT: &[u8] = b"countersign audit checkpoint v1\0";
const MARK: &[u8] = b"countersign audit retention v1\0";

/// What binds a record to all before it.
pub type Link = [u8; 32];

/// The keys of the audit log.
#[derive(Debug)]
pub struct AuditKeys {
    ring: Ring,
    public_keys: BTreeMap<i32, Vec<u8>>,
}

impl AuditKeys {
    /// Opens the audit keys among these; fails if there is none.
    pub fn open(keys: &[SecretKey], sealer: &Sealer) -> Result<Self> {
        let ring = Ring::open(keys, Purpose::Audit, sealer)?;
        let mut public_keys = BTreeMap::new();
        for (id, key) in ring.iter() {
            public_keys.insert(id, pair(key)?.public_key().as_ref().to_vec());
        }
        Ok(Self { ring, public_keys })
    }

    /// The event as it is to be stored; `salt` is random.
    pub fn seal(&self, event: &AuditEvent, salt: [u8; 16]) -> SealedEvent {
        let mut record = Record::of(event);
        let known = event.address.is_some() || !event.user_agent.is_empty();
        let origin = known.then(|| Origin {
            salt: salt.to_vec(),
            address: event.address.map(|address| address.to_string()),
            user_agent: event.user_agent.clone(),
        });
        record.origin_digest = origin.as_ref().map(origin_digest);
        let (key_id, key) = self.ring.maker(event.at);
        let mac = record_mac(key, &record).to_vec();
        SealedEvent {
            record,
            origin,
            seal: Seal { key_id, mac },
        }
    }

    /// Whether we wrote this record, under whichever key.
    pub fn is_ours(&self, record: &Record, seal: &Seal) -> bool {
        let key = self.ring.get(seal.key_id);
        key.is_some_and(|key| equal(&record_mac(key, record), &seal.mac))
    }

    /// The key that chains now.
    pub fn maker_id(&self, now: Timestamp) -> i32 {
        self.ring.maker(now).0
    }

    /// The link of the record with this MAC at this position, after the link
    /// before it; zeroes before the first. None if the key is not known.
    pub fn link(&self, key_id: i32, before: &Link, position: i64, mac_of: &[u8]) -> Option<Link> {
        let key = self.ring.get(key_id)?;
        Some(mac(key, &[LINK, before, &position.to_be_bytes(), mac_of]))
    }

    /// Signs a checkpoint by the key that it names.
    pub fn sign(&self, checkpoint: Checkpoint) -> Result<Checkpoint> {
        self.sign_as(CHECKPOINT, checkpoint)
    }

    /// Signs a checkpoint as the last whose records went by age. No other can be
    /// passed for that.
    pub fn sign_mark(&self, checkpoint: Checkpoint) -> Result<Checkpoint> {
        self.sign_as(MARK, checkpoint)
    }

    fn sign_as(&self, label: &[u8], checkpoint: Checkpoint) -> Result<Checkpoint> {
        let key = self.ring.get(checkpoint.key_id);
        let key = key.ok_or_else(|| Error::internal("there is no such audit key"))?;
        let signature = pair(key)?.sign(&signed(label, &checkpoint));
        let signature = signature.as_ref().try_into().map_err(Error::internal)?;
        Ok(Checkpoint {
            signature,
            ..checkpoint
        })
    }

    /// Whether we signed this checkpoint.
    pub fn is_signed(&self, checkpoint: &Checkpoint) -> bool {
        self.is_signed_as(CHECKPOINT, checkpoint)
    }

    /// Whether we signed this checkpoint as the last whose records went by age.
    pub fn is_mark(&self, checkpoint: &Checkpoint) -> bool {
        self.is_signed_as(MARK, checkpoint)
    }

    fn is_signed_as(&self, label: &[u8], checkpoint: &Checkpoint) -> bool {
        self.public_key(checkpoint.key_id).is_some_and(|key| {
            UnparsedPublicKey::new(&ED25519, key)
                .verify(&signed(label, checkpoint), &checkpoint.signature)
                .is_ok()
        })
    }

    /// What checkpoints of this key are verified by.
    pub fn public_key(&self, key_id: i32) -> Option<&[u8]> {
        self.public_keys.get(&key_id).map(Vec::as_slice)
    }
}

/// The digest that binds an origin to its record.
pub fn origin_digest(origin: &Origin) -> Vec<u8> {
    let mut bytes = ORIGIN.to_vec();
    part(&mut bytes, Some(&origin.salt));
    part(&mut bytes, origin.address.as_deref().map(str::as_bytes));
    part(&mut bytes, Some(origin.user_agent.as_bytes()));
    digest(&SHA256, &bytes).as_ref().to_vec()
}

fn pair(key: &hmac::Key) -> Result<Ed25519KeyPair> {
    let seed: Zeroizing<[u8; 32]> = Zeroizing::new(mac(key, &[SEED]));
    Ed25519KeyPair::from_seed_unchecked(seed.as_ref()).map_err(Error::internal)
}

fn signed(label: &[u8], checkpoint: &Checkpoint) -> Vec<u8> {
    [label, &checkpoint.fields()].concat()
}

/// A record whose columns changed has another MAC: each part is preceded by its
/// length, and one that is not there is told from an empty one.
fn record_mac(key: &hmac::Key, record: &Record) -> [u8; 32] {
    // Named one by one: a column that is added must be covered too.
    let Record {
        id,
        at,
        action,
        outcome,
        actor,
        workload,
        subject,
        session_id,
        role_id,
        api_key_id,
        kid,
        correlation_id,
        origin_digest,
        represents,
    } = record;
    let mut bytes = Vec::with_capacity(512);
    part(&mut bytes, Some(id.as_bytes()));
    part(&mut bytes, Some(&at.as_microsecond().to_be_bytes()));
    part(&mut bytes, Some(action.as_bytes()));
    part(&mut bytes, Some(outcome.as_bytes()));
    for id in [actor, subject, session_id, role_id, api_key_id] {
        part(&mut bytes, id.as_ref().map(|id| &id.as_bytes()[..]));
    }
    part(&mut bytes, workload.as_deref().map(str::as_bytes));
    part(&mut bytes, kid.as_deref().map(str::as_bytes));
    part(&mut bytes, Some(correlation_id.as_bytes()));
    part(&mut bytes, origin_digest.as_deref());
    // Came later: a record that stands for itself has the MAC that it had before.
    if *represents != 1 {
        part(&mut bytes, Some(&represents.to_be_bytes()));
    }
    mac(key, &[RECORD, &bytes])
}

fn part(bytes: &mut Vec<u8>, part: Option<&[u8]>) {
    let length = part.map_or(u64::MAX, |part| part.len() as u64);
    bytes.extend(length.to_be_bytes());
    bytes.extend(part.unwrap_or_default());
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;
    use uuid::Uuid;

    use super::*;
    use crate::{
        crypto::{MasterKey, secret_key, testing::Seeded},
        domain::{
            ApiKeyId, RoleId, SessionId, UserId,
            audit::{Action, Outcome},
        },
    };

    fn keys(ids: &[i32]) -> AuditKeys {
        let entropy = Seeded::new(1);
        let sealer = Sealer::new(&MasterKey::generate(&entropy).into()).unwrap();
        let make = |id: &i32| {
            let now = Timestamp::from_second(i64::from(*id)).unwrap();
            secret_key::generate(*id, Purpose::Audit, now, &entropy, sealer.first()).unwrap()
        };
        let keys: Vec<_> = ids.iter().map(make).collect();
        AuditKeys::open(&keys, &sealer).unwrap()
    }

    fn event() -> AuditEvent {
        let id = Uuid::from_u128;
        AuditEvent {
            id: id(1),
            at: Timestamp::from_microsecond(1_800_000_000_000_000).unwrap(),
            action: Action::Login,
            outcome: Outcome::Success,
            actor: Some(UserId(id(2))),
            workload: Some("importer".into()),
            subject: Some(UserId(id(3))),
            session_id: Some(SessionId(id(4))),
            role_id: Some(RoleId(id(5))),
            api_key_id: Some(ApiKeyId(id(6))),
            kid: Some("kid".to_owned()),
            correlation_id: "c-1".to_owned(),
            address: Some("192.0.2.1".parse().unwrap()),
            user_agent: "curl".to_owned(),
            represents: 1,
        }
    }

    #[test]
    fn a_record_with_another_column_is_not_ours() {
        let keys = keys(&[1]);
        let sealed = keys.seal(&event(), [7; 16]);
        assert!(keys.is_ours(&sealed.record, &sealed.seal));
        let other = Some(Uuid::from_u128(99));
        let changes: [fn(&mut Record, Option<Uuid>); 22] = [
            |r, other| r.id = other.unwrap(),
            |r, _| r.at = Timestamp::from_microsecond(r.at.as_microsecond() + 1).unwrap(),
            |r, _| r.action = "session.logout".to_owned(),
            |r, _| r.outcome = "failure".to_owned(),
            |r, other| r.actor = other,
            |r, _| r.actor = None,
            |r, _| std::mem::swap(&mut r.actor, &mut r.subject),
            |r, _| r.workload = Some("other".to_owned()),
            |r, _| r.workload = Some(String::new()),
            |r, _| r.workload = None,
            |r, other| r.subject = other,
            |r, other| r.session_id = other,
            |r, other| r.role_id = other,
            |r, other| r.api_key_id = other,
            |r, _| r.kid = Some("dik".to_owned()),
            |r, _| r.kid = None,
            |r, _| r.correlation_id = "c-2".to_owned(),
            |r, _| r.correlation_id = String::new(),
            |r, _| r.origin_digest = Some(vec![0; 32]),
            |r, _| r.origin_digest = None,
            |r, _| r.represents = 2,
            |r, _| r.represents = 0,
        ];
        for (n, change) in changes.iter().enumerate() {
            let mut record = sealed.record.clone();
            change(&mut record, other);
            assert_ne!(record, sealed.record, "{n}");
            assert!(!keys.is_ours(&record, &sealed.seal), "{n}");
        }
        let mut seal = sealed.seal.clone();
        seal.mac[31] ^= 1;
        assert!(!keys.is_ours(&sealed.record, &seal));
        seal.mac.clear();
        assert!(!keys.is_ours(&sealed.record, &seal));
    }

    #[test]
    fn older_keys_still_count_and_unknown_ones_do_not() {
        let (old, both) = (keys(&[1]), keys(&[1, 2]));
        let sealed = old.seal(&event(), [7; 16]);
        assert!(both.is_ours(&sealed.record, &sealed.seal));
        let new = both.seal(&event(), [7; 16]);
        assert_eq!((new.seal.key_id, both.maker_id(event().at)), (2, 2));
        assert!(!old.is_ours(&new.record, &new.seal));
        assert_eq!(old.link(2, &[0; 32], 1, &new.seal.mac), None);
        let mixed = Seal {
            key_id: 1,
            ..new.seal
        };
        assert!(!both.is_ours(&new.record, &mixed));
    }

    #[test]
    fn an_origin_is_told_by_its_digest_and_not_without_its_salt() {
        let keys = keys(&[1]);
        let sealed = keys.seal(&event(), [7; 16]);
        let digest = sealed.record.origin_digest.clone().unwrap();
        let origin = sealed.origin.unwrap();
        assert_eq!(origin_digest(&origin), digest);
        for other in [
            Origin {
                salt: vec![8; 16],
                ..origin.clone()
            },
            Origin {
                address: None,
                ..origin.clone()
            },
            Origin {
                address: Some("192.0.2.2".to_owned()),
                ..origin.clone()
            },
            Origin {
                user_agent: String::new(),
                ..origin.clone()
            },
        ] {
            assert_ne!(origin_digest(&other), digest);
        }
        let nowhere = AuditEvent {
            address: None,
            user_agent: String::new(),
            ..event()
        };
        let sealed = keys.seal(&nowhere, [7; 16]);
        assert_eq!((sealed.origin, sealed.record.origin_digest), (None, None));
    }

    #[test]
    fn a_link_is_of_its_place_and_of_all_before_it() {
        let keys = keys(&[1, 2]);
        let link = |before, position, mac: &[u8]| keys.link(1, before, position, mac).unwrap();
        let first = link(&[0; 32], 1, b"a");
        assert_eq!(first, link(&[0; 32], 1, b"a"));
        assert_ne!(first, link(&[0; 32], 2, b"a"));
        assert_ne!(first, link(&[0; 32], 1, b"b"));
        assert_ne!(first, link(&first, 1, b"a"));
        assert_ne!(Some(first), keys.link(2, &[0; 32], 1, b"a"));
    }

    #[test]
    fn a_checkpoint_is_signed_as_a_whole_and_by_its_own_key() {
        let keys = keys(&[1, 2]);
        let checkpoint = Checkpoint {
            batch: 1,
            position: 10,
            created_at: Timestamp::from_second(1_800_000_000).unwrap(),
            key_id: 2,
            root: [5; 32],
            signature: [0; 64],
        };
        assert!(!keys.is_signed(&checkpoint));
        // Neither can be passed for the other.
        let mark = keys.sign_mark(checkpoint.clone()).unwrap();
        assert!(keys.is_mark(&mark) && !keys.is_signed(&mark));
        let good = keys.sign(checkpoint).unwrap();
        assert!(keys.is_signed(&good) && !keys.is_mark(&good));
        let read: Checkpoint = good.anchor().parse().unwrap();
        assert!(keys.is_signed(&read));
        for other in [
            Checkpoint {
                batch: 2,
                ..good.clone()
            },
            Checkpoint {
                position: 9,
                ..good.clone()
            },
            Checkpoint {
                created_at: Timestamp::from_second(1).unwrap(),
                ..good.clone()
            },
            Checkpoint {
                key_id: 1,
                ..good.clone()
            },
            Checkpoint {
                key_id: 3,
                ..good.clone()
            },
            Checkpoint {
                root: [6; 32],
                ..good.clone()
            },
            Checkpoint {
                signature: [1; 64],
                ..good.clone()
            },
        ] {
            assert!(!keys.is_signed(&other), "{other:?}");
        }
    }
}
