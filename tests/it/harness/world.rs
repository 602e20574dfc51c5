//! A database, the nodes on it, and the people who use them.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use countersign::{
    app::{self, Seams},
    config::{Config, Profile, Secret},
    crypto::MasterKeys,
    domain::{Call, DisplayName, Metadata, RoleName},
    service::{Core, Trust, once::Repeatable, users},
    telemetry::{Format, Telemetry},
};
use countersign_proto::v1;
use tokio::{net::TcpListener, runtime::Handle};
use tonic::transport::{Channel, Endpoint};

use super::{
    client::Client,
    clock::{MockClock, Seeded},
    database::{self, Database, Kind},
    logs,
};

/// The master key of every node whose settings name none.
pub const MASTER_KEY: &str = "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f";

/// The password of every persona.
pub const PASSWORD: &str = "correct horse battery staple";

/// One test's world.
#[derive(Debug)]
pub struct World {
    pub database: Database,
    pub clock: Arc<MockClock>,
    /// The first node.
    pub node: Node,
    /// What nodes are started with.
    pub config: Config,
    names: AtomicU32,
    seeds: AtomicU64,
}

/// A world whose node is stopped.
#[derive(Debug)]
pub struct Stopped {
    pub database: Database,
    pub clock: Arc<MockClock>,
    config: Config,
    names: AtomicU32,
    seeds: AtomicU64,
}

/// A node of the service, in this process.
#[derive(Debug)]
pub struct Node {
    pub running: app::Node,
    pub address: SocketAddr,
    pub http: SocketAddr,
    channel: Channel,
}

/// Somebody with an account and a session.
#[derive(Debug, Clone)]
pub struct Person {
    pub email: String,
    pub user_id: String,
    pub tokens: v1::TokenPair,
    pub client: Client,
}

impl World {
    pub async fn new(kind: Kind) -> Self {
        Self::with(kind, |_| {}).await
    }

    /// A world whose nodes have other settings.
    pub async fn with(kind: Kind, adjust: impl FnOnce(&mut Config)) -> Self {
        Self::by(MockClock::new(), kind, adjust).await
    }

    /// A world whose clock stands still at the time that it is now.
    pub async fn at_the_real_time(kind: Kind, adjust: impl FnOnce(&mut Config)) -> Self {
        let now = countersign_verifier::Clock::now(&countersign_verifier::SystemClock);
        Self::by(MockClock::at(now), kind, adjust).await
    }

    async fn by(clock: MockClock, kind: Kind, adjust: impl FnOnce(&mut Config)) -> Self {
        let database = Database::create(kind).await;
        let mut config = settings(&database);
        adjust(&mut config);
        let clock = Arc::new(clock);
        let seeds = AtomicU64::new(1);
        let node = Node::start(&config, &clock, 0).await;
        Self {
            database,
            clock,
            node,
            config,
            names: AtomicU32::new(0),
            seeds,
        }
    }

    /// Another node on the same database; none on SQLite, whose file is served
    /// by one node.
    pub async fn another_node(&self) -> Option<Node> {
        if self.database.kind == Kind::Sqlite {
            return None;
        }
        let seed = self.seeds.fetch_add(1, Relaxed);
        Some(Node::start(&self.config, &self.clock, seed).await)
    }

    /// A client of the first node that is nobody.
    pub fn anonymous(&self) -> Client {
        self.node.client()
    }

    /// Runs one statement on the database, behind everybody's back.
    pub async fn execute(&self, statement: &str) {
        database::execute_on(&self.database, statement).await;
    }

    /// An address that nobody has yet.
    pub fn new_email(&self) -> String {
        format!("person{}@example.com", self.names.fetch_add(1, Relaxed))
    }

    /// The first column of a query's rows, behind everybody's back.
    pub async fn query(&self, query: &str) -> Vec<String> {
        database::query_on(&self.database, query).await
    }

    /// What the command line works with, beside the nodes.
    pub async fn command_line(&self) -> Core {
        self.command_line_with(&ring(&self.config)).await
    }

