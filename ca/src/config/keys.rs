//! The section `keys`: where private keys are, and what opens them.
//!
//! Laws: what a ring needs is given, and what no ring needs is a fault: a sealing key that seals nothing, or a token that
//! holds nothing, is a misunderstanding. Not here: opening the rings (`keys` of the binary).

use std::path::PathBuf;

use super::faults::Position;
use super::section::{Field, Refusal, Section};
use super::{Sealing, values};

/// Most sessions with a token: modules in the network allow some hundreds for all their users.
const MAX_SESSIONS: usize = 64;

/// Where private keys are, and what opens them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Keys {
    /// How they are sealed in files and in the database; `None` when none are.
    pub sealing: Option<Sealing>,
    /// Another sealing key that keys may still lie under; they are sealed anew under the first.
    pub other_sealing: Option<Secret>,
    /// Where the root's key is.
    pub root: Place,
    /// Where the keys of issuers and for JWT-SVIDs are.
    pub issuers: Place,
    /// The token, where one of them is in one.
    pub token: Option<Token>,
}

/// Where keys are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// In files below the data directory.
    Files,
    /// In the database, sealed, so that every replica has them.
    Database,
    /// In a PKCS#11 token.
    Token,
    /// Not here at all: only a root's.
    Offline,
}

/// Where a secret is read from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Secret {
    /// From this file.
    File(PathBuf),
    /// From this environment variable.
    Environment(String),
}

/// A PKCS#11 token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Token {
    /// The module: a shared library.
    pub module: PathBuf,
    /// The token's label.
    pub label: String,
    /// Its user's PIN.
    pub pin: Secret,
    /// Sessions at once.
    pub sessions: Option<usize>,
}

const PLACES: &[(&str, Place)] =
    &[("files", Place::Files), ("database", Place::Database), ("pkcs11", Place::Token)];
const ROOT_PLACES: &[(&str, Place)] = &[
    ("files", Place::Files),
    ("database", Place::Database),
    ("pkcs11", Place::Token),
    ("offline", Place::Offline),
];

/// The section, and where it says that keys are not sealed.
pub(super) fn read(mut section: Section<'_>) -> (Keys, Option<Position>) {
    let root_field = section.value("root", values::one_of(ROOT_PLACES));
    let issuers_field = section.value("issuers", values::one_of(PLACES));
    let sound = !root_field.is_faulty() && !issuers_field.is_faulty();
    let at_database = [&root_field, &issuers_field].into_iter().find_map(in_database);
    let (root, issuers) = (root_field.or(Place::Files), issuers_field.or(Place::Files));
    let uses = |place| root == place || issuers == place;
    let sealed = uses(Place::Files) || uses(Place::Database);
    let (sealing, unsealed_at) = sealing(&mut section, sealed && sound);
    if sealing == Some(Sealing::DangerUnsealed) && uses(Place::Database) {
        let problem = "keys in the database are always sealed, and danger_unsealed gives no sealing key";
        let remedy = "give sealing_key_file or sealing_key_env instead";
        section.fault("", at_database, Refusal::new(problem, remedy));
    }
    let other_sealing = secret(&mut section, ("other_sealing_key_file", "other_sealing_key_env"), None);
    let token = token(section.section("pkcs11"), uses(Place::Token), sound);
    section.finish();
    (Keys { sealing, other_sealing, root, issuers, token }, unsealed_at)
}

fn in_database(field: &Field<Place>) -> Option<Position> {
    match field {
        Field::Given(Place::Database, at) => Some(*at),
        Field::Given(..) | Field::Absent | Field::Faulty => None,
    }
}

fn sealing(section: &mut Section<'_>, needed: bool) -> (Option<Sealing>, Option<Position>) {
    let file = section.value("sealing_key_file", values::path);
    let environment = section.value("sealing_key_env", values::variable);
    let unsealed = section.value("danger_unsealed", values::boolean);
    let faulty = file.is_faulty() || environment.is_faulty() || unsealed.is_faulty();
    let mut choices = Vec::new();
    let (at_file, at_environment, at_unsealed) =
        (file.position(), environment.position(), unsealed.position());
    choices.extend(file.given().map(|path| (Sealing::KeyFile(path), at_file)));
    choices.extend(environment.given().map(|name| (Sealing::KeyEnvironment(name), at_environment)));
    if unsealed.given() == Some(true) {
        choices.push((Sealing::DangerUnsealed, at_unsealed));
    }
    if choices.len() > 1 {
        let at = choices.get(1).and_then(|(_, at)| *at);
        let problem = "more than one way to seal private keys is given";
        let remedy = "keep one of sealing_key_file, sealing_key_env, danger_unsealed";
        section.fault("", at, Refusal::new(problem, remedy));
    }
    if choices.is_empty() && !faulty && needed {
        let remedy = "add `sealing_key_file: /var/lib/rhizome-sealing/sealing.key` (made on first start) or `sealing_key_env: NAME`; \
                      `danger_unsealed: true` stores them in the clear";
        section.fault("", None, Refusal::new("nothing says how private keys are sealed at rest", remedy));
    }
    match choices.into_iter().next() {
        Some((sealing, at)) => (Some(sealing), at),
        None => (None, None),
    }
}

/// A secret in a file or in a variable; `needed` says what it is for, when it must be there.
fn secret(
    section: &mut Section<'_>,
    (file_name, variable_name): (&'static str, &'static str),
    needed: Option<&str>,
) -> Option<Secret> {
    let file = section.value(file_name, values::path);
    let variable = section.value(variable_name, values::variable);
    let faulty = file.is_faulty() || variable.is_faulty();
    let at = variable.position();
    match (file.given(), variable.given()) {
        (Some(_), Some(_)) => {
            let problem = format!("{file_name} and {variable_name} are both given");
            section.fault("", at, Refusal::new(problem, "keep one of the two"));
            None
        }
        (Some(path), None) => Some(Secret::File(path)),
        (None, Some(name)) => Some(Secret::Environment(name)),
        (None, None) => {
            if let Some(what) = needed.filter(|_| !faulty) {
                let problem = format!("nothing says where {what} is");
                section.fault("", None, Refusal::new(problem, format!("add {file_name} or {variable_name}")));
            }
            None
        }
    }
}

fn token(mut section: Section<'_>, used: bool, sound: bool) -> Option<Token> {
    let (module, label) = if used {
        let remedy = "name the shared library of the token's maker, such as /usr/lib/softhsm/libsofthsm2.so";
        (
            section.required("module", remedy, values::path),
            section.required("token", "write the token's label", values::token_label),
        )
    } else {
        (section.value("module", values::path), section.value("token", values::token_label))
    };
    let sessions = section.value("sessions", values::number(1..=MAX_SESSIONS)).given();
    let pin = secret(&mut section, ("pin_file", "pin_env"), used.then_some("the token's PIN"));
    let at = module.position().or_else(|| label.position());
    if at.is_some() && !used && sound {
        let remedy = "write `root: pkcs11` or `issuers: pkcs11` beside it, or remove this section";
        section.fault("", at, Refusal::new("no key is in this token", remedy));
    }
    section.finish();
    Some(Token { module: module.given()?, label: label.given()?, pin: pin?, sessions })
}
