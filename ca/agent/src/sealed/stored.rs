//! What of the agent goes to disk: records of JSON, one a line, each read and written by itself.
//!
//! Laws: a record that cannot be read costs that record, so that a release can be taken back; unknown fields and unknown
//! kinds of records are ignored. What holds a private key is wiped: decoding borrows the text, and its buffer is as large
//! as a line may be. Not here: encryption (`pieces`), what to keep (`book`).

use std::io::{self, Write};
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rhizome_core::rules::Rule;
use rhizome_id::{SpiffeId, Timestamp, TrustDomain, Ttl};
use rhizome_x509::{Bundle, CaCertificate, JwtKey, inspect};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use zeroize::Zeroizing;

use super::{NodeRenewal, Restored};
use crate::book::{Kept, Snapshot};
use crate::crls::Crls;
use crate::holdings::Svid;
use crate::renewal::Entitlement;

/// One line. The first one is [`Record::Node`].
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Record {
    /// Whose state this is, and how far it is.
    Node(StoredNode),
    /// The bundle in force.
    Bundle(StoredBundle),
    /// The bundle of a foreign trust domain.
    Foreign(StoredBundle),
    /// The revocation lists.
    Crls(Crls),
    /// Names of the orders to renew that were carried out.
    Orders(Vec<String>),
    /// A rule.
    Rule(Arc<Rule>),
    /// An identity.
    Svid(StoredSvid),
}

#[derive(Serialize, Deserialize)]
pub(super) struct StoredNode {
    node: SpiffeId,
    renewal: NodeRenewal,
    cursor: u64,
    /// How many follow, where they are known at all.
    rules: Option<usize>,
    /// How many foreign bundles follow. Older releases know of none: then the cursor is not where those are.
    #[serde(default)]
    foreign: Option<usize>,
}

#[derive(Serialize, Deserialize)]
pub(super) struct StoredBundle {
    trust_domain: TrustDomain,
    sequence: u64,
    refresh_hint: Ttl,
    anchors: Vec<CaCertificate>,
    /// Older releases know of none.
    #[serde(default)]
    jwt_keys: Vec<JwtKey>,
}

#[derive(Serialize, Deserialize)]
pub(super) struct StoredSvid {
    entitlement: Entitlement,
    chain: Vec<String>,
    key: Secret,
    renew_at: Timestamp,
    hint: String,
}

/// Base64 of what must be wiped.
struct Secret(Zeroizing<String>);

impl Serialize for Secret {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for Secret {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer).map(|text| Self(Zeroizing::new(text)))
    }
}

impl StoredBundle {
    fn of(bundle: &Bundle) -> Self {
        Self {
            trust_domain: bundle.trust_domain().clone(),
            sequence: bundle.sequence(),
            refresh_hint: bundle.refresh_hint(),
            anchors: bundle.anchors().to_vec(),
            jwt_keys: bundle.jwt_keys().to_vec(),
        }
    }

    fn foreign(self) -> Option<Arc<Bundle>> {
        let Self { trust_domain, sequence, refresh_hint, anchors, jwt_keys } = self;
        let bundle = Bundle::foreign(trust_domain, sequence, refresh_hint, anchors, jwt_keys);
        let said =
            bundle.inspect_err(|cause| tracing::error!(%cause, "a sealed foreign bundle is of no use"));
        said.ok().map(Arc::new)
    }

    fn bundle(self) -> Option<Arc<Bundle>> {
        let bundle = Bundle::new(self.trust_domain, self.sequence, self.refresh_hint, self.anchors);
        let bundle = bundle.and_then(|bundle| bundle.with_jwt_keys(self.jwt_keys));
        let said = bundle.inspect_err(|cause| tracing::error!(%cause, "the sealed bundle is of no use"));
        said.ok().map(Arc::new)
    }
}

impl StoredSvid {
    fn of(Kept { entitlement, svid, renew_at }: &Kept) -> Self {
        Self {
            entitlement: entitlement.clone(),
            chain: svid.chain_der.iter().map(|der| STANDARD.encode(der)).collect(),
            key: Secret(Zeroizing::new(STANDARD.encode(&*svid.key_pkcs8_der))),
            renew_at: *renew_at,
            hint: svid.hint.clone(),
        }
    }

    fn kept(self) -> Result<Kept, String> {
        let decode = |text: &str| STANDARD.decode(text).map_err(|error| error.to_string());
        let chain_der: Vec<Vec<u8>> = self.chain.iter().map(|text| decode(text)).collect::<Result<_, _>>()?;
        let leaf = chain_der.first().ok_or("a chain is empty")?;
        let facts = inspect(leaf).map_err(|error| error.to_string())?;
        let spiffe_id = facts.spiffe_id.ok_or("a certificate without a SPIFFE ID")?;
        let svid = Svid {
            spiffe_id,
            key_pkcs8_der: Zeroizing::new(decode(&self.key.0)?),
            not_before: facts.not_before,
            not_after: facts.not_after,
            renew_at: self.renew_at,
            serial: hex::encode(&facts.serial),
            hint: self.hint,
            chain_der,
        };
        Ok(Kept { entitlement: self.entitlement, svid: Arc::new(svid), renew_at: self.renew_at })
    }
}

