//! `rhizome ledger`: what was signed and changed, in a hash chain.
//!
//! Laws: a head is written `SEQUENCE:SHA256`, the same out and in. Not here: how entries are chained
//! (`rhizome_core::ledger`).

use std::fmt;
use std::str::FromStr;

use bytes::Bytes;
use clap::{Args, Subcommand};
use indicatif::{ProgressBar, ProgressStyle};
use rhizome_id::{Digest, Timestamp};
use rhizome_proto::admin::v1::ledger_service_client::LedgerServiceClient;
use rhizome_proto::admin::v1::{
    GetHeadRequest, LedgerEntry, LedgerHead, ListEntriesRequest, VerifyLedgerRequest, VerifyLedgerResponse,
};
use serde::Serialize;
use serde_json::{Value, json};

use crate::exit::{Exit, Failure};
use crate::output::{View, details, instant_with_distance, table};
use crate::session::{Session, call};
use crate::wire;

/// Entries the server gives at a time.
const LARGEST_PAGE: u32 = 1000;

/// See and verify the ledger of everything that was signed and changed
#[derive(Subcommand, Clone, Debug)]
pub enum LedgerVerb {
    /// Show the newest entry's place and hash; keep it elsewhere as evidence
    Head,
    /// Walk the whole chain and check every hash
    Verify {
        /// A head kept earlier, which the chain must still contain
        #[arg(long, value_name = "SEQUENCE:SHA256")]
        expect_head: Option<HeadArgument>,
    },
    /// List entries, oldest first
    List(ListEntries),
}

/// Which entries to list.
#[derive(Args, Clone, Debug)]
pub struct ListEntries {
    /// The first entry to show, by its sequence
    #[arg(long, value_name = "SEQUENCE", default_value_t = 0)]
    from: u64,

    /// Show at most this many; 0 for all
    #[arg(long, value_name = "COUNT", default_value_t = 100)]
    limit: u64,

    /// Only entries of this kind; may be repeated
    #[arg(long = "kind", value_name = "KIND")]
    kinds: Vec<String>,
}

/// A place in the ledger and the hash that stands there: `SEQUENCE:SHA256`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeadArgument {
    sequence: u64,
    digest: Digest,
}

impl FromStr for HeadArgument {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parts = text.split_once(':').and_then(|(sequence, digest)| {
            Some(Self { sequence: sequence.parse().ok()?, digest: digest.parse().ok()? })
        });
        parts.ok_or_else(|| "write SEQUENCE:SHA256, as `rhizome ledger head` shows it".to_owned())
    }
}

impl fmt::Display for HeadArgument {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.sequence, self.digest)
    }
}

impl From<HeadArgument> for LedgerHead {
    fn from(head: HeadArgument) -> Self {
        Self {
            sequence: head.sequence,
            digest: Bytes::copy_from_slice(head.digest.as_bytes()),
            recorded_at: None,
        }
    }
}

pub(crate) async fn run(verb: LedgerVerb, session: &mut Session<'_, '_>) -> Result<Exit, Failure> {
    let mut client = LedgerServiceClient::new(session.channel().await?);
    match verb {
        LedgerVerb::Head => {
            let answer = client.get_head(call(GetHeadRequest {})).await?.into_inner();
            session.show(&head(&wire::promised(answer.head, "the head")?, session.now())?)?;
        }
        LedgerVerb::Verify { expect_head } => {
            let request = VerifyLedgerRequest { expected_head: expect_head.map(LedgerHead::from) };
            let last = verify(&mut client, request).await?;
            session.show(&verified(&last)?)?;
            if !last.fault.is_empty() {
                return Err(Failure::new(Exit::Failed, "ledger_fault", last.fault).hint(
                    "keep the database as it is, and compare with a backup and with heads kept elsewhere",
                ));
            }
        }
        LedgerVerb::List(wish) => {
            let (entries, more) = entries(&mut client, &wish).await?;
            session.show(&list(entries, more)?)?;
            wire::remark_more(session, more);
        }
    }
    Ok(Exit::Done)
}

type Client = LedgerServiceClient<tonic::transport::Channel>;

