//! Refresh tokens, in whatever order they are presented.

use std::time::Duration;

use countersign_proto::v1;
use proptest::{collection::vec, prelude::*};
use tonic::{Code, Status};

use super::{Verdict, try_cases};
use crate::{
    harness::{Client, Failure, World, calls},
    on_both,
};

const GRACE: u64 = 30;
const IDLE: u64 = 7 * 24 * 3_600;

/// An access token is good for so long at least, in seconds: 15 minutes less 5 %.
const GOOD_FOR: u64 = 855;

#[derive(Debug, Clone)]
enum Step {
    /// Presents a token: the newest, or one so many generations older.
    Present(usize),
    /// Presents such a token with one letter changed.
    Forge(usize, usize),
    /// Seconds pass.
    Pass(u64),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let back = || prop_oneof![5 => Just(0_usize), 4 => Just(1), 1 => 2_usize..5];
    vec(
        prop_oneof![
            8 => back().prop_map(Step::Present),
            2 => (back(), 4_usize..96).prop_map(|(back, at)| Step::Forge(back, at)),
            4 => prop_oneof![0..GRACE, Just(GRACE), Just(GRACE + 1)].prop_map(Step::Pass),
            1 => Just(Step::Pass(IDLE + 1)),
        ],
        1..25,
    )
}

/// The session as its owner knows it.
struct Model {
    /// All refresh tokens, the newest last.
    tokens: Vec<String>,
    /// The access token that came last, and when.
    access: (String, u64),
    now: u64,
    rotated_at: u64,
    is_revoked: bool,
}

#[derive(Debug, PartialEq)]
enum Outcome {
    /// A refresh token that nobody has seen before.
    Next,
    /// The newest one, once more.
    Same,
    Refused,
}

impl Model {
    fn new(tokens: v1::TokenPair) -> Self {
        Self {
            tokens: vec![tokens.refresh_token],
            access: (tokens.access_token, 0),
            now: 0,
            rotated_at: 0,
            is_revoked: false,
        }
    }

    /// The token so many generations back; the oldest if there are fewer.
    fn token(&self, back: usize) -> (usize, &str) {
        let back = back.min(self.tokens.len() - 1);
        (back, &self.tokens[self.tokens.len() - 1 - back])
    }

    /// What presenting a genuine token comes to.
    fn presented(&mut self, back: usize) -> Outcome {
        let is_live = !self.is_revoked && self.now < self.rotated_at + IDLE;
        match back {
            _ if !is_live => Outcome::Refused,
            0 => {
                self.rotated_at = self.now;
                Outcome::Next
            }
            1 if self.now <= self.rotated_at + GRACE => Outcome::Same,
            _ => {
                self.is_revoked = true;
                Outcome::Refused
            }
        }
    }
}

async fn answers_as_the_model(world: &World, steps: Vec<Step>) -> Verdict {
    let client = world.anonymous();
    let mut model = Model::new(world.person().await.tokens);
    for step in steps {
        match step {
            Step::Pass(seconds) => {
                world.clock.advance(Duration::from_secs(seconds));
                model.now += seconds;
            }
            Step::Forge(back, at) => {
                let mut token = model.token(back).1.as_bytes().to_vec();
                token[at] = if token[at] == b'A' { b'B' } else { b'A' };
                let token = String::from_utf8(token).expect("ASCII");
                refused(calls::refresh(&client, &token).await)?;
            }
            Step::Present(back) => {
                let (back, token) = model.token(back);
                let answer = calls::refresh(&client, token).await;
                let expected = model.presented(back);
                let outcome = match &answer {
                    Err(_) => Outcome::Refused,
                    Ok(pair) if Some(&pair.refresh_token) == model.tokens.last() => Outcome::Same,
                    Ok(pair) if model.tokens.contains(&pair.refresh_token) => {
                        return Err(TestCaseError::fail("an older token is handed out"));
                    }
                    Ok(_) => Outcome::Next,
                };
                prop_assert_eq!(&outcome, &expected, "{} back", back);
                match answer {
                    Err(status) => refused(Err(status))?,
                    Ok(pair) => {
                        if outcome == Outcome::Next {
                            model.tokens.push(pair.refresh_token);
                        }
                        model.access = (pair.access_token, model.now);
                    }
                }
            }
        }
        judge_access(&client, &model).await?;
    }
    Ok(())
}

/// Theft ends the access token too, and nothing else does before its time.
async fn judge_access(client: &Client, model: &Model) -> Verdict {
    let (token, since) = &model.access;
    if model.is_revoked || model.now <= since + GOOD_FOR {
        let is_good = calls::validates(client, token).await;
        prop_assert_eq!(is_good, !model.is_revoked);
    }
    Ok(())
}

fn refused(answer: Result<v1::TokenPair, Status>) -> Verdict {
    let status = answer.err();
    let said = status.map(|status| (status.code(), Failure::from(&status).reason));
    let expected = (Code::Unauthenticated, "REFRESH_TOKEN_INVALID".to_owned());
    prop_assert_eq!(said, Some(expected));
    Ok(())
}

on_both! {
    async fn in_whatever_order_tokens_are_presented(world: World) {
        try_cases(&steps(), async |steps| answers_as_the_model(&world, steps).await);
    }
}
