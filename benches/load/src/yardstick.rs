//! What the service is measured against. Each runs in a process of its own,
//! started by the benchmark beside the service and on the same cores.

use std::{
    net::SocketAddr,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::Context;
use argon2::{
    Argon2, PasswordHasher as _, PasswordVerifier as _, password_hash::phc::PasswordHash,
};
use clap::{Subcommand, ValueEnum};
use countersign_proto::v1::{
    ExplainTokenRequest, ExplainTokenResponse, GetJwksRequest, GetJwksResponse,
    ValidateTokenRequest, ValidateTokenResponse, ValidateTokensRequest, ValidateTokensResponse,
    token_service_server::{TokenService, TokenServiceServer},
};
use diesel::{Connection as _, ExpressionMethods as _, RunQueryDsl as _, SqliteConnection};
use jsonwebtoken::{Algorithm, DecodingKey, Validation};
use serde::Deserialize;
use tonic::{Request, Response, Status, transport::server::TcpIncoming};
use uuid::Uuid;

use crate::{
    load::{Shape, Until, closed},
    node::{AUDIENCE, ISSUER, logins},
    process::of_this_thread,
};

/// A runtime of tokio.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Kind {
    CurrentThread,
    /// As `#[tokio::main]` builds it.
    MultiThread,
}

/// Programs that the benchmark starts itself.
#[derive(Debug, Subcommand)]
pub enum Yardstick {
    /// A tonic server without layers: GetJwks does nothing, ValidateToken checks a
    /// token as jsonwebtoken does. Prints its address.
    Server {
        /// The runtime.
        #[arg(long)]
        runtime: Kind,
        /// The public key of the tokens.
        #[arg(long)]
        key: String,
    },
    /// Passwords compared by the argon2 crate as its documentation shows. Prints
    /// how many, and the seconds of CPU.
    Argon2 {
        #[arg(long)]
        threads: usize,
        #[arg(long)]
        seconds: f64,
    },
    /// The guarded UPDATE of a refresh alone, in a transaction. Prints how many a
    /// second.
    Update {
        /// A SQLite file, or the URL of PostgreSQL.
        #[arg(long)]
        database: String,
        #[arg(long)]
        seconds: f64,
        /// Sessions to update, each over a connection of its own.
        sessions: Vec<Uuid>,
    },
    /// Clients that log in without pause.
    Storm {
        #[arg(long)]
        address: String,
        #[arg(long)]
        accounts: usize,
        #[arg(long)]
        connections: usize,
        #[arg(long)]
        seconds: f64,
    },
}

impl Yardstick {
    #[expect(clippy::print_stdout, reason = "the benchmark reads it")]
    pub fn run(self) -> anyhow::Result<()> {
        match self {
            Self::Server { runtime, key } => serve(runtime, &key),
            Self::Argon2 { threads, seconds } => {
                let (hashes, cpu) = hash(threads, Duration::from_secs_f64(seconds))?;
                println!("{hashes} {cpu}");
                Ok(())
            }
            Self::Update {
                database,
                seconds,
                sessions,
            } => {
                let lasts = Duration::from_secs_f64(seconds);
                let rate = if database.starts_with("postgres://") {
                    update_postgres(&database, &sessions, lasts)?
                } else {
                    update_sqlite(Path::new(&database), sessions, lasts)?
                };
                println!("{rate}");
                Ok(())
            }
            Self::Storm {
                address,
                accounts,
                connections,
                seconds,
            } => {
                let shape = Shape {
                    connections,
                    each: 1,
                };
                let until = Until::Time(Duration::from_secs_f64(seconds));
                closed(&address, &logins(0..accounts), shape, until)?;
                Ok(())
            }
        }
    }
}

#[derive(Debug)]
struct Bare {
    key: DecodingKey,
    validation: Validation,
}