    /// The same with a ring of master keys of its own.
    pub async fn command_line_with(&self, ring: &MasterKeys) -> Core {
        let seams = Seams {
            clock: self.clock.clone(),
            entropy: Arc::new(Seeded::new(1_000 + self.seeds.fetch_add(1, Relaxed))),
        };
        let core = app::core(&self.config, ring, &seams, Trust::unattended()).await;
        core.expect("opens")
    }

    /// The same database, served anew by a node with other settings. People's
    /// clients are of the old one.
    pub async fn restarted(self, adjust: impl FnOnce(&mut Config)) -> Self {
        self.stopped().await.started(adjust).await
    }

    /// Without a node.
    pub async fn stopped(self) -> Stopped {
        let Self {
            database,
            clock,
            node,
            config,
            names,
            seeds,
        } = self;
        node.ended().await;
        if let Some(path) = database.url.strip_prefix("sqlite://") {
            let lock = std::fs::File::open(format!("{path}.lock")).expect("the node's lock");
            while lock.try_lock().is_err() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
        Stopped {
            database,
            clock,
            config,
            names,
            seeds,
        }
    }

    /// Somebody who has registered and logged in.
    pub async fn person(&self) -> Person {
        let email = self.new_email();
        let request = v1::RegisterRequest {
            email: email.clone(),
            password: PASSWORD.to_owned(),
            ..Default::default()
        };
        let reply = self
            .anonymous()
            .auth
            .register(request)
            .await
            .expect("registers");
        let user_id = reply.into_inner().user.expect("a user").user_id;
        self.login(&email, user_id).await
    }

    /// An admin, made as the command line makes one.
    pub async fn admin(&self) -> Person {
        let email = self.new_email();
        let wish = users::NewUser {
            email: email.parse().expect("an address"),
            password: Some(countersign::domain::Password::parse(PASSWORD).expect("a password")),
            username: None,
            display_name: DisplayName::default(),
            roles: [RoleName::admin()].into(),
            metadata: Metadata::default(),
        };
        let core = self.node.running.core();
        let made = users::create(core, &Call::internal("test"), wish, Repeatable::once()).await;
        let made = made.expect("an admin");
        let countersign::service::once::Made::Now(user) = made else {
            panic!("made before")
        };
        self.login(&email, user.id.to_string()).await
    }

    /// Somebody who holds the given permissions by a role of their own.
    pub async fn person_who_may(&self, permissions: &[&str]) -> Person {
        let mut admin = self.admin().await;
        let person = self.person().await;
        let name = format!("role{}", self.names.fetch_add(1, Relaxed));
        let role = v1::CreateRoleRequest {
            name: name.clone(),
            permissions: permissions.iter().map(ToString::to_string).collect(),
            ..Default::default()
        };
        admin
            .client
            .roles
            .create_role(role)
            .await
            .expect("creates a role");
        let grant = v1::GrantRoleRequest {
            user_id: person.user_id.clone(),
            role: name,
        };
        admin
            .client
            .users
            .grant_role(grant)
            .await
            .expect("grants it");
        self.login(&person.email, person.user_id).await
    }

    async fn login(&self, email: &str, user_id: String) -> Person {
        let tokens = login(&self.anonymous(), email, PASSWORD)
            .await
            .expect("logs in");
        let client = self.anonymous().with_token(&tokens.access_token);
        Person {
            email: email.to_owned(),
            user_id,
            tokens,
            client,
        }
    }
}

impl Stopped {
    /// Starts a node again.
    pub async fn started(self, adjust: impl FnOnce(&mut Config)) -> World {
        let Self {
            database,
            clock,
            mut config,
            names,
            seeds,
        } = self;
        adjust(&mut config);
        let node = Node::start(&config, &clock, seeds.fetch_add(1, Relaxed)).await;
        World {
            database,
            clock,
            node,
            config,
            names,
            seeds,
        }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.running.process().abort();
    }
}

impl Node {
    pub async fn start(config: &Config, clock: &Arc<MockClock>, seed: u64) -> Self {
        let node = Self::begin(config, clock, seed).await;
        node.running.ready().await.expect("gets ready");
        node
    }

