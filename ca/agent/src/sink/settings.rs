//! What a file sink is told: whose identity, where it is written, how the software learns of it.
//!
//! Laws: the attributes are those that attestation of a local process could find, and no others; values exist only
//! valid; a private key is never written so that everybody may read it. Not here: doing it (`files`, `reload`).

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rhizome_core::attributes::{AttributeName, Attributes};
use rhizome_id::{SpiffeId, Ttl};
use serde::Deserialize;

/// Bytes of a sink's name: it is a metric's label.
const NAME_BYTES: usize = 64;
/// Words of a command.
const COMMAND_WORDS: usize = 64;
/// The longest that a reload command may be given.
const LONGEST_COMMAND_SECONDS: i64 = 300;
/// What a reload command is given unless told otherwise.
const COMMAND_SECONDS: i64 = 30;

/// One sink.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SinkSettings {
    /// What it is called in logs and metrics.
    pub name: SinkName,
    /// Whose identity: what attestation would find about the process that it is for.
    pub attributes: BTreeMap<AttributeName, Values>,
    /// Which identity, where the rules give several; the first one otherwise.
    #[serde(default)]
    pub spiffe_id: Option<SpiffeId>,
    /// One file with key, chain and roots, in this order.
    #[serde(default)]
    pub file: Option<AbsolutePath>,
    /// A directory in which `current` leads to `svid.pem`, `key.pem`, `bundle.pem` and, if there is one, `crl.pem`.
    #[serde(default)]
    pub directory: Option<AbsolutePath>,
    /// Who owns the files; the agent's own user otherwise.
    #[serde(default)]
    pub owner: Option<Owner>,
    /// The mode of files with the private key.
    #[serde(default)]
    pub mode: KeyMode,
    /// How the software is told.
    #[serde(default)]
    pub reload: Reload,
}

/// How the software is told that its files are new.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Reload {
    /// By a signal.
    #[serde(default)]
    pub signal: Option<ReloadSignal>,
    /// By a command.
    #[serde(default)]
    pub command: Option<ReloadCommand>,
}

/// A signal to a running process.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReloadSignal {
    /// The file with its process id.
    pub pid_file: AbsolutePath,
    /// The executable that it must be running: a stale process id then never hits somebody else.
    pub program: AbsolutePath,
    /// Which signal.
    #[serde(default)]
    pub signal: SignalName,
}

/// A command, run without a shell.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReloadCommand {
    /// Program, by absolute path, and arguments.
    pub argv: Vec<String>,
    /// How long it may take.
    #[serde(default)]
    pub timeout: Option<Ttl>,
}

impl ReloadCommand {
    /// How long it may take.
    pub fn timeout(&self) -> Duration {
        let seconds = self.timeout.map_or(COMMAND_SECONDS, Ttl::seconds).clamp(1, LONGEST_COMMAND_SECONDS);
        Duration::from_secs(u64::try_from(seconds).unwrap_or(1))
    }
}

/// Which signal.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
pub enum SignalName {
    /// SIGHUP.
    #[default]
    #[serde(rename = "HUP")]
    Hup,
    /// SIGUSR1.
    #[serde(rename = "USR1")]
    Usr1,
    /// SIGUSR2.
    #[serde(rename = "USR2")]
    Usr2,
}

/// One value or several.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
pub enum Values {
    /// One.
    One(Scalar),
    /// Several.
    Several(Vec<Scalar>),
}

/// A value: user ids are written as numbers.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
pub enum Scalar {
    /// A number.
    Number(u64),
    /// Text.
    Text(String),
}

impl fmt::Display for Scalar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Number(number) => write!(f, "{number}"),
            Self::Text(text) => f.write_str(text),
        }
    }
}

/// The name of a sink: 1 to 64 of `a-z`, `0-9`, `-` and `_`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize)]
#[serde(try_from = "String")]
pub struct SinkName(String);

impl SinkName {
    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for SinkName {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        let allowed =
            |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'-' | b'_');
        if text.is_empty() || text.len() > NAME_BYTES || !text.bytes().all(allowed) {
            return Err("a sink's name is 1 to 64 of a-z, 0-9, - and _");
        }
        Ok(Self(text))
    }
}

/// An absolute path without `..`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct AbsolutePath(PathBuf);

impl AbsolutePath {
    /// The path.
    pub fn as_path(&self) -> &Path {
        &self.0
    }
}

impl TryFrom<String> for AbsolutePath {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        let path = PathBuf::from(text);
        if !path.is_absolute() || path.components().any(|part| part == std::path::Component::ParentDir) {
            return Err("a path is absolute and without `..`");
        }
        Ok(Self(path))
    }
}

/// `USER`, `USER:GROUP`, or their numbers.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Owner {
    /// Name or number.
    pub user: String,
    /// Name or number; the user's own group otherwise.
    pub group: Option<String>,
}

