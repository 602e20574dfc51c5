//! Signing keys, in whatever order people stage, activate and retire them.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use countersign::service::janitor::Janitor;
use countersign_proto::v1::{
    self,
    SigningKeyState::{Active, Next, Retired},
};
use proptest::{collection::vec, prelude::*};
use tokio_util::sync::CancellationToken;

use super::{Verdict, try_cases};
use crate::{
    harness::{Client, Failure, Person, World, calls},
    on_both,
};

/// How long a retired key verifies, in seconds: the longest life of a token, the most
/// leeway, a minute.
const VERIFIES: u64 = 3_600 + 30 + 60;

/// An access token is good for so long at least.
const GOOD_FOR: u64 = 855;

#[derive(Debug, Clone)]
enum Step {
    Stage,
    /// Activates a key: one of those that have ever been. The one before may be taken
    /// away with it.
    Activate(usize, bool),
    /// Takes one away.
    Retire(usize),
    /// Seconds pass, and expired keys are swept.
    Pass(u64),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    // The newest are most often meant.
    let which = || prop_oneof![6 => Just(0_usize), 3 => 1_usize..3, 1 => 0_usize..8];
    vec(
        prop_oneof![
            4 => Just(Step::Stage),
            5 => (which(), prop::bool::weighted(0.2)).prop_map(|(at, away)| Step::Activate(at, away)),
            2 => which().prop_map(Step::Retire),
            3 => prop_oneof![1..GOOD_FOR, Just(VERIFIES - 1), Just(VERIFIES)].prop_map(Step::Pass),
        ],
        1..20,
    )
}

/// What there is of one key.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Key {
    state: v1::SigningKeyState,
    /// Of a retired key.
    verify_until: Option<u64>,
}

#[derive(Default)]
struct Model {
    /// All keys that have ever been, in the order of their making.
    kids: Vec<String>,
    /// Those that are there.
    keys: BTreeMap<String, Key>,
    /// An access token of each key that has signed one, and when it did last.
    tokens: BTreeMap<String, (String, u64)>,
    now: u64,
}

impl Model {
    /// The kid so many makings back.
    fn kid(&self, back: usize) -> String {
        let back = back.min(self.kids.len() - 1);
        self.kids[self.kids.len() - 1 - back].clone()
    }

    fn state(&self, kid: &str) -> Option<v1::SigningKeyState> {
        self.keys.get(kid).map(|key| key.state)
    }

    fn find(&self, state: v1::SigningKeyState) -> Option<String> {
        let mut keys = self.keys.iter();
        keys.find(|(_, key)| key.state == state)
            .map(|(kid, _)| kid.clone())
    }

    fn put(&mut self, kid: &str, state: v1::SigningKeyState) {
        let verify_until = (state == Retired).then_some(self.now + VERIFIES);
        self.keys.insert(
            kid.to_owned(),
            Key {
                state,
                verify_until,
            },
        );
    }

    /// What activating comes to: nothing, or the reason why not.
    fn activate(&mut self, kid: &str, takes_away: bool) -> Result<(), &'static str> {
        match self.state(kid) {
            None => return Err("KEY_NOT_FOUND"),
            Some(Next) => {}
            Some(_) => return Err("KEY_NOT_NEXT"),
        }
        if let Some(before) = self.find(Active) {
            if takes_away {
                self.keys.remove(&before);
            } else {
                self.put(&before, Retired);
            }
        }
        self.put(kid, Active);
        Ok(())
    }

    fn retire(&mut self, kid: &str) -> Result<(), &'static str> {
        match self.state(kid) {
            None => Err("KEY_NOT_FOUND"),
            Some(Active) => Err("KEY_ACTIVE"),
            Some(_) => {
                self.keys.remove(kid);
                Ok(())
            }
        }
    }
}

/// One case: a world whose keys are as the last case left them.
struct Case<'a> {
    world: &'a World,
    admin: Person,
    start: i64,
    model: Model,
}

