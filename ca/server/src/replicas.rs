//! Replicas: this server among those that share its store.
//!
//! Laws: every replica has a name, a number in serials and a session of its own; one that finds another session under
//! its name issues nothing more. What only one may do is done under the lease, and every transaction of it requires the
//! lease to be what it was: whoever lost it commits nothing, whether it knows or not. Whoever gets the lease first takes
//! in all that was written before. Where the store has one owner, that owner may do everything.
//! Not here: deciding who has the lease (`rhizome_core::replicas`), what is done under it (`rotate`, `housekeeping`).

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rhizome_core::documents::{Document, DocumentKey, Kind, Stored, Transaction, Version, Versioned};
use rhizome_core::ports::StoreError;
use rhizome_core::replicas::{
    self, BEAT_SECONDS, Fence, Lease, Move, NumberRecord, REPLICA_PREFIX, ReplicaRecord, Watch,
};
use rhizome_id::{AuthorityId, ReplicaName, ReplicaNumber};

use crate::ca::Ca;
use crate::error::{ApiError, IssueError};
use crate::settings::Ports;

/// Between two signs of life.
const BEAT: Duration = Duration::from_secs(BEAT_SECONDS.unsigned_abs());
/// How long a name that seems to be in use is watched: whoever has it gives two signs of life meanwhile.
const LOOK_FOR: Duration = BEAT.saturating_mul(2).saturating_add(Duration::from_millis(500));
/// Between two looks.
const GLANCE: Duration = Duration::from_millis(100);
/// Tries to get a number, when many replicas start at once.
const TRIES: usize = 100;
/// How long a server that stops waits to say so.
const GOOD_BYE: Duration = Duration::from_secs(2);
/// Documents read in one go.
const PAGE: usize = 500;

/// This server among the replicas.
#[derive(Debug)]
pub(crate) struct Standing {
    me: ReplicaName,
    number: ReplicaNumber,
    session: String,
    known: Mutex<Known>,
    one_at_a_time: tokio::sync::Mutex<()>,
}

#[derive(Debug)]
struct Known {
    /// Version of our own record.
    version: Version,
    beats: u64,
    watch: Watch,
    fence: Option<Fence>,
    /// It has said good-bye, and says nothing after that.
    stopped: bool,
}

/// The right to do what only one replica may do.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Right {
    /// There are no others.
    Alone,
    /// As long as the lease is ours.
    Leased(Fence),
}

impl Right {
    /// Adds to `transaction` that it counts only while the right is held.
    pub(crate) fn around(self, transaction: Transaction) -> Transaction {
        match self {
            Self::Alone => transaction,
            Self::Leased(fence) => fence.around(transaction),
        }
    }
}

impl Standing {
    /// Enters this server into the store's list of replicas.
    ///
    /// # Errors
    /// [`ApiError::Conflict`] when another server of that name runs.
    pub(crate) async fn enter(ports: &Ports, me: &ReplicaName) -> Result<Self, ApiError> {
        let mut random = [0; 16];
        ports.entropy.fill(&mut random).map_err(|_opaque| IssueError::NoEntropy)?;
        let session = hex::encode(random);
        for _ in 0..TRIES {
            let list = Listed::read(ports).await?;
            let known = list.replicas.iter().find(|it| it.value.name == *me);
            if let Some(known) = known.filter(|it| !it.value.stopped) {
                refuse_living(ports, known).await?;
            }
            let Some((number, transaction)) = list.entry(me, known) else {
                return Err(ApiError::Bug("all 16,384 numbers of replicas are taken".into()));
            };
            let record = ReplicaRecord {
                name: me.clone(),
                number,
                session: session.clone(),
                beats: 0,
                stopped: false,
            };
            match ports.store.commit(transaction.put(&record)).await {
                Ok(committed) => {
                    tracing::info!(replica = %me, number = number.value(), "entered the list of replicas");
                    let known = Known {
                        version: committed.version,
                        beats: 0,
                        watch: Watch::default(),
                        fence: None,
                        stopped: false,
                    };
                    let (known, one_at_a_time) = (Mutex::new(known), tokio::sync::Mutex::default());
                    return Ok(Self { me: me.clone(), number, session, known, one_at_a_time });
                }
                Err(StoreError::Conflict { .. }) => {}
                Err(cause) => return Err(cause.into()),
            }
        }
        Err(ApiError::Bug("the list of replicas never comes to rest".into()))
    }

