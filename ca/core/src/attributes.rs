//! Attributes: what attestation found out about a caller or a workload.
//!
//! Laws: names come from a closed set (plus `label.<key>`); a set holds at most 64 values, each 1–256 bytes of
//! printable ASCII; values are compared byte for byte, never as patterns. Not here: who may state which attribute
//! (`policy`), how attestation learns them (`rhizome_server`).
//! Sources: ca/docs/ARCHITECTURE.md §3; CVE-2026-39350 (names read as regular expressions).

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::limits::{ATTRIBUTE_VALUE_BYTES, ATTRIBUTE_VALUES, LABEL_KEY_BYTES};

const LABEL_PREFIX: &str = "label.";

/// The name of an attribute. Shown and serialised as its text, for example `namespace` or `label.app`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum AttributeName {
    /// `platform`: where it runs, such as `kubernetes` or `vm`. Stated by attestation only.
    Platform,
    /// `cluster`: the cluster of the attested node. Stated by attestation only.
    Cluster,
    /// `node`: the name of the attested node. Stated by attestation only.
    Node,
    /// `method`: how the node was attested. Stated by attestation only.
    Method,
    /// `namespace`: a Kubernetes namespace, or its counterpart on a VM.
    Namespace,
    /// `service_account`: a Kubernetes service account, or its counterpart on a VM.
    ServiceAccount,
    /// `pod`: a pod's name.
    Pod,
    /// `unix.uid`: user id in decimal.
    UnixUid,
    /// `unix.gid`: group ids in decimal, the supplementary ones too.
    UnixGid,
    /// `unix.user`: user name.
    UnixUser,
    /// `unix.path`: absolute path of the executable.
    UnixPath,
    /// `unix.sha256`: SHA-256 of the executable, 64 lower-case hexadecimal digits.
    UnixSha256,
    /// `unix.cgroup`: path of the control group that the process is in, as the agent sees it.
    UnixCgroup,
    /// `systemd.unit`: the unit that the process belongs to.
    SystemdUnit,
    /// `label.<key>`: a label of the pod or machine.
    Label(LabelName),
}

/// A label's attribute name: `label.` and a key of 1–317 bytes of `[A-Za-z0-9._/-]`, the grammar of Kubernetes keys.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LabelName(String);

impl LabelName {
    /// The whole name with its prefix, such as `label.app`.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The key without the prefix, such as `app`.
    pub fn key(&self) -> &str {
        self.0.strip_prefix(LABEL_PREFIX).unwrap_or_default()
    }
}

impl fmt::Debug for LabelName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl AttributeName {
    /// Every name of the closed set, in order; labels come on top.
    pub const CLOSED: [Self; 14] = [
        Self::Platform,
        Self::Cluster,
        Self::Node,
        Self::Method,
        Self::Namespace,
        Self::ServiceAccount,
        Self::Pod,
        Self::UnixUid,
        Self::UnixGid,
        Self::UnixUser,
        Self::UnixPath,
        Self::UnixSha256,
        Self::UnixCgroup,
        Self::SystemdUnit,
    ];

    /// The name of the label `key`.
    ///
    /// # Errors
    /// [`AttributeError::UnknownName`] when `key` is not a label key.
    pub fn label(key: &str) -> Result<Self, AttributeError> {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-' | b'/');
        if key.is_empty() || key.len() > LABEL_KEY_BYTES || !key.bytes().all(allowed) {
            return Err(AttributeError::unknown(&format!("{LABEL_PREFIX}{key}")));
        }
        Ok(Self::Label(LabelName(format!("{LABEL_PREFIX}{key}"))))
    }

    /// The text of the name.
    pub fn as_str(&self) -> &str {
        match self {
            Self::Platform => "platform",
            Self::Cluster => "cluster",
            Self::Node => "node",
            Self::Method => "method",
            Self::Namespace => "namespace",
            Self::ServiceAccount => "service_account",
            Self::Pod => "pod",
            Self::UnixUid => "unix.uid",
            Self::UnixGid => "unix.gid",
            Self::UnixUser => "unix.user",
            Self::UnixPath => "unix.path",
            Self::UnixSha256 => "unix.sha256",
            Self::UnixCgroup => "unix.cgroup",
            Self::SystemdUnit => "systemd.unit",
            Self::Label(label) => label.as_str(),
        }
    }