/// Follows the verification to its last message. No deadline: a long chain takes long, and shows that it moves.
async fn verify(client: &mut Client, request: VerifyLedgerRequest) -> Result<VerifyLedgerResponse, Failure> {
    let mut progress = client.verify_ledger(request).await?.into_inner();
    let bar = ProgressBar::new(0);
    if let Ok(style) = ProgressStyle::with_template("Verifying {wide_bar} {pos}/{len} ({eta})") {
        bar.set_style(style);
    }
    let mut last = None;
    while let Some(message) = progress.message().await? {
        bar.set_length(message.total);
        bar.set_position(message.checked);
        let end = message.done || !message.fault.is_empty();
        last = Some(message);
        if end {
            break;
        }
    }
    bar.finish_and_clear();
    match last {
        Some(message) if message.done || !message.fault.is_empty() => Ok(message),
        Some(_) | None => Err(Failure::protocol("the verification ended before its end")),
    }
}

async fn entries(client: &mut Client, wish: &ListEntries) -> Result<(Vec<LedgerEntry>, bool), Failure> {
    let limit = if wish.limit == 0 { u64::MAX } else { wish.limit };
    let mut entries = Vec::new();
    let mut from_sequence = wish.from;
    loop {
        let have = u64::try_from(entries.len()).unwrap_or(u64::MAX);
        let rest = limit.saturating_sub(have);
        let request = ListEntriesRequest {
            from_sequence,
            limit: u32::try_from(rest).unwrap_or(LARGEST_PAGE).min(LARGEST_PAGE),
            kinds: wish.kinds.clone(),
        };
        let page = client.list_entries(call(request)).await?.into_inner();
        let gained = u64::try_from(page.entries.len()).unwrap_or(u64::MAX);
        entries.extend(page.entries);
        let more = page.next_sequence != 0;
        // A server that does not move on would hold us for ever.
        if !more || gained >= rest || page.next_sequence <= from_sequence {
            return Ok((entries, more));
        }
        from_sequence = page.next_sequence;
    }
}

#[derive(Serialize)]
struct HeadRow {
    head: Option<String>,
    sequence: u64,
    digest: Option<String>,
    recorded_at: Option<Timestamp>,
}

impl From<&LedgerHead> for HeadRow {
    fn from(head: &LedgerHead) -> Self {
        let digest = wire::hexadecimal(&head.digest);
        Self {
            head: digest.as_ref().map(|digest| format!("{}:{digest}", head.sequence)),
            sequence: head.sequence,
            digest,
            recorded_at: wire::instant(head.recorded_at.as_ref()),
        }
    }
}

fn head(head: &LedgerHead, now: Timestamp) -> Result<View, Failure> {
    let row = HeadRow::from(head);
    let text = details([
        ("head", row.head.clone().unwrap_or_else(|| "the ledger is empty".to_owned())),
        ("recorded", instant_with_distance(row.recorded_at, now)),
    ]);
    View::new(&row, text)
}

fn verified(last: &VerifyLedgerResponse) -> Result<View, Failure> {
    let sound = last.fault.is_empty();
    let row = last.head.as_ref().map(HeadRow::from);
    let text = details([
        ("ledger", if sound { "sound" } else { "FAULTY" }.to_owned()),
        ("checked", format!("{} of {} entries", last.checked, last.total)),
        ("fault", last.fault.clone()),
        ("head", row.as_ref().and_then(|row| row.head.clone()).unwrap_or_default()),
    ]);
    let json = json!({
        "sound": sound,
        "checked": last.checked,
        "total": last.total,
        "fault": wire::text(last.fault.clone()),
        "head": row,
    });
    View::new(&json, text)
}

#[derive(Serialize)]
struct EntryRow {
    sequence: u64,
    recorded_at: Option<Timestamp>,
    kind: String,
    actor: String,
    body: Value,
    digest: Option<String>,
    previous_digest: Option<String>,
}

impl From<LedgerEntry> for EntryRow {
    fn from(entry: LedgerEntry) -> Self {
        Self {
            recorded_at: wire::instant(entry.recorded_at.as_ref()),
            body: serde_json::from_str(&entry.body_json).unwrap_or(Value::String(entry.body_json)),
            digest: wire::hexadecimal(&entry.digest),
            previous_digest: wire::hexadecimal(&entry.previous_digest),
            sequence: entry.sequence,
            kind: entry.kind,
            actor: entry.actor,
        }
    }
}