    pub(crate) const fn number(&self) -> ReplicaNumber {
        self.number
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn record(&self, beats: u64, stopped: bool) -> ReplicaRecord {
        let (name, session) = (self.me.clone(), self.session.clone());
        ReplicaRecord { name, number: self.number, session, beats, stopped }
    }
}

/// Waits for a sign of life of whoever has the name.
async fn refuse_living(ports: &Ports, known: &Versioned<ReplicaRecord>) -> Result<(), ApiError> {
    tracing::info!(replica = %known.value.name, "this name was in use; looking whether it still is");
    let mut looked = Duration::ZERO;
    while looked < LOOK_FOR {
        tokio::time::sleep(GLANCE).await;
        looked += GLANCE;
        let now = ports.store.document(&known.value.key()).await?;
        let Some(now) = now.filter(|it| it.version != known.version) else { continue };
        let now = now.read::<ReplicaRecord>().map_err(|bad| ApiError::Bug(bad.to_string()))?.value;
        if now.stopped {
            return Ok(());
        }
        let problem =
            "is the name of another server that runs over this database; give each its own `replica`";
        return Err(ApiError::Conflict { what: "replica", name: now.name.to_string(), problem });
    }
    Ok(())
}

/// What the store says about replicas.
struct Listed {
    replicas: Vec<Versioned<ReplicaRecord>>,
    numbers: Vec<NumberRecord>,
    lease: Option<Versioned<Lease>>,
}

impl Listed {
    async fn read(ports: &Ports) -> Result<Self, ApiError> {
        let mut documents: Vec<Document> = Vec::new();
        loop {
            let after = documents.last().map(|it| it.key.id.clone());
            let page = ports.store.documents(Kind::Setting, after.as_deref(), PAGE).await?;
            if page.is_empty() {
                break;
            }
            documents.extend(page);
        }
        let mut list = Self { replicas: Vec::new(), numbers: Vec::new(), lease: None };
        let bug = |bad: rhizome_core::documents::BadDocument| ApiError::Bug(bad.to_string());
        for document in documents {
            if document.key.id.starts_with(REPLICA_PREFIX) {
                list.replicas.push(document.read().map_err(bug)?);
            } else if document.key.id.starts_with("replica-number/") {
                list.numbers.push(document.read::<NumberRecord>().map_err(bug)?.value);
            } else if document.key == Lease::key() {
                list.lease = Some(document.read().map_err(bug)?);
            }
        }
        Ok(list)
    }

    /// The number of `me`, and the beginning of the transaction that enters it.
    fn entry(
        &self,
        me: &ReplicaName,
        known: Option<&Versioned<ReplicaRecord>>,
    ) -> Option<(ReplicaNumber, Transaction)> {
        let transaction = Transaction::named("enter replica");
        if let Some(known) = known {
            let transaction = transaction.require_unchanged(known.value.key(), known.version);
            return Some((known.value.number, transaction));
        }
        let number = replicas::free_number(&self.numbers)?;
        let claim = NumberRecord { number, name: me.clone() };
        let mine = DocumentKey::new(Kind::Setting, format!("{REPLICA_PREFIX}{me}"));
        Some((number, transaction.require_absent(mine).require_absent(claim.key()).put(&claim)))
    }
}

impl Ca {
    /// The right to do what only one replica may do, if this one has it.
    pub(crate) fn right(&self) -> Option<Right> {
        match &self.standing {
            None => Some(Right::Alone),
            Some(standing) => standing.known().fence.map(Right::Leased),
        }
    }

    /// Adds to `transaction` that it counts only while this replica may do what only one may do.
    ///
    /// # Errors
    /// A conflict about the lease, as the commit would be, when this replica does not have it.
    pub(crate) fn fenced(&self, transaction: Transaction) -> Result<Transaction, ApiError> {
        let right = self.right().ok_or_else(|| StoreError::Conflict { key: Lease::key() })?;
        Ok(right.around(transaction))
    }

    /// A transaction under the lease was refused because of `key`: when that is the lease, somebody else has it now.
    pub(crate) fn lost_if_lease(&self, key: &DocumentKey) {
        if let Some(standing) = self.standing.as_ref().filter(|_| *key == Lease::key()) {
            standing.known().fence = None;
            tracing::warn!(replica = %standing.me, "the lease was lost; another replica rotates and keeps house");
        }
    }

    /// Whether the list of `issuer`'s revocations is this replica's to sign: its own, and under the lease those of
    /// replicas that are gone.
    pub(crate) fn signs_list_of(&self, issuer: &AuthorityId) -> bool {
        let Some(standing) = &self.standing else { return true };
        let state = self.state();
        let Some(authority) = state.authorities().get(issuer) else { return true };
        let owner = &authority.value.replica;
        let now = self.ports.clock.steady();
        let known = standing.known();
        *owner == standing.me || (known.fence.is_some() && !known.watch.is_alive(owner, now))
    }

