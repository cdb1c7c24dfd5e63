//! The section `store`: the embedded database, or one in PostgreSQL.
//!
//! Laws: without the section the state is in the data directory; whatever speaks of PostgreSQL needs its address; over
//! TCP its certificate is verified unless danger is asked for by name. Addresses hold no password and are never quoted
//! when they are refused, for they may. Not here: dialling (`rhizome_store`).

use std::path::PathBuf;

use rhizome_store::{DEFAULT_SCHEMA, check_address, check_schema, is_over_tcp};

use super::faults::Position;
use super::section::{Refusal, Scalar, Section};
use super::{DatabasePassword, Postgres, StoreChoice, values};

const REMEDY: &str = "write postgresql://USER@HOST:5432/DATABASE";

/// Reads the section; the position is that of a danger that deserves a second look.
pub(super) fn read(mut section: Section<'_>) -> (StoreChoice, Option<Position>) {
    let address = section.value("postgres", address);
    let schema = section.value("schema", schema);
    let ca_file = section.value("ca_file", values::path);
    let file = section.value("password_file", values::path);
    let environment = section.value("password_env", values::variable);
    let plaintext = section.value("danger_plaintext", values::boolean);
    let dangerous = plaintext.position();
    let others = [schema.position(), ca_file.position(), file.position(), environment.position(), dangerous];
    let stray = others.into_iter().flatten().next();
    if let (Some(_), Some(at)) = (file.position(), environment.position()) {
        let refusal = Refusal::new("two places for one password", "keep one of password_file, password_env");
        section.fault("password_env", Some(at), refusal);
    }
    if let (true, Some(at)) = (address.is_absent(), stray) {
        section.fault(
            "postgres",
            Some(at),
            Refusal::new("required beside the other fields, but not given", REMEDY),
        );
    }
    let at = address.position();
    let sound = !ca_file.is_faulty() && !plaintext.is_faulty();
    let (ca_file, danger_plaintext): (Option<PathBuf>, _) = (ca_file.given(), plaintext.or(false));
    let address = address.given();
    if let Some(address) = &address {
        check_tls(&section, (address, at), (ca_file.is_some(), danger_plaintext), sound);
    }
    let password = match (file.given(), environment.given()) {
        (Some(path), _) => DatabasePassword::File(path),
        (None, Some(name)) => DatabasePassword::Environment(name),
        (None, None) => DatabasePassword::None,
    };
    let schema = schema.given().unwrap_or_else(|| DEFAULT_SCHEMA.to_owned());
    section.finish();
    let Some(address) = address else { return (StoreChoice::Embedded, None) };
    let postgres = Postgres { address, schema, password, ca_file, danger_plaintext };
    (StoreChoice::Postgres(postgres), dangerous.filter(|_| danger_plaintext))
}

fn check_tls(
    section: &Section<'_>,
    (address, at): (&str, Option<Position>),
    (has_ca, plaintext): (bool, bool),
    sound: bool,
) {
    if has_ca && plaintext {
        let refusal = Refusal::new("a CA file and no TLS exclude each other", "keep one of the two");
        section.fault("danger_plaintext", at, refusal);
    } else if sound && !has_ca && !plaintext && is_over_tcp(address) {
        let problem = "required over TCP, but not given";
        let remedy = "name the CA certificates (PEM) that the database's certificate is verified by";
        section.fault("ca_file", at, Refusal::new(problem, remedy));
    }
}

fn address(value: Scalar<'_>) -> Result<String, Refusal> {
    match check_address(value.text) {
        Ok(()) => Ok(value.text.to_owned()),
        Err(cause) => Err(Refusal::new(cause.to_string(), REMEDY)),
    }
}

fn schema(value: Scalar<'_>) -> Result<String, Refusal> {
    match check_schema(value.text) {
        Ok(()) => Ok(value.text.to_owned()),
        Err(cause) => Err(Refusal::new(cause.to_string(), format!("leave it out for `{DEFAULT_SCHEMA}`"))),
    }
}
