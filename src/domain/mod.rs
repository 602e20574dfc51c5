//! What things are: values, their rules and their states. No I/O, no clock, no
//! database, no wire; whatever is built here is legal.

pub mod api_key;
pub mod audit;
pub mod blocklist;
pub mod call;
pub mod entropy;
pub mod id;
pub mod identity;
pub mod master_key;
pub mod network;
pub mod node;
pub mod page;
pub mod password;
pub mod permission;
pub mod role;
pub mod session;
pub mod signing_key;
pub mod stuffing;
pub mod text;
pub mod throttle;
pub mod trust;
pub mod user;
pub mod violation;
pub mod workload;

pub use api_key::{ApiKey, ApiKeyName};
pub use audit::AuditEvent;
pub use call::{Call, CorrelationId, Cost, Peer, Presence};
pub use entropy::Entropy;
pub use id::{ApiKeyId, RoleId, SessionId, UserId};
pub use identity::{DisplayName, Email, Identifier, Username};
pub use master_key::MasterKeyId;
pub use node::Node;
pub use page::{Page, PageSize};
pub use password::{Password, PasswordHash, StoredPassword};
pub use permission::{Permission, PermissionName};
pub use role::{Role, RoleName};
pub use session::Session;
pub use user::{Metadata, User, UserStatus};
pub use violation::{Invalid, Violations};
pub use workload::Workloads;
