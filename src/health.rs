//! Whether this process can do its work: as a view that others ask, and as the
//! gRPC health service (grpc.health.v1) per service.
//!
//! True for each service by itself: without the database, what answers from
//! memory still serves. The whole (`""`, and `/readyz` on the side port) follows
//! validation, which is what most callers come for.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use countersign_verifier::Verifier;
use tokio_util::sync::CancellationToken;
use tonic_health::{ServingStatus, server::HealthReporter};

use crate::{breaker::Breaker, middleware::access::Row};

/// How soon a change is told. Asking costs a few loads from memory.
const INTERVAL: Duration = Duration::from_millis(200);

/// The name of the whole server.
const SERVER: &str = "";

/// What readiness follows from. Copies are cheap.
#[derive(Debug, Clone)]
pub struct Readiness {
    /// Ready once it has heard the first trust state.
    pub verifier: Arc<Verifier>,
    /// The database's breaker; none in a process without a database.
    pub database: Option<Breaker>,
    /// Cancelled when the process begins to stop.
    pub draining: CancellationToken,
}

/// Keeps the gRPC health service true.
#[derive(Debug)]
pub struct Health {
    reporter: HealthReporter,
    readiness: Readiness,
    /// Each service, and whether it needs the database.
    services: BTreeMap<&'static str, bool>,
}

impl Readiness {
    /// Whether tokens are validated here.
    pub fn is_ready(&self) -> bool {
        !self.is_draining() && self.verifier.applied_seq().is_some()
    }

    /// Whether the database is thought to answer; none without one.
    pub fn database_answers(&self) -> Option<bool> {
        self.database.as_ref().map(|breaker| !breaker.is_open())
    }

    /// Whether the process is stopping.
    pub fn is_draining(&self) -> bool {
        self.draining.is_cancelled()
    }
}

impl Health {
    /// Health of the services of these rows. Its gRPC service is made from a
    /// clone of the reporter.
    pub fn new(reporter: HealthReporter, readiness: Readiness, rows: &'static [Row]) -> Self {
        let mut services = BTreeMap::from([(SERVER, false)]);
        for row in rows {
            *services.entry(row.service()).or_default() |= row.needs_database;
        }
        Self {
            reporter,
            readiness,
            services,
        }
    }

    /// Tells every change until shutdown, and then that nothing serves.
    pub async fn run(self, shutdown: CancellationToken) {
        let mut told = None;
        let mut ticks = tokio::time::interval(INTERVAL);
        let draining = self.readiness.draining.clone();
        loop {
            let stop = tokio::select! {
                _ = ticks.tick() => false,
                () = draining.cancelled() => true,
                () = shutdown.cancelled() => true,
            };
            let ready = !stop && self.readiness.is_ready();
            let database = self.readiness.database_answers() != Some(false);
            // Watchers are woken by every report, changed or not.
            if told != Some((ready, database)) {
                self.tell(ready, database).await;
                told = Some((ready, database));
            }
            if stop {
                return;
            }
        }
    }

    async fn tell(&self, ready: bool, database: bool) {
        tracing::info!(ready, database, "health");
        for (service, needs_database) in &self.services {
            let status = if ready && (database || !needs_database) {
                ServingStatus::Serving
            } else {
                ServingStatus::NotServing
            };
            self.reporter.set_service_status(service, status).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use tonic_health::pb::{
        HealthCheckRequest, health_client::HealthClient, health_server::HealthServer,
    };
    use tonic_health::server::HealthService;

    use super::*;
    use crate::{
        breaker,
        middleware::{access::ROWS, tests::Mint},
    };

    const AUTH: &str = "countersign.v1.AuthService";
    const TOKEN: &str = "countersign.v1.TokenService";
    const ENVOY: &str = "envoy.service.auth.v3.Authorization";

    /// What is told about a service, once it is as expected or 2 seconds later.
    async fn settles(reporter: &HealthReporter, service: &str, serving: bool) -> bool {
        let service_name = service.to_owned();
        let server = HealthServer::new(HealthService::from_health_reporter(reporter.clone()));
        let mut client = HealthClient::new(server);
        for _ in 0..20 {
            let service = service_name.clone();
            let request = HealthCheckRequest { service };
            // 1 is SERVING.
            let status = client
                .check(request)
                .await
                .map(|reply| reply.into_inner().status);
            if status.is_ok_and(|status| (status == 1) == serving) {
                return true;
            }
            tokio::time::sleep(INTERVAL / 2).await;
        }
        false
    }

    #[tokio::test(start_paused = true)]
    async fn each_service_follows_what_it_needs() {
        let mint = Mint::new();
        let breaker = Breaker::new("database", &breaker::Config::default());
        let readiness = Readiness {
            verifier: mint.verifier.clone(),
            database: Some(breaker.clone()),
            draining: CancellationToken::new(),
        };
        let draining = readiness.draining.clone();
        let reporter = HealthReporter::new();
        let health = Health::new(reporter.clone(), readiness, ROWS);
        let task = tokio::spawn(health.run(CancellationToken::new()));
        let all = async |server, token, auth| {
            for (service, serving) in [
                (SERVER, server),
                (TOKEN, token),
                (ENVOY, token),
                (AUTH, auth),
            ] {
                assert!(
                    settles(&reporter, service, serving).await,
                    "{service:?} {serving}"
                );
            }
        };
        all(false, false, false).await;
        mint.publish();
        all(true, true, true).await;
        while let Ok(permit) = breaker.permit() {
            permit.failure();
        }
        all(true, true, false).await;
        draining.cancel();
        all(false, false, false).await;
        task.await.unwrap();
    }
}
