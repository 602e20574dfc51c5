//! Decides in process whether a Countersign credential is good.
use jiff::Timestamp;
use uuid::Uuid;
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CallerKind {
    User,
}
#[derive(Debug, Clone, PartialEq)]
pub struct Caller {
    pub subject: Uuid,
    pub kind: CallerKind,
    pub session_id: Uuid,
    pub client_id: String,
    pub roles: Vec<String>,
    pub scopes: Vec<String>,
    pub audience: Vec<String>,
    pub issued_at: Timestamp,
    pub expires_at: Timestamp,
    pub auth_methods: Vec<String>,
    pub authenticated_at: Timestamp,
    pub epoch: i64,
    pub token_id: Uuid,
}
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Algorithm {
    Ed25519,
    Es256,
}
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyState {
    Next,
    Active,
    Retired,
}
pub trait Clock: Send + Sync + std::fmt::Debug {
    fn now(&self) -> Timestamp;
    fn monotonic(&self) -> std::time::Duration;
}
