//! Something of which there is only so much, and of which one peer may have a
//! quarter: so that no single address, busy or broken, keeps it from all
//! others.
//!
//! A peer is what the limits by rate take for one: an IPv4 address or an IPv6
//! network. Whoever comes over the Unix socket has no address and no such bound.
//! Nothing is remembered of a peer that holds nothing.

use std::{
    collections::{HashMap, hash_map::RandomState},
    hash::BuildHasher as _,
    net::IpAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
};

use super::peer;

/// One peer may hold the total divided by this, rounded up.
pub const PEERS: usize = 4;

/// Locks, so that calls of different peers seldom wait for each other.
const SHARDS: usize = 16;

/// How much there is, and who has how much of it.
#[derive(Debug)]
pub struct Stock {
    total: usize,
    each: usize,
    taken: AtomicUsize,
    peers: [Mutex<HashMap<IpAddr, usize>>; SHARDS],
    seed: RandomState,
}

/// What one call has. Given back when it is dropped.
#[derive(Debug)]
pub struct Share {
    stock: Arc<Stock>,
    peer: Option<IpAddr>,
    amount: usize,
}

/// Why there is nothing to be had.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Short {
    /// Nothing is left.
    OfAll,
    /// The peer has its quarter already.
    OfPeer,
}

impl Stock {
    /// All of it there.
    pub fn new(total: usize) -> Arc<Self> {
        Arc::new(Self {
            total,
            each: total.div_ceil(PEERS),
            taken: AtomicUsize::new(0),
            peers: Default::default(),
            seed: RandomState::new(),
        })
    }

    /// Takes some for a caller at this address.
    ///
    /// # Errors
    ///
    /// What it is that there is too little of.
    pub fn take(self: &Arc<Self>, address: Option<IpAddr>, amount: usize) -> Result<Share, Short> {
        let mut share = Share {
            stock: Arc::clone(self),
            peer: address.map(peer::host),
            amount: 0,
        };
        share.grow(amount)?;
        Ok(share)
    }

    fn of(&self, peer: IpAddr) -> Option<&Mutex<HashMap<IpAddr, usize>>> {
        let shard = self.seed.hash_one(peer) % SHARDS as u64;
        self.peers.get(usize::try_from(shard).unwrap_or_default())
    }

    /// Counts more for a peer, unless that is too much.
    fn charge(&self, peer: IpAddr, amount: usize) -> bool {
        let Some(shard) = self.of(peer) else {
            return true;
        };
        let mut peers = shard.lock().unwrap_or_else(PoisonError::into_inner);
        let held = peers.entry(peer).or_default();
        let fits = amount <= self.each.saturating_sub(*held);
        if fits {
            *held += amount;
        }
        if *held == 0 {
            peers.remove(&peer);
        }
        fits
    }

    fn discharge(&self, peer: IpAddr, amount: usize) {
        let Some(shard) = self.of(peer) else { return };
        let mut peers = shard.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(held) = peers.get_mut(&peer) {
            *held = held.saturating_sub(amount);
            if *held == 0 {
                peers.remove(&peer);
            }
        }
    }
}

impl Share {
    /// Takes more, or nothing if that is too much.
    ///
    /// # Errors
    ///
    /// What it is that there is too little of.
    pub fn grow(&mut self, amount: usize) -> Result<(), Short> {
        let stock = &self.stock;
        if let Some(peer) = self.peer
            && !stock.charge(peer, amount)
        {
            return Err(Short::OfPeer);
        }
        let more = |taken: usize| taken.checked_add(amount).filter(|&sum| sum <= stock.total);
        if stock.taken.fetch_update(Relaxed, Relaxed, more).is_err() {
            if let Some(peer) = self.peer {
                stock.discharge(peer, amount);
            }
            return Err(Short::OfAll);
        }
        self.amount += amount;
        Ok(())
    }

    /// How much it is.
    pub fn amount(&self) -> usize {
        self.amount
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        if let Some(peer) = self.peer {
            self.stock.discharge(peer, self.amount);
        }
        self.stock.taken.fetch_sub(self.amount, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> Option<IpAddr> {
        text.parse().ok()
    }

    #[test]
    fn one_peer_has_a_quarter_and_all_together_have_the_whole() {
        let stock = Stock::new(8);
        let (one, same) = (address("2001:db8::1"), address("2001:db8::2"));
        let held = [stock.take(one, 1).unwrap(), stock.take(same, 1).unwrap()];
        assert_eq!(stock.take(one, 1).unwrap_err(), Short::OfPeer);
        let others: Vec<_> = (0..3)
            .map(|n| stock.take(address(&format!("192.0.2.{n}")), 2).unwrap())
            .collect();
        assert_eq!(
            stock.take(address("192.0.2.9"), 1).unwrap_err(),
            Short::OfAll
        );
        drop(held);
        let mut grown = stock.take(one, 1).unwrap();
        grown.grow(1).unwrap();
        assert_eq!(grown.grow(1).unwrap_err(), Short::OfPeer);
        assert_eq!(grown.amount(), 2);
        drop((grown, others));
        assert_eq!(stock.taken.load(Relaxed), 0);
        let left: usize = stock.peers.iter().map(|p| p.lock().unwrap().len()).sum();
        assert_eq!(left, 0);
    }

    #[test]
    fn callers_without_an_address_may_have_all() {
        let stock = Stock::new(8);
        let all = stock.take(None, 8).unwrap();
        assert_eq!(stock.take(None, 1).unwrap_err(), Short::OfAll);
        drop(all);
    }
}
