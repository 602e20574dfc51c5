//! The example service, as it is shipped, behind the nodes of a world.

use std::{net::SocketAddr, time::Duration};

use countersign_proto::v1;
use orders::{
    Settings,
    v1::{
        CancelOrderRequest, ListOrdersRequest, Order, PlaceOrderRequest,
        orders_service_client::OrdersServiceClient,
    },
};
use tokio::{net::TcpListener, task::AbortHandle};
use tonic::{
    Code, Request, Status,
    transport::{Channel, Endpoint},
};
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};
use tonic_types::StatusExt as _;

use crate::harness::{Kind, Person, World, binary, calls, eventually};

/// Longer than any machine is late.
const NEVER: Duration = Duration::from_secs(600);

const SOON: Duration = Duration::from_secs(4);

/// The example, in this process.
struct Orders {
    address: SocketAddr,
    channel: Channel,
    task: AbortHandle,
    _credential: tempfile::TempDir,
}

impl Drop for Orders {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Orders {
    async fn start(world: &World, max_staleness: Duration) -> Self {
        let watcher = world.person_who_may(&["countersign.trust.watch"]).await;
        let made = calls::create_api_key(&watcher.client, &["countersign.trust.watch"]).await;
        let (_, secret) = made.unwrap();
        let folder = tempfile::tempdir().unwrap();
        let credential_file = folder.path().join("orders.key");
        std::fs::write(&credential_file, secret).unwrap();
        let node = Endpoint::from_shared(format!("http://{}", world.node.address));
        let settings = Settings {
            nodes: vec![node.unwrap()],
            credential_file,
            issuer: world.config.issuer.clone(),
            audience: "countersign".to_owned(),
            max_staleness,
        };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let serving = orders::serve(listener, settings, std::future::pending());
        let task = tokio::spawn(async move { serving.await.unwrap() }).abort_handle();
        let endpoint = Endpoint::from_shared(format!("http://{address}"));
        let orders = Self {
            address,
            channel: endpoint.unwrap().connect_lazy(),
            task,
            _credential: folder,
        };
        eventually("it serves", async || orders.serves().await).await;
        orders
    }

    async fn serves(&self) -> bool {
        let request = HealthCheckRequest {
            service: "orders.v1.OrdersService".to_owned(),
        };
        let answer = HealthClient::new(self.channel.clone()).check(request).await;
        answer.is_ok_and(|answer| answer.into_inner().status == 1)
    }

    fn client(&self) -> OrdersServiceClient<Channel> {
        OrdersServiceClient::new(self.channel.clone())
    }

    async fn place(&self, token: &str, item: &str) -> Result<Order, Status> {
        let request = PlaceOrderRequest {
            item: item.to_owned(),
            quantity: 2,
        };
        let reply = self.client().place_order(with(token, request)).await?;
        Ok(reply.into_inner().order.expect("an order"))
    }

    /// The items, and how old the answer says that its knowledge is.
    async fn list(&self, token: &str) -> Result<(Vec<String>, Option<u64>), Status> {
        let reply = self
            .client()
            .list_orders(with(token, ListOrdersRequest {}))
            .await?;
        let staleness = reply.metadata().get("x-countersign-staleness");
        let staleness = staleness.map(|age| age.to_str().unwrap().parse().unwrap());
        let orders = reply.into_inner().orders;
        Ok((
            orders.into_iter().map(|order| order.item).collect(),
            staleness,
        ))
    }

