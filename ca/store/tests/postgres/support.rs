//! What the tests share.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rhizome_core::documents::{DocumentKey, Kind, Transaction, Write};
use rhizome_core::entropy::{Entropy, EntropyError};
use rhizome_store::cluster::Cluster;
use rhizome_store::{PostgresOptions, PostgresStore};

/// Other numbers every time: enough for pauses.
#[derive(Debug, Default)]
pub(crate) struct Counting(AtomicU64);

impl Entropy for Counting {
    fn fill(&self, bytes: &mut [u8]) -> Result<(), EntropyError> {
        let number = self.0.fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::Relaxed).to_le_bytes();
        bytes.iter_mut().zip(number.iter().cycle()).for_each(|(to, from)| *to = *from);
        Ok(())
    }
}

pub(crate) fn is_here() -> bool {
    Cluster::shared().is_some()
}

pub(crate) fn cluster() -> &'static Cluster {
    Cluster::shared().unwrap()
}

pub(crate) fn options(address: &str) -> PostgresOptions {
    PostgresOptions::new(address, Arc::new(Counting::default())).unwrap()
}

pub(crate) fn open(address: &str) -> PostgresStore {
    PostgresStore::open(options(address)).unwrap()
}

pub(crate) fn key(id: &str) -> DocumentKey {
    DocumentKey::new(Kind::Rule, id)
}

pub(crate) fn writing(id: &str, body: &str) -> Transaction {
    Transaction { writes: vec![Write::Put(key(id), body.into())], ..Transaction::named("test") }
}

/// The database of an address of `Cluster::database`.
pub(crate) fn name_of(address: &str) -> &str {
    address.rsplit_once("dbname=").unwrap().1
}
