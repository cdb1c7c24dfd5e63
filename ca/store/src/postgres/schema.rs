//! The schema: what a Rhizome database in PostgreSQL is, and how it comes to be.
//!
//! Laws: one server at a time looks at the schema and changes it, under an advisory lock; migrations are append-only,
//! embedded, and applied together in one transaction, so a killed upgrade leaves the old schema. Migrations only add,
//! so servers of the release before go on while one runs; a release that the schema has left behind is told so by
//! `head.floor` and is refused, and one that it has not may start. A schema with tables of somebody else is not touched.
//! Not here: what is stored. Sources: ca/docs/CONTRIBUTING.md, a migration; postgresql.org/docs/15/explicit-locking.html.

use refinery::Runner;
use rhizome_core::ledger;
use rhizome_core::ports::StoreError;
use ring::digest::{SHA256, digest};
use tokio::time::timeout;
use tokio_postgres::Client;
use tokio_postgres::types::Type;

use super::batch::Head;
use super::error::{corrupt, translate, unavailable};
use super::link::Session;
use super::readers::Parameter;
use super::rows;
use crate::history::{Applied, Standing, newest, standing};
use crate::limits::{LOCK_TIMEOUT, LONG_STATEMENT};
use crate::rules::bug;

/// PostgreSQL 14 is the oldest that is still maintained.
const OLDEST: i32 = 140_000;

