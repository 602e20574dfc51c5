//! Things happen at random to people, keys, lines, validators and the node, and
//! once the database is set back to a backup. At the end every validator knows
//! what the tables say, and what it had heard revoked is not alive again.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Debug,
    time::Duration,
};

use countersign::domain::Entropy;
use countersign_proto::v1;
use countersign_verifier::TrustState;
use uuid::Uuid;

use crate::{
    harness::{
        Client, Fault, Person, Proxy, World, calls, clock::Seeded, database::Backup, eventually,
        validator::Validator,
    },
    on_both,
};

const STEPS: usize = 80;
const BACKUP_AT: usize = 30;
const RESTORE_AT: usize = 50;

/// A validator and the line over which it hears.
struct Seat {
    validator: Validator,
    line: Proxy,
}

impl Seat {
    fn revoked(&self) -> BTreeMap<Uuid, i64> {
        let state = self.validator.verifier.state();
        state.as_deref().map(revoked).unwrap_or_default()
    }
}

struct Model {
    world: Option<World>,
    admin: Person,
    api_key: String,
    random: Box<dyn Entropy>,
    seats: Vec<Seat>,
    people: Vec<Person>,
    /// By id.
    api_keys: BTreeMap<String, String>,
    /// Users and sessions to which something was done that the backup does not
    /// know of.
    undone: BTreeSet<Uuid>,
    is_backed_up: bool,
}

impl Model {
    async fn new(world: World, seed: u64) -> Self {
        let address = world.node.address.to_string();
        let world = world
            .restarted(|config| config.listen.address = address)
            .await;
        let admin = world.admin().await;
        let (_, api_key) = calls::create_api_key(&admin.client, &["countersign.trust.watch"])
            .await
            .expect("a key");
        let mut model = Self {
            world: Some(world),
            admin,
            api_key,
            random: Box::new(Seeded::new(seed)),
            seats: Vec::new(),
            people: Vec::new(),
            api_keys: BTreeMap::new(),
            undone: BTreeSet::new(),
            is_backed_up: false,
        };
        for _ in 0..4 {
            let line = Proxy::before(&format!("http://{}", model.world().node.address)).await;
            let validator = model.validator(&line);
            model.seats.push(Seat { validator, line });
        }
        model
    }

    fn world(&self) -> &World {
        self.world.as_ref().expect("it runs")
    }

    fn admin(&self) -> Client {
        self.world()
            .anonymous()
            .with_token(&self.admin.tokens.access_token)
    }

    fn validator(&self, line: &Proxy) -> Validator {
        let nodes = [format!("127.0.0.1:{}", line.port)];
        Validator::follow(&self.world().clock, &nodes, &self.api_key)
    }

    fn below(&self, count: usize) -> usize {
        let random = u32::from_be_bytes(self.random.array());
        usize::try_from(random).expect("fits") % count
    }

    /// Notes what a restored backup will not know of.
    fn done(&mut self, id: &str) {
        if self.is_backed_up {
            self.undone.insert(id.parse().expect("an id"));
        }
    }

    /// Does something. Whether it succeeds is not the question: after the
    /// backup there are people who have never been.
    async fn step(&mut self) -> String {
        let what = self.below(20);
        let someone = match self.people.len() {
            0 => None,
            count => Some(self.people[self.below(count)].clone()),
        };
        let client = self.admin();
        match (what, someone) {
            (0..=3, _) | (_, None) => {
                let person = self.world().person().await;
                self.people.push(person);
                "somebody comes".to_owned()
            }
            (4..=7, Some(person)) => {
                self.done(&person.tokens.session_id);
                let mut client = client.with_token(&person.tokens.access_token);
                said(
                    "logout",
                    client.auth.logout(v1::LogoutRequest::default()).await,
                )
            }
            (8, Some(person)) => {
                self.done(&person.user_id);
                said("disable", calls::disable(&client, &person.user_id).await)
            }
            (9, Some(person)) => {
                self.done(&person.user_id);
                said(
                    "grant",
                    calls::grant(&client, &person.user_id, "admin").await,
                )
            }
            (10, Some(person)) => {
                self.done(&person.user_id);
                let new = "another horse entirely, thanks";
                said(
                    "password",
                    calls::set_password(&client, &person.user_id, new).await,
                )
            }
            (11, _) => {
                let made = calls::create_api_key(&client, &[]).await;
                if let Ok((key, secret)) = &made {
                    self.api_keys.insert(key.api_key_id.clone(), secret.clone());
                }
                said("API key", made)
            }
            (12, _) => match self.api_keys.keys().next() {
                Some(id) => said("API key ended", calls::revoke_api_key(&client, id).await),
                None => "no API key to end".to_owned(),
            },
            (13, _) => {
                let mut keys = client.keys;
                let staged = keys.stage_key(v1::StageKeyRequest::default()).await;
                if let Ok(staged) = staged {
                    let request = v1::ActivateKeyRequest {
                        kid: staged.into_inner().key.expect("a key").kid,
                        force: true,
                        ..Default::default()
                    };
                    return said("rotation", keys.activate_key(request).await);
                }
                said("staging", staged)
            }
            (14..=17, _) => {
                let seat = self.below(self.seats.len());
                let fault = match what {
                    14..=15 => Fault::Silent,
                    _ => Fault::None,
                };
                self.seats[seat].line.make(fault);
                format!("line {seat} is {fault:?}")
            }
            (18, _) => {
                let seat = self.below(self.seats.len());
                self.seats[seat].validator = self.validator(&self.seats[seat].line);
                format!("validator {seat} is new")
            }
            _ => {
                self.restart(None).await;
                "the node is new".to_owned()
            }
        }
    }