    /// Gives signs of life and keeps the lease in good hands until the process stops.
    pub(crate) async fn keep_standing(self: Arc<Self>) {
        if self.standing.is_none() {
            return;
        }
        let mut fails = false;
        loop {
            tokio::time::sleep(BEAT).await;
            match self.stand().await {
                Ok(()) => fails = false,
                Err(cause) => {
                    if !fails {
                        tracing::warn!(%cause, "no sign of life could be given to the other replicas; trying again");
                    }
                    fails = true;
                }
            }
        }
    }

    /// Gives a sign of life, looks at the others', and sees to the lease.
    pub(crate) async fn stand(self: &Arc<Self>) -> Result<(), ApiError> {
        let Some(standing) = &self.standing else { return Ok(()) };
        let _one_at_a_time = standing.one_at_a_time.lock().await;
        if standing.known().stopped {
            return Ok(());
        }
        self.beat(standing, false).await?;
        let list = Listed::read(&self.ports).await?;
        let now = self.ports.clock.steady();
        let (decided, alive) = {
            let mut known = standing.known();
            known.watch.look(list.replicas, now);
            let me = (&standing.me, standing.session.as_str());
            let decided = replicas::decide(list.lease.as_ref(), &known.watch, me, now);
            (decided, known.watch.alive(now))
        };
        self.quota.shared_by(alive);
        let fence = match decided {
            Move::Hold(fence) => Some(fence),
            Move::Leave => None,
            Move::Take(transaction) => match self.commit(*transaction).await {
                Ok(committed) => {
                    tracing::info!(replica = %standing.me, "took the lease: rotates roots and keeps house from here on");
                    Some(replicas::taken(committed.version))
                }
                Err(StoreError::Conflict { .. }) => None,
                Err(cause) => return Err(cause.into()),
            },
        };
        if let Some(fence) = fence {
            // What the one before did counts before anything is decided.
            self.caught_up_to(fence.version()).await?;
        }
        standing.known().fence = fence;
        Ok(())
    }

    async fn beat(self: &Arc<Self>, standing: &Standing, stopped: bool) -> Result<(), ApiError> {
        let (version, beats) = {
            let known = standing.known();
            (known.version, known.beats.saturating_add(1))
        };
        let record = standing.record(beats, stopped);
        let transaction = Transaction::named("sign of life").require_unchanged(record.key(), version);
        match self.commit(transaction.put(&record)).await {
            Ok(committed) => {
                let mut known = standing.known();
                (known.version, known.beats) = (committed.version, beats);
                Ok(())
            }
            Err(StoreError::Conflict { .. }) => self.look_who(standing).await,
            Err(cause) => Err(cause.into()),
        }
    }

    /// Our record is not as we left it: a commit of ours of unknown outcome, or somebody else under our name.
    async fn look_who(self: &Arc<Self>, standing: &Standing) -> Result<(), ApiError> {
        let key = standing.record(0, false).key();
        let found = self.ports.store.document(&key).await?;
        let found = found.map(|it| it.read::<ReplicaRecord>()).transpose();
        let found = found.map_err(|bad| ApiError::Bug(bad.to_string()))?;
        match found {
            Some(ours) if ours.value.session == standing.session => {
                let mut known = standing.known();
                (known.version, known.beats) = (ours.version, ours.value.beats);
                Ok(())
            }
            Some(_) | None => {
                standing.known().fence = None;
                self.halt();
                tracing::error!(
                    replica = %standing.me,
                    "another server has taken this one's name; issuing has stopped: give each its own `replica`, restart"
                );
                let problem = "was taken by another server";
                Err(ApiError::Conflict { what: "replica", name: standing.me.to_string(), problem })
            }
        }
    }

    /// Says that this replica stops, so that the others need not wait to find out.
    pub(crate) async fn say_good_bye(self: &Arc<Self>) {
        let Some(standing) = &self.standing else { return };
        let said = tokio::time::timeout(GOOD_BYE, async {
            let _one_at_a_time = standing.one_at_a_time.lock().await;
            {
                let mut known = standing.known();
                (known.fence, known.stopped) = (None, true);
            }
            self.beat(standing, true).await
        });
        if !matches!(said.await, Ok(Ok(()))) {
            tracing::warn!("the other replicas could not be told that this one stops; they will notice");
        }
    }
}

#[cfg(test)]
#[path = "replicas_tests.rs"]
mod tests;