    /// A node that may not be ready yet, nor ever.
    pub async fn begin(config: &Config, clock: &Arc<MockClock>, seed: u64) -> Self {
        let running = Self::launch(config, clock, seed).await;
        let address = running.process().address().parse().expect("a TCP address");
        Self {
            address,
            http: running.process().http_address(),
            channel: connect(address),
            running,
        }
    }

    /// A node as the program has it, that nobody ends.
    pub async fn launch(config: &Config, clock: &Arc<MockClock>, seed: u64) -> app::Node {
        let seams = Seams {
            clock: clock.clone(),
            entropy: Arc::new(Seeded::new(seed)),
        };
        let telemetry = Telemetry::install_to(&config.telemetry, logs::writer());
        let telemetry = telemetry.expect("telemetry");
        let work = Handle::current();
        let running = app::Node::start(config, &ring(config), seams, &telemetry, &work).await;
        running.expect("starts")
    }

    /// Ends it, as far as that another can have its address.
    pub async fn ended(self) {
        let address = self.address;
        drop(self);
        while TcpListener::bind(address).await.is_err() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// A client on the node's shared connection that is nobody.
    pub fn client(&self) -> Client {
        Client::new(self.channel.clone(), None)
    }

    /// A client on a connection of its own.
    pub fn new_connection(&self) -> Client {
        Client::new(connect(self.address), None)
    }
}

/// The master keys that these settings mean.
fn ring(config: &Config) -> MasterKeys {
    let text = config
        .master_key
        .as_ref()
        .map_or(MASTER_KEY, Secret::expose);
    text.parse().expect("master keys")
}

fn connect(address: SocketAddr) -> Channel {
    Endpoint::from_shared(format!("http://{address}"))
        .expect("a URI")
        .connect_lazy()
}

/// Logs in by address and password.
pub async fn login(
    client: &Client,
    identifier: &str,
    password: &str,
) -> Result<v1::TokenPair, tonic::Status> {
    let request = v1::LoginRequest {
        identifier: identifier.to_owned(),
        password: password.to_owned(),
        ..Default::default()
    };
    let reply = client.clone().auth.login(request).await?.into_inner();
    let Some(v1::login_response::Result::Tokens(tokens)) = reply.result else {
        panic!("no tokens in {reply:?}");
    };
    Ok(tokens)
}

/// Settings of a node in a test: no ports of its own, hashing that costs
/// nothing, no limits per peer, no waits after wrong passwords, each of which is
/// recorded.
pub fn settings(database: &Database) -> Config {
    let mut config = Config {
        profile: Profile::Testing,
        ..Config::default()
    };
    config.data_dir = database.folder.path().join("data");
    config.issuer = "https://countersign.test".to_owned();
    config.listen.address = "127.0.0.1:0".to_owned();
    config.http.address = "127.0.0.1:0".to_owned();
    config.database.url = database.url.clone();
    // One log for all tests of the process, for those that read it.
    config.telemetry.format = Format::Json;
    config.telemetry.level = "info,countersign=trace".into();
    config.hashing.memory_kib = 8;
    config.hashing.iterations = 1;
    config.hashing.lanes = 2;
    config.hashing.queue = 256;
    config.limits.rate_limits_enabled = false;
    config.audit.failures_per_minute = u32::MAX;
    config.login_throttle.failures_before_delay = u32::MAX;
    config.login_throttle.failures_before_reset = u32::MAX;
    // The clock of a test is not the database's.
    config.tokens.max_clock_skew_seconds = u32::MAX;
    // At the clock that stands still no session is older than another.
    config.sessions.max_per_user = 100_000;
    config.api_keys.max_per_user = 100_000;
    config
}