    async fn cancel(&self, token: &str, order: &Order) -> Result<(), Status> {
        let request = CancelOrderRequest {
            order_id: order.order_id.clone(),
        };
        self.client().cancel_order(with(token, request)).await?;
        Ok(())
    }
}

fn with<M>(token: &str, message: M) -> Request<M> {
    let mut request = Request::new(message);
    if !token.is_empty() {
        let value = format!("Bearer {token}").parse().unwrap();
        request.metadata_mut().insert("authorization", value);
    }
    request
}

#[track_caller]
fn refused<T: std::fmt::Debug>(result: Result<T, Status>, code: Code, reason: &str) {
    let status = result.expect_err("the call was to be refused");
    let info = status.get_details_error_info();
    let found = info.map(|info| info.reason).unwrap_or_default();
    assert_eq!((status.code(), &*found), (code, reason), "{status:?}");
}

/// Somebody with the role `buyer`, and the rights that come with it.
async fn buyer(world: &World, admin: &Person) -> Person {
    let person = world.person().await;
    calls::grant(&admin.client, &person.user_id, "buyer")
        .await
        .unwrap();
    person.again().await
}

/// On SQLite: a database has no say in what is tested. The clock is the
/// machine's, which the example reads.
async fn fleet(max_staleness: Duration) -> (World, Orders, [Person; 2]) {
    let world = World::at_the_real_time(Kind::Sqlite, |_| {}).await;
    let orders = Orders::start(&world, max_staleness).await;
    let admin = world.admin().await;
    calls::create_role(&admin.client, "buyer", &["orders.write"])
        .await
        .unwrap();
    let buyers = [buyer(&world, &admin).await, buyer(&world, &admin).await];
    (world, orders, buyers)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everybody_has_orders_of_their_own() {
    let (_world, orders, [ana, ben]) = fleet(NEVER).await;
    let (ana, ben) = (&ana.tokens.access_token, &ben.tokens.access_token);
    let tea = orders.place(ana, "tea").await.unwrap();
    orders.place(ana, "milk").await.unwrap();
    orders.place(ben, "coffee").await.unwrap();
    assert_eq!(
        orders.list(ana).await.unwrap(),
        (vec!["tea".into(), "milk".into()], None)
    );
    assert_eq!(
        orders.list(ben).await.unwrap(),
        (vec!["coffee".into()], None)
    );
    let other = orders.cancel(ben, &tea).await.unwrap_err();
    assert_eq!(other.code(), Code::NotFound);
    orders.cancel(ana, &tea).await.unwrap();
    assert_eq!(orders.list(ana).await.unwrap().0, ["milk"]);
    // Without a credential nobody has any, over HTTP neither.
    let (status, _) = binary::get(orders.address, "/orders").await;
    assert_eq!(status, 401);
    let too_many = PlaceOrderRequest {
        item: "tea".to_owned(),
        quantity: 1_001,
    };
    let bad = orders
        .client()
        .place_order(with(ana, too_many))
        .await
        .unwrap_err();
    assert_eq!(bad.code(), Code::InvalidArgument);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_may_not_is_told_why() {
    let (world, orders, [ana, ben]) = fleet(NEVER).await;
    let guest = world.person().await;
    let tea = orders.place(&ana.tokens.access_token, "tea").await.unwrap();
    for (token, code, reason) in [
        ("", Code::Unauthenticated, "CREDENTIALS_MISSING"),
        ("a.b.c", Code::Unauthenticated, "TOKEN_INVALID"),
    ] {
        refused(orders.list(token).await, code, reason);
        refused(orders.place(token, "tea").await, code, reason);
        refused(orders.cancel(token, &tea).await, code, reason);
    }
    // A caller without the scope, and without the role.
    let guest = &guest.tokens.access_token;
    assert_eq!(orders.list(guest).await.unwrap(), (vec![], None));
    refused(
        orders.place(guest, "tea").await,
        Code::PermissionDenied,
        "PERMISSION_DENIED",
    );
    refused(
        orders.cancel(guest, &tea).await,
        Code::PermissionDenied,
        "PERMISSION_DENIED",
    );
    // An API key acts for its owner, by scopes, and holds no role.
    let (key, secret) = calls::create_api_key(&ana.client, &["orders.write"])
        .await
        .unwrap();
    let known = async || orders.place(&secret, "milk").await.is_ok();
    eventually("the API key is known", known).await;
    assert_eq!(
        orders.list(&ana.tokens.access_token).await.unwrap().0,
        ["tea", "milk"]
    );
    refused(
        orders.cancel(&secret, &tea).await,
        Code::PermissionDenied,
        "PERMISSION_DENIED",
    );

    let out = v1::LogoutRequest::default();
    ben.client.clone().auth.logout(out).await.unwrap();
    calls::revoke_api_key(&ana.client, &key.api_key_id)
        .await
        .unwrap();
    for token in [&ben.tokens.access_token, &secret] {
        let ended = async || orders.list(token).await.is_err();
        eventually("what is revoked is refused", ended).await;
        refused(
            orders.place(token, "tea").await,
            Code::Unauthenticated,
            "TOKEN_INVALID",
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_news_it_shows_and_says_so_but_changes_nothing() {
    let (world, orders, [ana, ben]) = fleet(SOON).await;
    let ana = &ana.tokens.access_token;
    let placed = async || orders.place(ana, "tea").await.is_ok();
    eventually("it is up to date", placed).await;
    let other = Order {
        order_id: "7".to_owned(),
        ..Order::default()
    };
    let out = v1::LogoutRequest::default();
    ben.client.clone().auth.logout(out).await.unwrap();
    let ben = &ben.tokens.access_token;
    let heard = async || orders.list(ben).await.is_err();
    eventually("the logout is heard", heard).await;

    world.node.running.process().abort();
    let cancels = async || orders.cancel(ana, &other).await.unwrap_err().code();
    eventually("it knows that it is out of date", async || {
        cancels().await == Code::Unavailable
    })
    .await;
    refused(
        orders.cancel(ana, &other).await,
        Code::Unavailable,
        "TRUST_STALE",
    );
    refused(
        orders.place(ana, "milk").await,
        Code::Unavailable,
        "TRUST_STALE",
    );
    let (items, staleness) = orders.list(ana).await.unwrap();
    assert_eq!(items, ["tea"]);
    assert!(staleness >= Some(SOON.as_secs()), "{staleness:?}");
    // What was revoked stays revoked, and what is bad bad.
    for token in [ben, "a.b.c"] {
        refused(
            orders.list(token).await,
            Code::Unauthenticated,
            "TOKEN_INVALID",
        );
    }
}
