//! Caps on connections, in total and per address. What is over a cap is closed
//! at once: it costs a file descriptor for a moment, and nothing else.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use crate::middleware::peer;

/// Counts connections.
#[derive(Debug)]
pub(super) struct Admission {
    max: usize,
    max_per_address: usize,
    open: Mutex<Open>,
}

#[derive(Debug, Default)]
struct Open {
    total: usize,
    by_address: HashMap<IpAddr, usize>,
}

/// A place for one connection; dropping it gives it back.
#[derive(Debug)]
pub(super) struct Admitted {
    admission: Arc<Admission>,
    address: Option<IpAddr>,
}

/// Which cap a connection met.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Full {
    Total,
    Address,
}

impl Full {
    /// The name in logs and metrics.
    pub(super) fn label(self) -> &'static str {
        match self {
            Self::Total => "total",
            Self::Address => "address",
        }
    }
}

impl Admission {
    pub(super) fn new(max: usize, max_per_address: usize) -> Arc<Self> {
        Arc::new(Self {
            max,
            max_per_address,
            open: Mutex::default(),
        })
    }

    /// A place for a connection from `address`; none on a Unix socket.
    pub(super) fn admit(self: &Arc<Self>, address: Option<IpAddr>) -> Result<Admitted, Full> {
        let address = address.map(peer::host);
        let mut open = self.open();
        if open.total >= self.max {
            return Err(Full::Total);
        }
        if let Some(address) = address {
            let count = open.by_address.entry(address).or_default();
            if *count >= self.max_per_address {
                return Err(Full::Address);
            }
            *count += 1;
        }
        open.total += 1;
        metrics::gauge!("countersign_connections").increment(1);
        Ok(Admitted {
            admission: Arc::clone(self),
            address,
        })
    }

    fn open(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Admitted {
    fn drop(&mut self) {
        let mut open = self.admission.open();
        open.total -= 1;
        if let Some(address) = self.address
            && let Some(count) = open.by_address.get_mut(&address)
        {
            *count -= 1;
            if *count == 0 {
                open.by_address.remove(&address);
            }
        }
        metrics::gauge!("countersign_connections").decrement(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_counted_and_given_back() {
        let admission = Admission::new(3, 2);
        let a = Some("2001:db8::1".parse().unwrap());
        let same_network = Some("2001:db8::2".parse().unwrap());
        let b = Some("198.51.100.1".parse().unwrap());
        let first = admission.admit(a).unwrap();
        let _second = admission.admit(same_network).unwrap();
        assert_eq!(admission.admit(a).unwrap_err(), Full::Address);
        let third = admission.admit(b).unwrap();
        assert_eq!(admission.admit(None).unwrap_err(), Full::Total);
        drop(third);
        let _unix = admission.admit(None).unwrap();
        drop(first);
        let _again = admission.admit(a).unwrap();
        assert_eq!(admission.open().by_address.len(), 1);
    }
}
