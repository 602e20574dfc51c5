//! A validator in this process: what a service has inside that checks tokens by
//! itself.

use std::{sync::Arc, time::Duration};

use countersign_verifier::{
    Policy, Verifier,
    client::{Bearer, Config, Counts, Feed},
};
use tokio::{task::AbortHandle, time::Instant};
use tonic::transport::Endpoint;

use super::{Person, clock::MockClock};

/// A verifier that follows the feed; it ends when dropped.
#[derive(Debug)]
pub struct Validator {
    pub verifier: Arc<Verifier>,
    pub counts: Arc<Counts>,
    task: AbortHandle,
}

impl Validator {
    /// Follows the nodes at these addresses, each `HOST:PORT`.
    pub fn follow(clock: &Arc<MockClock>, nodes: &[String], credential: &str) -> Self {
        let policy = Policy {
            cached_tokens: 100,
            ..Policy::default()
        };
        let verifier = Arc::new(Verifier::new(clock.clone(), policy));
        let endpoint = |node| Endpoint::from_shared(format!("http://{node}")).expect("a URI");
        let config = Config {
            endpoints: nodes.iter().map(endpoint).collect(),
            bearer: Bearer::Text(credential.to_owned()),
            instance: "test".to_owned(),
            issuer: None,
        };
        let feed = Feed::new(Arc::clone(&verifier), config);
        let counts = Arc::clone(feed.counts());
        let task = tokio::spawn(feed.run()).abort_handle();
        Self {
            verifier,
            counts,
            task,
        }
    }

    pub fn accepts(&self, person: &Person) -> bool {
        let token = &person.tokens.access_token;
        self.verifier.verify(token, None).is_ok()
    }
}

impl Drop for Validator {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Waits until all of them decide so about somebody's token, and says when each
/// of them did. Fails if one does not within half a minute.
pub async fn all_decide(
    validators: &[Validator],
    person: &Person,
    accepts: bool,
    since: Instant,
) -> Vec<Duration> {
    let mut times = Vec::new();
    let mut left: Vec<&Validator> = validators.iter().collect();
    loop {
        left.retain(|validator| {
            let decides = validator.accepts(person) == accepts;
            if decides {
                times.push(since.elapsed());
            }
            !decides
        });
        if left.is_empty() {
            return times;
        }
        assert!(
            since.elapsed() < Duration::from_secs(30),
            "{} validators do not hear; one of them: {:?}",
            left.len(),
            left[0].counts
        );
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}