    /// Whether only attestation of a node may state this attribute: a request that states it itself is refused.
    pub const fn is_attested_only(&self) -> bool {
        matches!(self, Self::Platform | Self::Cluster | Self::Node | Self::Method)
    }
}

impl FromStr for AttributeName {
    type Err = AttributeError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if let Some(key) = text.strip_prefix(LABEL_PREFIX) {
            return Self::label(key);
        }
        Self::CLOSED
            .into_iter()
            .find(|name| name.as_str() == text)
            .ok_or_else(|| AttributeError::unknown(text))
    }
}

impl TryFrom<String> for AttributeName {
    type Error = AttributeError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<AttributeName> for String {
    fn from(name: AttributeName) -> Self {
        name.as_str().to_owned()
    }
}

impl fmt::Display for AttributeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for AttributeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Why an attribute was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AttributeError {
    /// The name is neither in the closed set nor a label.
    #[error(
        "`{name}` is not an attribute; use platform, cluster, node, method, namespace, service_account, pod, \
         unix.uid, unix.gid, unix.user, unix.path, unix.sha256, unix.cgroup, systemd.unit or label.<key>"
    )]
    UnknownName {
        /// The text found, cut to 64 characters.
        name: String,
    },
    /// An empty value.
    #[error("attribute {name} has an empty value")]
    EmptyValue {
        /// Whose value.
        name: AttributeName,
    },
    /// A value above the limit.
    #[error("attribute {name} has a value of {bytes} bytes; the limit is 256")]
    LongValue {
        /// Whose value.
        name: AttributeName,
        /// Bytes found.
        bytes: usize,
    },
    /// A byte outside printable ASCII.
    #[error("attribute {name} holds byte 0x{byte:02x} at offset {at}; only printable ASCII is allowed")]
    BadByte {
        /// Whose value.
        name: AttributeName,
        /// The offending byte.
        byte: u8,
        /// Its offset in bytes.
        at: usize,
    },
    /// More values than one set may hold.
    #[error("more than 64 attribute values")]
    TooMany,
}

impl AttributeError {
    fn unknown(text: &str) -> Self {
        Self::UnknownName { name: text.chars().take(64).collect() }
    }
}

/// Checks one value against the grammar every attribute value shares.
///
/// # Errors
/// [`AttributeError`] naming the attribute and the fault.
pub fn validate_value(name: &AttributeName, value: &str) -> Result<(), AttributeError> {
    if value.is_empty() {
        return Err(AttributeError::EmptyValue { name: name.clone() });
    }
    if value.len() > ATTRIBUTE_VALUE_BYTES {
        return Err(AttributeError::LongValue { name: name.clone(), bytes: value.len() });
    }
    let odd = value.bytes().enumerate().find(|(_, byte)| !matches!(byte, 0x20..=0x7e));
    match odd {
        Some((at, byte)) => Err(AttributeError::BadByte { name: name.clone(), byte, at }),
        None => Ok(()),
    }
}

/// A set of attributes; one name may have several values (group ids, for instance). Serialised as
/// `{"namespace": ["prod"], …}`, sorted.
///
/// Kept as sorted pairs without repeats: a set is small and is merged for every certificate, so one block of memory
/// beats a tree of sets.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(
    try_from = "BTreeMap<AttributeName, BTreeSet<String>>",
    into = "BTreeMap<AttributeName, BTreeSet<String>>"
)]
pub struct Attributes(Vec<(AttributeName, String)>);

impl Attributes {
    /// No attributes.
    pub const fn new() -> Self {
        Self(Vec::new())
    }

