//! Node records: what the authority remembers of each attested agent, and whether a renewal comes from it or a clone.
//!
//! Laws: one record per cluster, method and name; a renewal must present the newest certificate, or, after a lost
//! answer, the one before it together with the very key that the newest certificate was issued to. Anything else is
//! a copy of the node's key at work: refused, and an alarm. A banned node renews nothing. A certificate of ours that
//! is newer than the record proves that the record is an older copy, put back from a backup; it counts as the newest.
//! Not here: verifying the presented certificate (`rhizome_x509::verify`), writing the record (`rhizome_store`).
//! Sources: ca/docs/ARCHITECTURE.md §3; ca/docs/attacks.md §1.2 "endless renewal of a stolen certificate".

use rhizome_id::{ClusterName, Digest, NodeName, Serial, SpiffeId, SpiffeIdError, Timestamp, TrustDomain};
use serde::{Deserialize, Serialize};

use crate::attributes::Attributes;
use crate::caller::{AttestationMethod, AttestedCaller, Principal, Scope, node_id};

/// An attested node as it is stored. JSON; unknown fields are ignored (schema N and N−1).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeRecord {
    /// The cluster it joined.
    pub cluster: ClusterName,
    /// How it proved itself.
    pub method: AttestationMethod,
    /// Its name within cluster and method.
    pub name: NodeName,
    /// What it may vouch for.
    pub scope: Scope,
    /// What attestation found out about it: platform, labels.
    pub attributes: Attributes,
    /// SHA-256 of the subject public key info (DER) of its newest certificate.
    pub key: Digest,
    /// Serial of its newest certificate.
    pub serial: Serial,
    /// Serial of the last certificate that it is known to have held, when the newest may not have reached it.
    pub previous: Option<Serial>,
    /// NotAfter of its newest certificate (inclusive).
    pub not_after: Timestamp,
    /// When it joined, last time.
    pub attested_at: Timestamp,
    /// Renewals since it joined.
    pub renewals: u32,
    /// Whether it may go on.
    pub state: NodeState,
}

/// Whether a node may go on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NodeState {
    /// It may.
    Active,
    /// An administrator or an alarm shut it out. It can neither renew nor join again until it is unbanned.
    Banned {
        /// When.
        at: Timestamp,
        /// The principal's audit text of whoever did it.
        by: String,
        /// Why, in words.
        reason: String,
    },
}

/// The certificate that a renewal issued: what the record remembers of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NewCertificate {
    /// SHA-256 of its subject public key info (DER).
    pub key: Digest,
    /// Its serial.
    pub serial: Serial,
    /// Its NotAfter (inclusive).
    pub not_after: Timestamp,
}

/// Why a renewal was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RenewError {
    /// The node is banned.
    #[error("node {node} was banned at {at}: {reason}")]
    Banned {
        /// Which node.
        node: String,
        /// Since when.
        at: Timestamp,
        /// Why, in words.
        reason: String,
    },
    /// The presented certificate is not the newest: two parties hold this node's identity. Raise an alarm.
    #[error(
        "node {node} presented certificate {presented}, but its newest is {newest}: its key has been copied, or it \
         was restored from a backup; ban it or let it join again"
    )]
    Stale {
        /// Which node.
        node: String,
        /// What it presented.
        presented: Serial,
        /// The newest one issued to it.
        newest: Serial,
    },
}

impl RenewError {
    /// The stable code for metric and audit.
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Banned { .. } => "node_banned",
            Self::Stale { .. } => "node_clone_detected",
        }
    }
}

impl NodeRecord {
    /// The record's key in the store and its name in lists: `CLUSTER/METHOD/NAME`.
    pub fn id(&self) -> String {
        format!("{}/{}/{}", self.cluster, self.method, self.name)
    }

    /// Its SPIFFE ID, `spiffe://TD/rhizome/node/CLUSTER/METHOD/NAME`.
    ///
    /// # Errors
    /// [`SpiffeIdError`] only when the ID exceeds the length limit, which no valid names do.
    pub fn spiffe_id(&self, domain: &TrustDomain) -> Result<SpiffeId, SpiffeIdError> {
        node_id(domain, &self.cluster, self.method, &self.name)
    }