    async fn backup(&mut self) -> Backup {
        let stopped = self.world.take().expect("it runs").stopped().await;
        let backup = stopped.database.backup().await;
        self.world = Some(stopped.started(|_| {}).await);
        self.is_backed_up = true;
        backup
    }

    async fn restart(&mut self, from: Option<&Backup>) {
        let stopped = self.world.take().expect("it runs").stopped().await;
        if let Some(backup) = from {
            stopped.database.restore(backup).await;
            // A restore takes a while. What was read before it is older.
            stopped.clock.advance(Duration::from_secs(10));
            self.is_backed_up = false;
        }
        self.world = Some(stopped.started(|_| {}).await);
    }

    /// What is not so at one of the validators; none if all is well. The node has
    /// read the tables just now.
    fn difference(&self, node: &TrustState) -> Option<String> {
        for (number, Seat { validator, .. }) in self.seats.iter().enumerate() {
            let Some(state) = validator.verifier.state() else {
                return Some(format!("{number} knows nothing"));
            };
            let differs = |what| Some(format!("{number} has other {what}: {:?}", validator.counts));
            if (state.seq, state.nonce) != (node.seq, node.nonce) {
                return differs("positions");
            }
            if state.keys.jwks() != node.keys.jwks() {
                return differs("keys");
            }
            let api_keys = |state: &TrustState| -> BTreeMap<_, _> {
                state
                    .api_keys
                    .iter()
                    .map(|key| (key.id, key.clone()))
                    .collect()
            };
            if api_keys(&state) != api_keys(node) {
                return differs("API keys");
            }
            let (here, there) = (revoked(&state), revoked(node));
            let lacking = there.iter().find(|(id, epoch)| here.get(id) < Some(epoch));
            if lacking.is_some() {
                return differs("revocations");
            }
            // What a backup has set back may stay revoked, and nothing else.
            let more = here
                .iter()
                .find(|(id, epoch)| there.get(id) != Some(epoch) && !self.undone.contains(id));
            if more.is_some() {
                return differs("revocations than any table ever had");
            }
        }
        None
    }
}

/// Sessions, and users with their epochs.
fn revoked(state: &TrustState) -> BTreeMap<Uuid, i64> {
    let sessions = state.revocations.sessions().map(|(id, _)| (id, 0));
    let users = state.revocations.users().map(|(id, epoch, _)| (id, epoch));
    sessions.chain(users).collect()
}

fn said<T>(what: &str, outcome: Result<T, impl Debug>) -> String {
    let fails = if outcome.is_ok() { "" } else { " fails" };
    format!("{what}{fails}")
}

async fn run(world: World, seed: u64) {
    let mut model = Model::new(world, seed).await;
    let mut backup = None;
    for step in 0..STEPS {
        match step {
            BACKUP_AT => backup = Some(model.backup().await),
            RESTORE_AT => model.restart(backup.as_ref()).await,
            _ => println!("{step}: {}", model.step().await),
        }
    }
    let heard: Vec<_> = model.seats.iter().map(Seat::revoked).collect();
    for seat in &model.seats {
        seat.line.make(Fault::None);
    }
    model.restart(None).await;
    let node = model.world().node.running.feed().verifier();
    let state = node.state().expect("ready");
    eventually(&format!("all agree, by the seed {seed}"), async || {
        // What lay in a silent line may have been heard just now, and then what a
        // backup says counts only after a while.
        model.world().clock.advance(Duration::from_millis(50));
        let difference = model.difference(&state);
        if let Some(difference) = &difference {
            println!("{difference}");
        }
        difference.is_none()
    })
    .await;
    for (seat, heard) in model.seats.iter().zip(heard) {
        let still = seat.revoked();
        assert!(
            heard.iter().all(|(id, epoch)| still.get(id) >= Some(epoch)),
            "seed {seed}"
        );
        let verifier = &seat.validator.verifier;
        for secret in model.api_keys.values() {
            let here = verifier.verify(secret, None).is_ok();
            assert_eq!(here, node.verify(secret, None).is_ok(), "seed {seed}");
        }
        for person in &model.people {
            let (session, user) = (&person.tokens.session_id, &person.user_id);
            if [session, user]
                .iter()
                .all(|id| !model.undone.contains(&id.parse().unwrap()))
            {
                let token = &person.tokens.access_token;
                assert_eq!(
                    seat.validator.accepts(person),
                    node.verify(token, None).is_ok(),
                    "seed {seed}"
                );
            }
        }
    }
}

on_both! {
    async fn whatever_happens_every_validator_ends_with_what_the_tables_say(world: World) {
        run(world, 1).await;
    }

    async fn whatever_happens_and_once_more(world: World) {
        run(world, 2).await;
    }
}