/// The claims of a token, all of them.
#[derive(Debug, Deserialize)]
#[expect(dead_code, reason = "what reading them costs is measured")]
struct Claims {
    iss: String,
    sub: Uuid,
    aud: Vec<String>,
    exp: i64,
    iat: i64,
    nbf: i64,
    jti: Uuid,
    sid: Uuid,
    client_id: String,
    scope: String,
    roles: Vec<String>,
    amr: Vec<String>,
    auth_time: i64,
    epoch: i64,
}

#[tonic::async_trait]
impl TokenService for Bare {
    async fn get_jwks(
        &self,
        _: Request<GetJwksRequest>,
    ) -> Result<Response<GetJwksResponse>, Status> {
        Ok(Response::new(GetJwksResponse::default()))
    }

    async fn validate_token(
        &self,
        request: Request<ValidateTokenRequest>,
    ) -> Result<Response<ValidateTokenResponse>, Status> {
        let token = &request.get_ref().token;
        let decoded = jsonwebtoken::decode::<Claims>(token, &self.key, &self.validation);
        match decoded {
            Ok(token) => {
                std::hint::black_box(token);
                Ok(Response::new(ValidateTokenResponse::default()))
            }
            Err(error) => Err(Status::unauthenticated(error.to_string())),
        }
    }

    async fn validate_tokens(
        &self,
        _: Request<ValidateTokensRequest>,
    ) -> Result<Response<ValidateTokensResponse>, Status> {
        Err(Status::unimplemented("not a part of the yardstick"))
    }

    async fn explain_token(
        &self,
        _: Request<ExplainTokenRequest>,
    ) -> Result<Response<ExplainTokenResponse>, Status> {
        Err(Status::unimplemented("not a part of the yardstick"))
    }
}

#[expect(clippy::print_stdout, reason = "the benchmark reads it")]
fn serve(kind: Kind, key: &str) -> anyhow::Result<()> {
    let runtime = match kind {
        Kind::CurrentThread => tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?,
        Kind::MultiThread => tokio::runtime::Runtime::new()?,
    };
    let mut validation = Validation::new(Algorithm::EdDSA);
    validation.set_audience(&[AUDIENCE]);
    validation.set_issuer(&[ISSUER]);
    let bare = Bare {
        key: DecodingKey::from_ed_components(key)?,
        validation,
    };
    runtime.block_on(async {
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let incoming = TcpIncoming::bind(any)?.with_nodelay(Some(true));
        println!("{}", incoming.local_addr()?);
        tonic::transport::Server::builder()
            .add_service(TokenServiceServer::new(bare))
            .serve_with_incoming(incoming)
            .await?;
        Ok(())
    })
}

/// How many passwords were compared, and the seconds of CPU that it took.
fn hash(threads: usize, lasts: Duration) -> anyhow::Result<(u64, f64)> {
    const PASSWORD: &[u8] = b"correct horse battery staple";
    // Its default parameters are those of the service.
    let stored = Argon2::default().hash_password_with_salt(PASSWORD, b"a salt of 16 byt");
    let stored = stored
        .map_err(|error| anyhow::anyhow!("{error}"))?
        .to_string();
    let hashes = AtomicU64::new(0);
    let begun = Instant::now();
    let cpu = thread::scope(|scope| {
        let compare = || {
            while begun.elapsed() < lasts {
                let stored = PasswordHash::new(&stored)?;
                Argon2::default().verify_password(PASSWORD, &stored)?;
                hashes.fetch_add(1, Relaxed);
            }
            of_this_thread()
        };
        let threads: Vec<_> = (0..threads).map(|_| scope.spawn(compare)).collect();
        let mut cpu = Duration::ZERO;
        for thread in threads {
            cpu += thread.join().ok().context("a thread panicked")??;
        }
        anyhow::Ok(cpu)
    })?;
    Ok((hashes.into_inner(), cpu.as_secs_f64()))
}

diesel::table! {
    sessions (id) {
        id -> Binary,
        generation -> BigInt,
        rotated_at -> BigInt,
        key_id -> Integer,
        expires_at -> BigInt,
        revoked_at -> Nullable<BigInt>,
    }
}

