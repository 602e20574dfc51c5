//! Passwords: words that none may be made of.

use countersign_proto::v1;
use tonic::Code;

use crate::{
    harness::{World, calls, calls::register, refused, world::PASSWORD},
    on_both,
};

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
}
