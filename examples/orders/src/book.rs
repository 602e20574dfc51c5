//! The orders, in memory, and the service's handlers. A handler runs only after
//! the guard has let the call through, and finds the caller in its extensions.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use axum::{Extension, Json, extract::State};
use countersign_verifier::{Caller, Subject};
use serde::Serialize;
use tonic::{Extensions, Request, Response, Status};

use crate::v1;

/// Nobody may have more orders than this.
const MOST_ORDERS: usize = 100;

const MOST_ITEM_BYTES: usize = 100;

const MOST_QUANTITY: u32 = 1_000;

/// Everybody's orders. Clones are of the same book.
#[derive(Clone, Debug, Default)]
pub(crate) struct Book(Arc<Mutex<Entries>>);

#[derive(Debug, Default)]
struct Entries {
    last_id: u64,
    of: HashMap<Subject, BTreeMap<u64, Entry>>,
}

#[derive(Clone, Debug, Serialize)]
pub(crate) struct Entry {
    order_id: String,
    item: String,
    quantity: u32,
}

impl Book {
    fn entries(&self) -> MutexGuard<'_, Entries> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn orders_of(&self, owner: &Subject) -> Vec<Entry> {
        let entries = self.entries();
        let orders = entries.of.get(owner).into_iter();
        orders.flat_map(BTreeMap::values).cloned().collect()
    }
}

/// Whom the call is for, as the guard has found out. Each of our routes asks for a caller; one that
/// does not would be a mistake in the routes, and nobody is then taken for somebody.
fn owner(extensions: &Extensions) -> Result<Subject, Status> {
    let caller = extensions.get::<Arc<Caller>>();
    let caller = caller.ok_or_else(|| Status::internal("the route asks for no caller"))?;
    Ok(caller.subject.clone())
}

#[tonic::async_trait]
impl v1::orders_service_server::OrdersService for Book {
    async fn place_order(
        &self,
        request: Request<v1::PlaceOrderRequest>,
    ) -> Result<Response<v1::PlaceOrderResponse>, Status> {
        let owner = owner(request.extensions())?;
        let v1::PlaceOrderRequest { item, quantity } = request.into_inner();
        if !(1..=MOST_ITEM_BYTES).contains(&item.len()) {
            return Err(Status::invalid_argument("item: 1 to 100 bytes"));
        }
        if !(1..=MOST_QUANTITY).contains(&quantity) {
            return Err(Status::invalid_argument("quantity: 1 to 1000"));
        }
        let mut entries = self.entries();
        let id = entries.last_id + 1;
        let orders = entries.of.entry(owner).or_default();
        if orders.len() >= MOST_ORDERS {
            return Err(Status::resource_exhausted("cancel an order first"));
        }
        let entry = Entry {
            order_id: id.to_string(),
            item,
            quantity,
        };
        orders.insert(id, entry.clone());
        entries.last_id = id;
        let order = Some(entry.into());
        Ok(Response::new(v1::PlaceOrderResponse { order }))
    }

    async fn list_orders(
        &self,
        request: Request<v1::ListOrdersRequest>,
    ) -> Result<Response<v1::ListOrdersResponse>, Status> {
        let orders = self.orders_of(&owner(request.extensions())?);
        let orders = orders.into_iter().map(Into::into).collect();
        Ok(Response::new(v1::ListOrdersResponse { orders }))
    }

    async fn cancel_order(
        &self,
        request: Request<v1::CancelOrderRequest>,
    ) -> Result<Response<v1::CancelOrderResponse>, Status> {
        let owner = owner(request.extensions())?;
        let id = request.get_ref().order_id.parse();
        let mut entries = self.entries();
        let orders = entries.of.get_mut(&owner);
        // Of others' orders nobody learns that they are there.
        let order = id.ok().and_then(|id: u64| orders?.remove(&id));
        order.ok_or_else(|| Status::not_found("you have no such order"))?;
        Ok(Response::new(v1::CancelOrderResponse {}))
    }
}

/// The same list over plain HTTP, for curl.
pub(crate) async fn list(
    State(book): State<Book>,
    Extension(caller): Extension<Arc<Caller>>,
) -> Json<Vec<Entry>> {
    Json(book.orders_of(&caller.subject))
}

impl From<Entry> for v1::Order {
    fn from(entry: Entry) -> Self {
        Self {
            order_id: entry.order_id,
            item: entry.item,
            quantity: entry.quantity,
        }
    }
}