/// Updates a second, each session by a thread of its own, with the settings that
/// the service's connections have.
fn update_sqlite(file: &Path, ids: Vec<Uuid>, lasts: Duration) -> anyhow::Result<f64> {
    use diesel::{QueryDsl as _, connection::SimpleConnection as _};

    let file = file.to_str().context("the path is not UTF-8")?;
    let begun = Instant::now();
    let done = Arc::new(AtomicU64::new(0));
    let update = |id: Uuid| {
        let mut connection = SqliteConnection::establish(file)?;
        connection.batch_execute(
            "PRAGMA busy_timeout = 10000; PRAGMA foreign_keys = ON; PRAGMA synchronous = FULL;",
        )?;
        let row = sessions::table.find(id.as_bytes().as_slice());
        let mut generation: i64 = row.select(sessions::generation).first(&mut connection)?;
        while begun.elapsed() < lasts {
            let updated = connection.immediate_transaction(|connection| {
                diesel::update(sessions::table.find(id.as_bytes().as_slice()))
                    .filter(sessions::generation.eq(generation))
                    .filter(sessions::revoked_at.is_null())
                    .filter(sessions::expires_at.gt(1_700_000_000_000_000))
                    .set((
                        sessions::generation.eq(generation + 1),
                        sessions::key_id.eq(1),
                        sessions::rotated_at.eq(1_800_000_000_000_000 + generation),
                        sessions::expires_at.eq(1_900_000_000_000_000 + generation),
                    ))
                    .execute(connection)
            })?;
            anyhow::ensure!(updated == 1, "an update found no session");
            generation += 1;
            done.fetch_add(1, Relaxed);
        }
        Ok(())
    };
    thread::scope(|scope| {
        let threads: Vec<_> = ids
            .into_iter()
            .map(|id| scope.spawn(move || update(id)))
            .collect();
        for thread in threads {
            thread.join().ok().context("a thread panicked")??;
        }
        anyhow::Ok(())
    })?;
    Ok(done.load(Relaxed) as f64 / begun.elapsed().as_secs_f64())
}

/// The same on PostgreSQL, with statements prepared once.
fn update_postgres(url: &str, ids: &[Uuid], lasts: Duration) -> anyhow::Result<f64> {
    const UPDATE: &str = "UPDATE sessions \
         SET generation = generation + 1, key_id = 1, rotated_at = to_timestamp($3::float8), \
             expires_at = to_timestamp($3::float8 + 1e8) \
         WHERE id = ($1::text)::uuid AND generation = $2 AND revoked_at IS NULL \
             AND expires_at > to_timestamp($3::float8 - 1e8)";
    const NOW: f64 = 1_800_000_000.0;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let mut connections = Vec::new();
        for id in ids {
            let (client, connection) = tokio_postgres::connect(url, tokio_postgres::NoTls).await?;
            tokio::spawn(connection);
            client.batch_execute("SET synchronous_commit = on").await?;
            let id = id.to_string();
            let generation = "SELECT generation FROM sessions WHERE id = ($1::text)::uuid";
            let generation: i64 = client.query_one(generation, &[&id]).await?.get(0);
            let update = client.prepare(UPDATE).await?;
            connections.push((client, update, id, generation));
        }
        let begun = Instant::now();
        let mut clients = Vec::new();
        for (client, update, id, mut generation) in connections {
            clients.push(tokio::spawn(async move {
                let mut done = 0_u32;
                while begun.elapsed() < lasts {
                    client.batch_execute("BEGIN").await?;
                    let now = NOW + generation as f64;
                    let updated = client.execute(&update, &[&id, &generation, &now]).await?;
                    client.batch_execute("COMMIT").await?;
                    anyhow::ensure!(updated == 1, "an update found no session");
                    generation += 1;
                    done += 1;
                }
                Ok(done)
            }));
        }
        let mut done = 0;
        for client in clients {
            done += client.await??;
        }
        Ok(f64::from(done) / begun.elapsed().as_secs_f64())
    })
}