    /// Collects pairs; the fallible counterpart of `FromIterator`.
    ///
    /// # Errors
    /// [`AttributeError`] of the first pair refused.
    pub fn from_pairs<V: Into<String>>(
        pairs: impl IntoIterator<Item = (AttributeName, V)>,
    ) -> Result<Self, AttributeError> {
        let mut attributes = Self::new();
        for (name, value) in pairs {
            attributes.insert(name, value)?;
        }
        Ok(attributes)
    }

    /// Adds a value; a repeated one changes nothing.
    ///
    /// # Errors
    /// [`AttributeError`] when the value is refused or the set is full; the set is unchanged then.
    pub fn insert(&mut self, name: AttributeName, value: impl Into<String>) -> Result<(), AttributeError> {
        let value = value.into();
        validate_value(&name, &value)?;
        let Err(at) = self.place(&name, &value) else { return Ok(()) };
        if self.len() >= ATTRIBUTE_VALUES {
            return Err(AttributeError::TooMany);
        }
        self.0.insert(at, (name, value));
        Ok(())
    }

    /// Whether `name` has exactly this value among its values, byte for byte.
    pub fn contains(&self, name: &AttributeName, value: &str) -> bool {
        self.place(name, value).is_ok()
    }

    /// Whether `name` has any value.
    pub fn has(&self, name: &AttributeName) -> bool {
        self.values(name).next().is_some()
    }