impl TryFrom<String> for Owner {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        let (user, group) =
            text.split_once(':').map_or((text.as_str(), None), |(user, group)| (user, Some(group)));
        let bad = |part: &str| part.is_empty() || part.contains(':');
        if bad(user) || group.is_some_and(bad) {
            return Err("an owner is USER or USER:GROUP");
        }
        Ok(Self { user: user.to_owned(), group: group.map(str::to_owned) })
    }
}

/// The mode of a file with a private key: octal, nothing for everybody, nothing executable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct KeyMode(u32);

impl KeyMode {
    /// The bits.
    pub const fn bits(self) -> u32 {
        self.0
    }
}

impl Default for KeyMode {
    fn default() -> Self {
        Self(0o600)
    }
}

impl TryFrom<String> for KeyMode {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        const RULE: &str = "a mode is three or four octal digits in quotes, such as \"0640\": no bit for everybody, \
                            none to execute";
        let octal = (3..=4).contains(&text.len()) && text.bytes().all(|byte| (b'0'..=b'7').contains(&byte));
        let bits = u32::from_str_radix(&text, 8).map_err(|_not_octal| RULE)?;
        // The owner must be able to read it, and nobody needs more than to read and write.
        if !octal || bits & !0o660 != 0 || bits & 0o400 == 0 {
            return Err(RULE);
        }
        Ok(Self(bits))
    }
}

impl SinkSettings {
    /// The attributes, as attestation would have them.
    ///
    /// # Errors
    /// What is wrong with the settings as a whole, in a sentence.
    pub fn check(&self) -> Result<Attributes, String> {
        let bad = |what: &str| Err(format!("sink `{}`: {what}", self.name.as_str()));
        if self.file.is_none() && self.directory.is_none() {
            return bad("give `file`, `directory`, or both");
        }
        if let Some(ReloadCommand { argv, .. }) = &self.reload.command {
            let absolute = argv.first().is_some_and(|program| program.starts_with('/'));
            if !absolute || argv.len() > COMMAND_WORDS || argv.iter().any(|word| word.contains('\0')) {
                return bad(
                    "a command begins with an absolute path and has at most 64 words; there is no shell",
                );
            }
        }
        if self.reload.signal.is_some() && self.reload.command.is_some() {
            return bad("reload by a signal or by a command, not by both");
        }
        if self.attributes.is_empty() {
            return bad("without attributes, no rule can know whose identity this is");
        }
        let mut found = Attributes::new();
        for (name, values) in &self.attributes {
            if !is_local(name) {
                return bad(&format!(
                    "`{name}` is nothing that the agent finds out about a local process; use unix.* and systemd.unit"
                ));
            }
            let values = match values {
                Values::One(value) => std::slice::from_ref(value),
                Values::Several(values) => values.as_slice(),
            };
            for value in values {
                if let Err(cause) = found.insert(name.clone(), value.to_string()) {
                    return bad(&cause.to_string());
                }
            }
        }
        Ok(found)
    }
}

/// Whether attestation of a local process can find this attribute.
const fn is_local(name: &AttributeName) -> bool {
    match name {
        AttributeName::UnixUid
        | AttributeName::UnixGid
        | AttributeName::UnixUser
        | AttributeName::UnixPath
        | AttributeName::UnixSha256
        | AttributeName::UnixCgroup
        | AttributeName::SystemdUnit => true,
        AttributeName::Platform
        | AttributeName::Cluster
        | AttributeName::Node
        | AttributeName::Method
        | AttributeName::Namespace
        | AttributeName::ServiceAccount
        | AttributeName::Pod
        | AttributeName::Label(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mode_never_opens_a_key_to_everybody() {
        for (text, bits) in
            [("0600", Some(0o600)), ("640", Some(0o640)), ("0440", Some(0o440)), ("0644", None)]
        {
            assert_eq!(KeyMode::try_from(text.to_owned()).ok().map(KeyMode::bits), bits, "{text}");
        }
        for bad in ["0700", "600x", "6", "06000", "0200", "+600", "4600"] {
            assert!(KeyMode::try_from(bad.to_owned()).is_err(), "{bad}");
        }
    }

    #[test]
    fn owners_and_names_and_paths_are_checked() {
        let owner = |text: &str| Owner::try_from(text.to_owned());
        assert_eq!(owner("www:tls").unwrap(), Owner { user: "www".into(), group: Some("tls".into()) });
        assert_eq!(owner("33").unwrap().group, None);
        assert!(
            owner("").is_err() && owner(":x").is_err() && owner("a:").is_err() && owner("a:b:c").is_err()
        );
        assert!(SinkName::try_from("nginx-1".to_owned()).is_ok());
        assert!(
            SinkName::try_from("Nginx".to_owned()).is_err() && SinkName::try_from(String::new()).is_err()
        );
        assert!(AbsolutePath::try_from("/a/b".to_owned()).is_ok());
        assert!(
            AbsolutePath::try_from("a".to_owned()).is_err()
                && AbsolutePath::try_from("/a/../b".to_owned()).is_err()
        );
    }
}