/// What a person looks for in an entry. Kinds that this program does not know show their whole body.
fn summary(kind: &str, body: &Value) -> String {
    let field = |name: &str| body.get(name).and_then(Value::as_str).filter(|text| !text.is_empty());
    let labelled = |label: &str, name: &str| field(name).map(|text| format!("{label} {text}"));
    let own = |name: &str| field(name).map(str::to_owned);
    let audiences = || {
        let listed = body.get("audiences").and_then(Value::as_array);
        let names: Vec<&str> = listed.into_iter().flatten().filter_map(Value::as_str).collect();
        (!names.is_empty()).then(|| format!("for {}", names.join(", ")))
    };
    let parts = match kind {
        "issued" => [own("profile"), own("spiffe_id"), labelled("by rule", "rule")],
        "jwt_issued" => [labelled("JWT-SVID of", "spiffe_id"), audiences(), labelled("by rule", "rule")],
        "signing_failed" => [labelled("serial", "serial"), own("reason"), None],
        "changed" => [own("action"), own("subject"), own("detail")],
        "refused" => [own("action"), own("code"), own("detail")],
        _unknown => return body.to_string(),
    };
    parts.into_iter().flatten().collect::<Vec<_>>().join(" ")
}

fn list(entries: Vec<LedgerEntry>, more: bool) -> Result<View, Failure> {
    let rows: Vec<EntryRow> = entries.into_iter().map(EntryRow::from).collect();
    let cells = rows.iter().map(|row| {
        vec![
            row.sequence.to_string(),
            row.recorded_at.map(String::from).unwrap_or_default(),
            row.kind.clone(),
            row.actor.clone(),
            summary(&row.kind, &row.body),
        ]
    });
    let text = table(&["SEQUENCE", "RECORDED", "KIND", "ACTOR", "SUMMARY"], cells, "no such entries");
    View::list("entries", &rows, more, text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_is_the_same_out_and_in() {
        let text = format!("42:{}", "0a".repeat(32));
        let argument: HeadArgument = text.parse().unwrap();
        assert_eq!(argument.to_string(), text);
        assert_eq!(HeadRow::from(&LedgerHead::from(argument)).head, Some(text));
        for bad in ["", "42", "42:00", ":00", "x:00"] {
            assert!(bad.parse::<HeadArgument>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_fault_is_shouted() {
        let last = VerifyLedgerResponse {
            checked: 3,
            total: 9,
            done: false,
            fault: "entry 3 does not follow entry 2".into(),
            head: None,
        };
        let view = verified(&last).unwrap();
        assert_eq!(view.json["sound"], false);
        assert!(view.text.contains("FAULTY") && view.text.contains("3 of 9"), "{}", view.text);
    }

    #[test]
    fn people_read_one_line_about_each_entry_and_programs_all_of_it() {
        let entry = |kind: &str, body: &str| LedgerEntry {
            kind: kind.into(),
            body_json: body.into(),
            ..LedgerEntry::default()
        };
        let entries = vec![
            entry(
                "issued",
                r#"{"profile":"workload","spiffe_id":"spiffe://td/a","rule":"web","serial":"40"}"#,
            ),
            entry("signing_failed", r#"{"serial":"40","reason":"no key"}"#),
            entry("jwt_issued", r#"{"spiffe_id":"spiffe://td/b","audiences":["db","api"],"rule":"web"}"#),
            entry("changed", r#"{"by":"admin:a","action":"rule.put","subject":"web"}"#),
            entry("refused", r#"{"by":"admin:a","action":"certificate.sign","code":"no_rule"}"#),
            entry("new_kind", r#"{"x":1}"#),
        ];
        let view = list(entries, false).unwrap();
        for said in [
            "workload spiffe://td/a by rule web\n",
            "serial 40 no key\n",
            "JWT-SVID of spiffe://td/b for db, api by rule web\n",
            "rule.put web\n",
            "certificate.sign no_rule\n",
            "{\"x\":1}\n",
        ] {
            assert!(view.text.contains(said), "{said}{}", view.text);
        }
        assert_eq!(view.json["entries"][0]["body"]["serial"], "40");
    }

    #[test]
    fn an_entry_s_body_is_json_within_json() {
        let entry = LedgerEntry { body_json: r#"{"serial":"40"}"#.into(), ..LedgerEntry::default() };
        let view = list(vec![entry], false).unwrap();
        assert_eq!(view.json["entries"][0]["body"]["serial"], "40");
    }
}