/// Writes a state as records, one at a time.
///
/// # Errors
/// As writing into `out` does.
pub(super) fn write(
    out: &mut impl Write,
    node: &SpiffeId,
    snapshot: &Snapshot,
    renewal: &NodeRenewal,
) -> io::Result<()> {
    let Snapshot { cursor, rules, bundle, foreign, crls, orders, svids } = snapshot;
    let (node, renewal) = (node.clone(), renewal.clone());
    let known = rules.as_ref().map(Vec::len);
    let stored = StoredNode { node, renewal, cursor: *cursor, rules: known, foreign: Some(foreign.len()) };
    put(out, &Record::Node(stored))?;
    if let Some(bundle) = bundle {
        put(out, &Record::Bundle(StoredBundle::of(bundle)))?;
    }
    for bundle in foreign {
        put(out, &Record::Foreign(StoredBundle::of(bundle)))?;
    }
    put(out, &Record::Crls(crls.clone()))?;
    put(out, &Record::Orders(orders.clone()))?;
    for rule in rules.iter().flatten() {
        put(out, &Record::Rule(Arc::clone(rule)))?;
    }
    for kept in svids {
        put(out, &Record::Svid(StoredSvid::of(kept)))?;
    }
    Ok(())
}

fn put(out: &mut impl Write, record: &Record) -> io::Result<()> {
    serde_json::to_writer(&mut *out, record)?;
    out.write_all(b"\n")
}

/// Gathers a state from its records.
#[derive(Default)]
pub(super) struct Gathering {
    node: Option<StoredNode>,
    snapshot: Snapshot,
    rules: Vec<Arc<Rule>>,
    /// Records that could not be read.
    lost: usize,
    /// The beginning of a line of which the rest has not come yet.
    begun: Zeroizing<Vec<u8>>,
}

impl Gathering {
    /// Takes what comes next of the text.
    ///
    /// # Errors
    /// What is wrong, when it is not the state of an agent, or of another node than `wanted`.
    pub(super) fn take(&mut self, text: &[u8], wanted: Option<&SpiffeId>) -> Result<(), String> {
        let mut rest = text;
        while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
            let (line, after) = rest.split_at(end);
            if self.begun.is_empty() {
                self.line(line, wanted)?;
            } else {
                self.begin(line);
                let line = std::mem::take(&mut self.begun);
                self.line(&line, wanted)?;
            }
            rest = after.get(1..).unwrap_or_default();
        }
        self.begin(rest);
        Ok(())
    }

    /// Keeps a part of a line. A buffer that grew by itself would leave unwiped copies behind.
    fn begin(&mut self, part: &[u8]) {
        let needed = self.begun.len().saturating_add(part.len());
        if needed > self.begun.capacity() {
            let mut larger = Zeroizing::new(Vec::with_capacity(needed));
            larger.extend_from_slice(&self.begun);
            self.begun = larger;
        }
        self.begun.extend_from_slice(part);
    }

    fn line(&mut self, line: &[u8], wanted: Option<&SpiffeId>) -> Result<(), String> {
        let record = serde_json::from_slice::<Record>(line);
        if self.node.is_none() {
            let Ok(Record::Node(stored)) = record else {
                return Err("it does not say which node it is of".to_owned());
            };
            if let Some(wanted) = wanted.filter(|wanted| stored.node != **wanted) {
                return Err(format!("it belongs to {}, this is {wanted}", stored.node));
            }
            self.node = Some(stored);
            return Ok(());
        }
        match record {
            Ok(Record::Bundle(stored)) => self.snapshot.bundle = stored.bundle(),
            Ok(Record::Foreign(stored)) => self.snapshot.foreign.extend(stored.foreign()),
            Ok(Record::Crls(crls)) => self.snapshot.crls = crls,
            Ok(Record::Orders(orders)) => self.snapshot.orders = orders,
            Ok(Record::Rule(rule)) => self.rules.push(rule),
            Ok(Record::Svid(stored)) => {
                let id = stored.entitlement.spiffe_id.clone();
                let kept = stored.kept();
                let kept =
                    kept.inspect_err(|cause| tracing::error!(%id, cause, "a sealed identity is of no use"));
                self.snapshot.svids.extend(kept);
            }
            Ok(Record::Node(_)) | Err(_) => self.lost = self.lost.saturating_add(1),
        }
        Ok(())
    }

    /// The state, once all of it has been taken. What of it could not be used is said in the log.
    ///
    /// # Errors
    /// What is wrong, when there was nothing.
    pub(super) fn finish(self) -> Result<Restored, String> {
        let Self { node, mut snapshot, rules, lost, begun: _ } = self;
        let StoredNode { node, renewal, cursor, rules: known, foreign } = node.ok_or("it is empty")?;
        if lost > 0 {
            tracing::error!(lost, "entries of the sealed state cannot be read; they are left out");
        }
        // Without some rules or foreign bundles this node is not where the cursor says: it asks for all of them.
        let whole = known.unwrap_or_default() <= rules.len() && foreign == Some(snapshot.foreign.len());
        snapshot.cursor = if whole { cursor } else { 0 };
        snapshot.rules = known.map(|_| rules);
        Ok(Restored { node, snapshot, renewal })
    }
}