impl Case<'_> {
    fn client(&self) -> &Client {
        &self.admin.client
    }

    async fn listed(&self) -> Vec<v1::SigningKey> {
        let mut client = self.client().keys.clone();
        let reply = client.list_keys(v1::ListKeysRequest {}).await;
        reply.expect("keys").into_inner().keys
    }

    async fn begin(world: &World) -> Case<'_> {
        let mut case = Case {
            world,
            admin: world.admin().await,
            start: countersign_verifier::Clock::now(&*world.clock).as_second(),
            model: Model::default(),
        };
        for key in case.listed().await {
            if key.state() == Active {
                case.model.put(&key.kid, Active);
                case.model.kids.push(key.kid);
            } else {
                calls::retire_key(case.client(), &key.kid)
                    .await
                    .expect("goes");
            }
        }
        case
    }

    async fn step(&mut self, step: Step) -> Verdict {
        match step {
            Step::Stage => {
                let staged = calls::stage_key(self.client()).await;
                match (staged, self.model.find(Next)) {
                    (Ok(key), None) => {
                        prop_assert!(!self.model.kids.contains(&key.kid), "a kid comes back");
                        self.model.put(&key.kid, Next);
                        self.model.kids.push(key.kid);
                    }
                    (Err(status), Some(_)) => {
                        prop_assert_eq!(Failure::from(&status).reason, "KEY_ALREADY_STAGED");
                    }
                    (staged, next) => {
                        let what = format!("{staged:?} beside {next:?}");
                        return Err(TestCaseError::fail(what));
                    }
                }
            }
            Step::Activate(back, retire_previous) => {
                let kid = self.model.kid(back);
                let request = v1::ActivateKeyRequest {
                    kid: kid.clone(),
                    force: true,
                    retire_previous,
                };
                let said = calls::activate_key(self.client(), request).await;
                let said = said
                    .map(drop)
                    .map_err(|status| Failure::from(&status).reason);
                let expected = self.model.activate(&kid, retire_previous);
                prop_assert_eq!(said, expected.map_err(str::to_owned));
            }
            Step::Retire(back) => {
                let kid = self.model.kid(back);
                let said = calls::retire_key(self.client(), &kid).await;
                let said = said.map_err(|status| Failure::from(&status).reason);
                let expected = self.model.retire(&kid);
                prop_assert_eq!(said, expected.map_err(str::to_owned));
            }
            Step::Pass(seconds) => {
                self.world.clock.advance(Duration::from_secs(seconds));
                self.model.now += seconds;
                let core = Arc::clone(self.world.node.running.core());
                let janitor = Janitor::new(core, Duration::from_hours(24));
                janitor
                    .sweep(&CancellationToken::new())
                    .await
                    .expect("sweeps");
                let now = self.model.now;
                let is_over = |key: &Key| key.verify_until.is_some_and(|until| until <= now);
                self.model.keys.retain(|_, key| !is_over(key));
            }
        }
        // By a token of the key that is active now.
        self.admin = self.admin.again().await;
        let token = self.admin.tokens.access_token.clone();
        let kid = calls::signer(&token);
        prop_assert_eq!(self.model.state(&kid), Some(Active), "{} signs", kid);
        self.model.tokens.insert(kid, (token, self.model.now));
        Ok(())
    }

    /// The keys are those of the model, of which one is active and at most one next;
    /// and of tokens that have not expired exactly theirs are good.
    async fn judge(&self) -> Verdict {
        let mut there = BTreeMap::new();
        for key in self.listed().await {
            let until = key.verify_until.map(|until| until.seconds - self.start);
            let known = Key {
                state: key.state(),
                verify_until: until.map(|until| u64::try_from(until).expect("later")),
            };
            there.insert(key.kid, known);
        }
        prop_assert_eq!(&there, &self.model.keys);
        let count = |state| there.values().filter(|key| key.state == state).count();
        prop_assert!(count(Active) == 1 && count(Next) <= 1, "{:?}", there);
        for (kid, (token, since)) in &self.model.tokens {
            if self.model.now <= since + GOOD_FOR {
                let is_good = calls::validates(self.client(), token).await;
                prop_assert_eq!(is_good, there.contains_key(kid), "a token of {}", kid);
            }
        }
        Ok(())
    }
}

async fn answers_as_the_model(world: &World, steps: Vec<Step>) -> Verdict {
    let mut case = Case::begin(world).await;
    for step in steps {
        case.step(step).await?;
        case.judge().await?;
    }
    Ok(())
}

on_both! {
    async fn in_whatever_order_keys_are_changed(world: World) {
        try_cases(&steps(), async |steps| answers_as_the_model(&world, steps).await);
    }
}
