//! The stack behind the listener, called by a real client.

use tokio_util::sync::CancellationToken;
use tonic::{Request, transport::Endpoint};
use tonic_health::pb::{
    HealthCheckRequest, health_client::HealthClient, health_server::HealthServer,
};
use tonic_health::server::{HealthReporter, HealthService};

use super::*;
use crate::listen::{self, Listener};

#[tokio::test]
async fn a_client_gets_answers_streams_and_errors_with_their_ids() {
    let config = listen::Config {
        address: "127.0.0.1:0".into(),
        ..listen::Config::default()
    };
    let listener = Listener::bind(&config, Arc::new(Counting::default()))
        .await
        .unwrap();
    let address = format!("http://{}", listener.address());
    let health = HealthService::from_health_reporter(HealthReporter::new());
    let parts = Edge::parts(&Mint::new());
    let service = stack(Routes::new(HealthServer::new(health)), &parts);
    let shutdown = CancellationToken::new();
    let served = tokio::spawn(listener.serve(service, shutdown.clone()));

    let channel = Endpoint::from_shared(address)
        .unwrap()
        .connect()
        .await
        .unwrap();
    let mut client = HealthClient::new(channel.clone());
    let check = |service: &str| {
        let service = service.to_owned();
        let mut request = Request::new(HealthCheckRequest { service });
        request
            .metadata_mut()
            .insert("x-request-id", "mine".parse().unwrap());
        request
    };
    let reply = client.check(check("")).await.unwrap();
    assert_eq!(reply.metadata().get("x-request-id").unwrap(), "mine");
    assert_eq!(reply.into_inner().status, 1);

    // The library answers this one by itself.
    let status = client.check(check("no such service")).await.unwrap_err();
    assert_eq!(status.metadata().get("x-request-id").unwrap(), "mine");
    assert_eq!(
        status
            .get_error_details()
            .request_info()
            .unwrap()
            .request_id,
        "mine"
    );
    assert_eq!(
        status.get_error_details().error_info().unwrap().domain,
        "countersign"
    );

    let mut watch = client.watch(check("")).await.unwrap().into_inner();
    assert_eq!(watch.message().await.unwrap().unwrap().status, 1);
    drop(watch);

    drop((client, channel));
    shutdown.cancel();
    tokio::time::timeout(Duration::from_secs(5), served)
        .await
        .unwrap()
        .unwrap();
}