    /// The values of `name`, sorted.
    pub fn values(&self, name: &AttributeName) -> impl Iterator<Item = &str> {
        let first = self.0.partition_point(|(known, _)| known < name);
        let from_first = self.0.get(first..).unwrap_or_default().iter();
        from_first.take_while(move |(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    /// The value of `name` when there is exactly one.
    pub fn single(&self, name: &AttributeName) -> Option<&str> {
        let mut values = self.values(name);
        let first = values.next()?;
        values.next().is_none().then_some(first)
    }

    /// Every pair, sorted by name and value.
    pub fn iter(&self) -> impl Iterator<Item = (&AttributeName, &str)> {
        self.0.iter().map(|(name, value)| (name, value.as_str()))
    }

    /// How many values there are in all.
    pub const fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    pub const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// This set with every name that `stronger` or `own` has replaced by its values: what was attested overrides what
    /// was claimed. `own` are names of `rhizome_id`, valid by their type, each at most once, and override `stronger`.
    /// Each side is within the limits, so the result holds at most twice as many values and those of `own`.
    #[must_use]
    pub(crate) fn overridden_by(&self, stronger: &Self, own: &[(AttributeName, &str)]) -> Self {
        let is_own = |name: &AttributeName| own.iter().any(|(known, _)| known == name);
        let claimed = self.0.iter().filter(|(name, _)| !stronger.has(name) && !is_own(name));
        let attested = stronger.0.iter().filter(|(name, _)| !is_own(name));
        let mut merged =
            Vec::with_capacity(self.len().saturating_add(stronger.len()).saturating_add(own.len()));
        merged.extend(claimed.chain(attested).cloned());
        merged.extend(own.iter().map(|(name, value)| (name.clone(), (*value).to_owned())));
        merged.sort_unstable();
        Self(merged)
    }

    /// Where a pair stands, or would.
    fn place(&self, name: &AttributeName, value: &str) -> Result<usize, usize> {
        self.0.binary_search_by(|(known, held)| known.cmp(name).then_with(|| held.as_str().cmp(value)))
    }
}

impl TryFrom<BTreeMap<AttributeName, BTreeSet<String>>> for Attributes {
    type Error = AttributeError;

    fn try_from(map: BTreeMap<AttributeName, BTreeSet<String>>) -> Result<Self, Self::Error> {
        Self::from_pairs(
            map.into_iter()
                .flat_map(|(name, values)| values.into_iter().map(move |value| (name.clone(), value))),
        )
    }
}

impl From<Attributes> for BTreeMap<AttributeName, BTreeSet<String>> {
    fn from(attributes: Attributes) -> Self {
        let mut map = Self::new();
        for (name, value) in attributes.0 {
            map.entry(name).or_default().insert(value);
        }
        map
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_reads_back_from_its_text() {
        for name in AttributeName::CLOSED {
            assert_eq!(name.as_str().parse::<AttributeName>().unwrap(), name);
        }
        let label: AttributeName = "label.app.kubernetes.io/name".parse().unwrap();
        assert_eq!(label.to_string(), "label.app.kubernetes.io/name");
        assert_eq!(label, AttributeName::label("app.kubernetes.io/name").unwrap());
    }

    #[test]
    fn names_outside_the_closed_set_are_refused() {
        for bad in ["", "Namespace", "label.", "label.a b", "label.{x}", "unix", "unix.uid "] {
            assert!(bad.parse::<AttributeName>().is_err(), "{bad:?}");
        }
        assert!(AttributeName::label(&"a".repeat(LABEL_KEY_BYTES)).is_ok());
        assert!(AttributeName::label(&"a".repeat(LABEL_KEY_BYTES + 1)).is_err());
    }

    #[test]
    fn values_are_printable_ascii_of_1_to_256_bytes() {
        let mut set = Attributes::new();
        assert!(set.insert(AttributeName::Pod, "").is_err());
        assert!(set.insert(AttributeName::Pod, "a".repeat(256)).is_ok());
        assert!(set.insert(AttributeName::Pod, "a".repeat(257)).is_err());
        for byte in 0..=127u8 {
            let value = format!("a{}", char::from(byte));
            let printable = (0x20..=0x7e).contains(&byte);
            assert_eq!(validate_value(&AttributeName::Pod, &value).is_ok(), printable, "byte 0x{byte:02x}");
        }
        assert!(set.insert(AttributeName::Pod, "é").is_err());
        assert_eq!(set.len(), 1, "a refused value leaves the set as it was");
    }

    #[test]
    fn a_set_holds_64_values_and_no_more() {
        let mut set = Attributes::new();
        for gid in 0..64 {
            set.insert(AttributeName::UnixGid, gid.to_string()).unwrap();
        }
        assert!(set.insert(AttributeName::UnixGid, "0").is_ok(), "a repeat is no new value");
        assert_eq!(set.insert(AttributeName::UnixUid, "0"), Err(AttributeError::TooMany));
    }

    #[test]
    fn a_single_value_is_one_value_and_not_the_first_of_two() {
        let mut set = Attributes::new();
        assert_eq!(set.single(&AttributeName::Namespace), None);
        set.insert(AttributeName::Namespace, "a").unwrap();
        assert_eq!(set.single(&AttributeName::Namespace), Some("a"));
        set.insert(AttributeName::Namespace, "b").unwrap();
        assert_eq!(set.single(&AttributeName::Namespace), None);
    }

    #[test]
    fn deserialising_passes_through_the_same_door() {
        let good = r#"{"label.app":["web"],"namespace":["prod"]}"#;
        let set: Attributes = serde_json::from_str(good).unwrap();
        assert!(set.contains(&AttributeName::Namespace, "prod"));
        let again: Attributes = serde_json::from_str(&serde_json::to_string(&set).unwrap()).unwrap();
        assert_eq!(again, set);
        for bad in [r#"{"nonsense":["a"]}"#, r#"{"pod":[""]}"#, r#"{"pod":["a\u0000"]}"#] {
            assert!(serde_json::from_str::<Attributes>(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn what_was_attested_replaces_what_was_claimed() {
        let claimed =
            Attributes::from_pairs([(AttributeName::Cluster, "a"), (AttributeName::Pod, "p")]).unwrap();
        let attested = Attributes::from_pairs([(AttributeName::Cluster, "b")]).unwrap();
        let merged = claimed.overridden_by(&attested, &[(AttributeName::Node, "n")]);
        let expected = [(AttributeName::Cluster, "b"), (AttributeName::Node, "n"), (AttributeName::Pod, "p")];
        assert_eq!(merged, Attributes::from_pairs(expected).unwrap());
        let own = [(AttributeName::Cluster, "c")];
        assert_eq!(claimed.overridden_by(&attested, &own).single(&AttributeName::Cluster), Some("c"));
    }
}