/// Brings `schema` up to date, or makes it, and checks that the ledger ends at its head.
///
/// # Errors
/// [`StoreError::Newer`] when this release is too old for it, [`StoreError::Corrupt`] when it is not ours or damaged,
/// [`StoreError::Unavailable`] when the database will not do.
pub(super) async fn prepare(session: &mut Session, schema: &str) -> Result<(), StoreError> {
    let client = &mut session.client;
    suits(client).await?;
    // `lock_timeout` counts for advisory locks, too.
    let long = format!("SET statement_timeout = {}; SET lock_timeout = 0", LONG_STATEMENT.as_millis());
    client.batch_execute(&long).await.map_err(translate)?;
    let key = lock_key(schema);
    let asked: [Parameter<'_>; 1] = [(&key, Type::INT8)];
    let lock = client.query_typed("SELECT pg_advisory_lock($1)", &asked);
    timeout(LONG_STATEMENT, lock).await.map_err(|_late| locked())?.map_err(translate)?;
    let short = format!("SET lock_timeout = {}", LOCK_TIMEOUT.as_millis());
    client.batch_execute(&short).await.map_err(translate)?;
    // Given back with the session, whatever happens.
    let outcome = bring_up(client, schema).await;
    let unlock = client.query_typed("SELECT pg_advisory_unlock($1)", &[(&key, Type::INT8)]).await;
    outcome?;
    unlock.map_err(translate)?;
    state(client).await.map(drop)
}

fn locked() -> StoreError {
    unavailable("another server has been changing the schema for minutes".to_owned())
}

/// A number of our own for each schema.
fn lock_key(schema: &str) -> i64 {
    let hash = digest(&SHA256, format!("rhizome schema {schema}").as_bytes());
    let bytes = hash.as_ref().first_chunk::<8>().copied().unwrap_or_default();
    i64::from_be_bytes(bytes)
}

async fn suits(client: &Client) -> Result<(), StoreError> {
    let sql = "SELECT current_setting('server_version_num')::int4, current_setting('server_encoding'), \
               current_setting('fsync')";
    let rows = client.query_typed(sql, &[]).await.map_err(translate)?;
    let row = rows.first().ok_or_else(|| bug("no settings".to_owned()))?;
    let version: i32 = rows::get(row, 0)?;
    if version < OLDEST {
        let found = version.checked_div(10_000).unwrap_or(0);
        return Err(unavailable(format!("PostgreSQL {found} is too old; 14 or newer is needed")));
    }
    let encoding: &str = rows::get(row, 1)?;
    if encoding != "UTF8" {
        let remedy = "make another with: createdb --encoding UTF8 --template template0";
        return Err(unavailable(format!("the database's encoding is {encoding}; {remedy}")));
    }
    let fsync: &str = rows::get(row, 2)?;
    if fsync != "on" {
        tracing::warn!(
            fsync,
            "PostgreSQL does not sync its log: a crash of its host can lose certificates' records"
        );
    }
    Ok(())
}

async fn bring_up(client: &mut Client, schema: &str) -> Result<(), StoreError> {
    let there = "SELECT 1 FROM pg_namespace WHERE nspname = $1";
    let there = client.query_typed(there, &[(&schema, Type::TEXT)]).await.map_err(translate)?;
    if there.is_empty() {
        // The name is plain (see `options::check_schema`), and PostgreSQL takes none as a parameter.
        client.batch_execute(&format!("CREATE SCHEMA \"{schema}\"")).await.map_err(translate)?;
    }
    let runner = runner();
    match history(client, schema, &runner).await? {
        Some(Standing::Beyond { found, known }) => return live_with(client, found, known).await,
        Some(Standing::At(version)) if version == newest(&runner) => return Ok(()),
        Some(Standing::At(_)) => {}
        None => refuse_foreign(client, schema).await?,
    }
    // Grouped: refinery would otherwise record a migration in another transaction than the one that applies it.
    let report = runner.set_grouped(true).run_async(client).await.map_err(|cause| failed(&cause))?;
    for migration in report.applied_migrations() {
        tracing::info!(%migration, schema, "applied a migration");
    }
    Ok(())
}

async fn history(client: &Client, schema: &str, runner: &Runner) -> Result<Option<Standing>, StoreError> {
    let there = "SELECT 1 FROM pg_tables WHERE schemaname = $1 AND tablename = 'refinery_schema_history'";
    let there = client.query_typed(there, &[(&schema, Type::TEXT)]).await.map_err(translate)?;
    if there.is_empty() {
        return Ok(None);
    }
    let sql = "SELECT version::int8, name::text, applied_on::text, checksum::text \
               FROM refinery_schema_history ORDER BY version";
    let found = client.query_typed(sql, &[]).await.map_err(translate)?;
    let mut applied: Vec<Applied> = Vec::with_capacity(found.len());
    for row in &found {
        applied.push((rows::get(row, 0)?, rows::get(row, 1)?, rows::get(row, 2)?, rows::get(row, 3)?));
    }
    standing(runner, applied)
}

/// A newer release has been here. Its migrations only added, unless it says that we are too old.
async fn live_with(client: &Client, found: i64, known: i32) -> Result<(), StoreError> {
    let rows = client.query_typed("SELECT floor FROM head WHERE one = 1", &[]).await.map_err(translate)?;
    let row = rows.first().ok_or_else(|| corrupt("the stored head is missing".to_owned()))?;
    check_floor(rows::get(row, 0)?)?;
    tracing::warn!(found, known, "the database was upgraded by a newer release; upgrade this server, too");
    Ok(())
}

/// Whether releases like this one may still write to a database whose head says `floor`. Asked under the head's lock, so
/// that a server that runs while a newer release migrates stops at once when it must.
///
/// # Errors
/// [`StoreError::Newer`].
pub(super) fn check_floor(floor: i32) -> Result<(), StoreError> {
    let known = newest(&runner());
    if floor > known {
        return Err(StoreError::Newer { found: i64::from(floor), known: i64::from(known) });
    }
    Ok(())
}

async fn refuse_foreign(client: &Client, schema: &str) -> Result<(), StoreError> {
    let sql = "SELECT c.relname::text FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
               WHERE n.nspname = $1 LIMIT 1";
    let rows = client.query_typed(sql, &[(&schema, Type::TEXT)]).await.map_err(translate)?;
    let Some(row) = rows.first() else { return Ok(()) };
    let found: &str = rows::get(row, 0)?;
    Err(corrupt(format!(
        "schema {schema} is somebody else's: it has `{found}`, and none of our tables; name another"
    )))
}

/// Reads the head, and checks that the ledger ends where it says.
pub(super) async fn state(client: &Client) -> Result<Head, StoreError> {
    // One statement, so one consistent state while commits go on.
    let sql = "SELECT h.position, h.hash, h.version, h.next_serial, h.highest, l.position, l.hash \
               FROM head h LEFT JOIN ledger l ON l.position = (SELECT max(position) FROM ledger) WHERE h.one = 1";
    let found = client.query_typed(sql, &[]).await.map_err(translate)?;
    let head = rows::head(&found)?;
    let row = found.first().ok_or_else(|| bug("no head".to_owned()))?;
    let position: Option<i64> = rows::get(row, 5)?;
    let hash: Option<&[u8]> = rows::get(row, 6)?;
    let position = position.map(rows::unsigned).transpose()?.unwrap_or(0);
    let hash = hash.unwrap_or(ledger::Head::EMPTY.hash.as_bytes());
    if position == head.end.position.0 && hash == head.end.hash.as_bytes() {
        return Ok(head);
    }
    Err(corrupt(format!(
        "the ledger ends at record {position}, but its head should be record {} ({}); the tail was cut off or replaced",
        head.end.position.0, head.end.hash
    )))
}

fn failed(cause: &refinery::Error) -> StoreError {
    use std::error::Error as _;

    let mut source = cause.source();
    while let Some(inner) = source {
        if let Some(code) =
            inner.downcast_ref::<tokio_postgres::Error>().and_then(tokio_postgres::Error::code)
        {
            return unavailable(format!("a migration failed: {cause} ({})", code.code()));
        }
        source = inner.source();
    }
    bug(format!("a migration failed: {cause}"))
}

fn runner() -> Runner {
    embedded::migrations::runner()
}

mod embedded {
    refinery::embed_migrations!("migrations-postgres");
}
