//! Passwords: words that none may be made of, and stored hashes that ask for
//! more than is given.

use countersign_proto::v1;
use tonic::Code;

use crate::{
    harness::{
        World, calls,
        calls::register,
        refused,
        world::{PASSWORD, login},
    },
    on_both,
};

/// A hash of these parameters, well formed.
fn hash(parameters: &str) -> String {
    format!(
        "$argon2id$v=19${parameters}$AAECAwQFBgcICQoLDA0ODw$LfR+3mNY7Repl21PztuJehADbUMqSs7xfSY7/Ji9IKw"
    )
}

on_both! {
    async fn words_of_the_organisation_are_refused(world: World) {
        let words = ["Acme", "roadrunner"].map(str::to_owned);
        let world = world.restarted(|config| config.passwords.context_words = words.into()).await;
        let (admin, ana) = (world.admin().await, world.person().await);
        let registration = |password: &str| v1::RegisterRequest {
            email: "bo@example.com".into(),
            display_name: "Bo Tanaka".into(),
            password: password.into(),
            ..Default::default()
        };
        for bad in ["Acme-Roadrunner-2026", "acme.tanaka.1234567"] {
            let failed = register(&world.anonymous(), registration(bad)).await;
            let failure = refused(failed, Code::InvalidArgument, "INVALID_REQUEST");
            assert_eq!(failure.fields, ["password"], "{bad}");
        }
        let bad = "Acme-Roadrunner-2026";
        let failed = calls::change_password(&ana.client, PASSWORD, bad).await;
        refused(failed, Code::InvalidArgument, "INVALID_REQUEST");
        let failed = calls::set_password(&admin.client, &ana.user_id, bad).await;
        refused(failed, Code::InvalidArgument, "INVALID_REQUEST");
        let request = v1::CreateUserRequest {
            email: "bo@example.com".into(),
            password: bad.into(),
            ..Default::default()
        };
        let failed = admin.client.clone().users.create_user(request).await;
        refused(failed, Code::InvalidArgument, "INVALID_REQUEST");
        register(&world.anonymous(), registration("the roadrunner never stops")).await.unwrap();
    }

    async fn a_stored_hash_that_asks_for_too_much_gets_nothing(world: World) {
        let ana = world.person().await;
        let core = world.node.running.core();
        for parameters in [
            // 4 TiB, 4 GiB and a KiB more than the cap; and of the others.
            "m=4294967295,t=2,p=1", "m=4194304,t=2,p=1", "m=65537,t=2,p=1", "m=64,t=11,p=1", "m=64,t=2,p=5",
        ] {
            let (hash, email) = (hash(parameters), &ana.email);
            world.execute(&format!("UPDATE users SET password = '{hash}' WHERE email = '{email}'")).await;
            let before = core.lanes.work();
            refused(login(&world.anonymous(), email, PASSWORD).await, Code::Internal, "INTERNAL");
            assert_eq!(core.lanes.work(), before, "{parameters}: a lane was at work");
        }
        // It is our fault and nobody's guess.
        assert_eq!(world.query("SELECT count(*) FROM login_throttle").await, ["0"]);
    }
}