    /// Who it is as a caller.
    pub fn principal(&self) -> Principal {
        Principal::Node { cluster: self.cluster.clone(), method: self.method, name: self.name.clone() }
    }

    /// Whether it serves anybody at `now`: a banned node is nobody, and one whose certificate has expired verifies and
    /// presents for nobody any more.
    pub fn lives(&self, now: Timestamp) -> bool {
        self.state == NodeState::Active && self.not_after >= now
    }

    /// The evidence for a node that authentication has matched to this record.
    ///
    /// # Errors
    /// [`RenewError::Banned`]: a banned node is nobody.
    pub fn assert_caller(&self) -> Result<AttestedCaller, RenewError> {
        self.check_active()?;
        Ok(AttestedCaller::assertion(self.principal(), self.attributes.clone(), self.scope.clone()))
    }

    /// Whether a renewal that presents the certificate `presented` and asks for `key` would be accepted. To be asked
    /// before anything is issued; [`NodeRecord::renew`] asks again in the transaction.
    ///
    /// # Errors
    /// As [`NodeRecord::renew`].
    pub fn check_renewal(&self, presented: &Serial, key: &Digest) -> Result<(), RenewError> {
        self.check_active()?;
        let newest = *presented == self.serial;
        let lost_answer = self.previous.as_ref() == Some(presented) && *key == self.key;
        // A certificate of ours that is newer than the newest on record: the record was put back from a backup.
        let after_restore =
            presented.replica() == self.serial.replica() && presented.counter() > self.serial.counter();
        if newest || lost_answer || after_restore {
            return Ok(());
        }
        Err(RenewError::Stale { node: self.id(), presented: *presented, newest: self.serial })
    }

    /// The record after a renewal: it presented `presented` and was issued `new`.
    ///
    /// # Errors
    /// [`RenewError`] when the node is banned, or when `presented` is neither the newest certificate nor, for the same
    /// key as the newest one, the certificate before.
    pub fn renew(&self, presented: &Serial, new: NewCertificate) -> Result<Self, RenewError> {
        self.check_renewal(presented, &new.key)?;
        let NewCertificate { key, serial, not_after } = new;
        Ok(Self {
            key,
            serial,
            // What it presented is what it surely holds; the newest answer may be lost as well.
            previous: Some(*presented),
            not_after,
            renewals: self.renewals.saturating_add(1),
            ..self.clone()
        })
    }

    /// The record shut out by `by`. Banning twice keeps the first record.
    #[must_use]
    pub fn banned(&self, by: &str, reason: &str, now: Timestamp) -> Self {
        let state = match &self.state {
            first @ NodeState::Banned { .. } => first.clone(),
            NodeState::Active => NodeState::Banned { at: now, by: by.to_owned(), reason: reason.to_owned() },
        };
        Self { state, ..self.clone() }
    }

    /// The record let in again.
    #[must_use]
    pub fn unbanned(&self) -> Self {
        Self { state: NodeState::Active, ..self.clone() }
    }

    /// Whether a verified certificate of this node with that serial may still speak for it: the newest, the one before
    /// (an answer may have been lost), or, after the record was put back from a backup, a newer one.
    pub fn may_present(&self, presented: &Serial) -> bool {
        *presented == self.serial
            || self.previous.as_ref() == Some(presented)
            || (presented.replica() == self.serial.replica() && presented.counter() > self.serial.counter())
    }

    fn check_active(&self) -> Result<(), RenewError> {
        match &self.state {
            NodeState::Active => Ok(()),
            NodeState::Banned { at, by: _, reason } => {
                Err(RenewError::Banned { node: self.id(), at: *at, reason: reason.clone() })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use rhizome_id::{ReplicaNumber, SerialCounter};

    use super::*;

    fn serial(counter: u64) -> Serial {
        Serial::compose(ReplicaNumber::new(1).unwrap(), SerialCounter::new(counter).unwrap(), [0; 11])
    }

    fn key(n: u8) -> Digest {
        Digest::from_bytes([n; 32])
    }

    fn issued(counter: u64, key_number: u8) -> NewCertificate {
        NewCertificate {
            key: key(key_number),
            serial: serial(counter),
            not_after: Timestamp::from_unix(9_000),
        }
    }

    fn record() -> NodeRecord {
        NodeRecord {
            cluster: "prod".parse().unwrap(),
            method: AttestationMethod::JoinToken,
            name: "vm-1".parse().unwrap(),
            scope: Scope::ALL,
            attributes: Attributes::new(),
            key: key(1),
            serial: serial(1),
            previous: None,
            not_after: Timestamp::from_unix(5_000),
            attested_at: Timestamp::from_unix(1_000),
            renewals: 0,
            state: NodeState::Active,
        }
    }

    #[test]
    fn a_renewal_with_the_newest_certificate_moves_the_record_on() {
        let next = record().renew(&serial(1), issued(2, 2)).unwrap();
        assert_eq!(
            (next.serial, next.previous, next.key, next.renewals),
            (serial(2), Some(serial(1)), key(2), 1)
        );
        assert_eq!(next.id(), "prod/join_token/vm-1");
        let domain = "example.org".parse().unwrap();
        assert_eq!(next.spiffe_id(&domain).unwrap().path(), "/rhizome/node/prod/join_token/vm-1");
    }

    #[test]
    fn after_a_lost_answer_the_same_key_may_retry_as_often_as_it_takes() {
        let mut stored = record().renew(&serial(1), issued(2, 2)).unwrap();
        for counter in 3..6 {
            stored = stored.renew(&serial(1), issued(counter, 2)).unwrap();
        }
        stored = stored.renew(&serial(5), issued(6, 3)).unwrap();
        assert_eq!(stored.previous, Some(serial(5)));
        assert!(stored.check_renewal(&serial(1), &key(2)).is_err());
    }

    #[test]
    fn a_clone_is_found_when_thief_and_owner_both_renew() {
        let after_thief = record().renew(&serial(1), issued(2, 66)).unwrap();
        let error = after_thief.renew(&serial(1), issued(3, 2)).unwrap_err();
        assert_eq!(error.code(), "node_clone_detected");
        let after_owner = record().renew(&serial(1), issued(2, 2)).unwrap();
        assert!(after_owner.renew(&serial(1), issued(3, 66)).is_err());
        assert!(after_owner.renew(&serial(0), issued(3, 2)).is_err());
        assert!(record().renew(&serial(0), issued(3, 1)).is_err());
    }

    #[test]
    fn a_record_put_back_from_a_backup_learns_from_the_newer_certificate() {
        let older = record();
        assert!(older.may_present(&serial(7)), "only this authority can have made it, after the backup");
        let next = older.renew(&serial(7), issued(9, 2)).unwrap();
        assert_eq!((next.serial, next.previous), (serial(9), Some(serial(7))));
        assert!(!next.may_present(&serial(1)) && !next.may_present(&serial(8)));
    }

    #[test]
    fn a_banned_node_neither_renews_nor_calls_until_it_is_unbanned() {
        let banned = record().banned("admin:alice", "stolen", Timestamp::from_unix(2_000));
        assert_eq!(banned.renew(&serial(1), issued(2, 2)).unwrap_err().code(), "node_banned");
        assert!(banned.assert_caller().is_err());
        assert_eq!(banned.banned("admin:bob", "again", Timestamp::from_unix(3_000)), banned);
        assert!(banned.unbanned().renew(&serial(1), issued(2, 2)).is_ok());
        let caller = record().assert_caller().unwrap();
        assert_eq!(caller.principal().to_string(), "node:prod/join_token/vm-1");
    }

    #[test]
    fn a_stored_record_reads_back_and_ignores_fields_of_a_newer_schema() {
        let json = serde_json::to_string(&record()).unwrap();
        assert_eq!(serde_json::from_str::<NodeRecord>(&json).unwrap(), record());
        let newer = json.replacen('{', r#"{"from_schema_n_plus_1":[1],"#, 1);
        assert_eq!(serde_json::from_str::<NodeRecord>(&newer).unwrap(), record());
    }
}
