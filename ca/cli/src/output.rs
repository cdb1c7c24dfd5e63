//! What a verb shows: a table for people or JSON for programs, from the same rows.
//!
//! Laws: JSON has stable snake_case names, instants as RFC 3339, digests and serials as lower-case hexadecimal;
//! tables are never coloured, and no byte from the server reaches a terminal as a control character. Not here:
//! what each noun's rows are (its own file).

use std::io::{self, Write};
use std::sync::Arc;

use clap::ValueEnum;
use comfy_table::{ContentArrangement, Table, presets};
use rhizome_id::Timestamp;
use serde::Serialize;
use serde_json::{Value, json};

use crate::exit::Failure;

/// How results are shown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum OutputFormat {
    /// Tables for people.
    #[default]
    Table,
    /// JSON for programs, with stable field names.
    Json,
}

/// What a verb shows, in both forms.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct View {
    /// For programs.
    pub(crate) json: Value,
    /// For people: complete lines.
    pub(crate) text: String,
}

impl View {
    /// Both forms; `rows` become JSON.
    pub(crate) fn new(rows: &impl Serialize, text: String) -> Result<Self, Failure> {
        let json = serde_json::to_value(rows)
            .map_err(|error| Failure::protocol(&format!("it cannot be shown as JSON ({error})")))?;
        Ok(Self { json, text })
    }

    /// A page of a list: `{"<name>": rows, "more": …}`.
    pub(crate) fn list(name: &str, rows: &impl Serialize, more: bool, text: String) -> Result<Self, Failure> {
        let mut view = Self::new(rows, text)?;
        view.json = json!({ name: view.json, "more": more });
        Ok(view)
    }
}

/// Tells the time.
pub type Clock = Arc<dyn Fn() -> Timestamp + Send + Sync>;

/// Where a verb speaks. Made by the binary; tests make one that keeps what was said.
pub struct Console<'a> {
    /// Results go here.
    pub out: &'a mut (dyn Write + Send),
    /// Errors and remarks go here.
    pub err: &'a mut (dyn Write + Send),
    /// Relative times are counted from it, and certificates judged by it.
    pub clock: Clock,
    /// True when `out` is a terminal, to which no binary data is written.
    pub terminal: bool,
}

impl Console<'_> {
    pub(crate) fn show(&mut self, format: OutputFormat, view: &View) -> Result<(), Failure> {
        match format {
            OutputFormat::Table => self.write(view.text.as_bytes()),
            OutputFormat::Json => self.write(format!("{:#}\n", view.json).as_bytes()),
        }
    }

    /// Writes to `out`. A reader that has gone away (`| head`) is no error.
    pub(crate) fn write(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        match self.out.write_all(bytes).and_then(|()| self.out.flush()) {
            Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
                Err(Failure::file("write to", "standard output".as_ref(), &error))
            }
            Ok(()) | Err(_) => Ok(()),
        }
    }

    /// A remark for people beside the result; nothing when programs read.
    pub(crate) fn remark(&mut self, format: OutputFormat, remark: &str) {
        if format == OutputFormat::Table {
            say(self.err, &format!("{}\n", printable(remark)));
        }
    }

    /// Why the verb failed.
    pub(crate) fn complain(&mut self, format: OutputFormat, failure: &Failure) {
        complain(self.err, format, failure);
    }
}

/// Writes why a verb failed to `err`: a sentence for people, or one JSON object for programs.
pub fn complain(err: &mut (dyn Write + Send), format: OutputFormat, failure: &Failure) {
    say(err, &complaint(format, failure));
}

/// Standard error is the last resort: when it fails, there is nobody left to tell.
fn say(err: &mut (dyn Write + Send), text: &str) {
    drop(err.write_all(text.as_bytes()));
}

fn complaint(format: OutputFormat, failure: &Failure) -> String {
    match format {
        OutputFormat::Json => {
            let error = json!({
                "code": failure.code(),
                "message": failure.message(),
                "hint": failure.advice(),
                "exit_code": failure.exit().code(),
            });
            format!("{:#}\n", json!({ "error": error }))
        }
        OutputFormat::Table => {
            let mut text = format!("error: {} [{}]\n", printable(failure.message()), failure.code());
            if let Some(hint) = failure.advice() {
                text.push_str(&format!("hint:  {}\n", printable(hint)));
            }
            text
        }
    }
}

/// A table with a heading row; every row as long as the heading. `nothing` is said when there are no rows.
pub(crate) fn table(heading: &[&str], rows: impl IntoIterator<Item = Vec<String>>, nothing: &str) -> String {
    let mut table = plain();
    table.set_header(heading.iter().copied());
    for row in rows {
        table.add_row(row.iter().map(|cell| printable(cell)));
    }
    if table.row_count() == 0 {
        return format!("{nothing}\n");
    }
    trimmed(&table)
}

/// One thing, field by field. Fields without a value are left out.
pub(crate) fn details<'a>(fields: impl IntoIterator<Item = (&'a str, String)>) -> String {
    let mut table = plain();
    for (name, value) in fields {
        if !value.is_empty() {
            table.add_row([name.to_owned(), printable(&value)]);
        }
    }
    trimmed(&table)
}

fn plain() -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    table
}

/// The library pads cells on both sides; lines that a script reads should not begin or end with spaces.
fn trimmed(table: &Table) -> String {
    let mut text = String::new();
    for line in table.lines() {
        let line = line.strip_prefix(' ').unwrap_or(&line);
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// The text with control characters escaped, so that no value can drive a terminal.
pub(crate) fn printable(text: &str) -> String {
    text.chars().fold(String::with_capacity(text.len()), |mut clean, c| {
        if c.is_control() || is_bidirectional(c) {
            clean.extend(c.escape_default());
        } else {
            clean.push(c);
        }
        clean
    })
}

/// Characters that reorder what a reader sees.
const fn is_bidirectional(c: char) -> bool {
    matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// `2026-11-22T12:00:00Z (in 3h 5m)`; empty without an instant.
pub(crate) fn instant_with_distance(at: Option<Timestamp>, now: Timestamp) -> String {
    at.map_or_else(String::new, |at| format!("{at} ({})", distance(at, now)))
}

/// `in 3h 5m`, `2d 1h ago` or `now`; `-` without an instant.
pub(crate) fn relative(at: Option<Timestamp>, now: Timestamp) -> String {
    at.map_or_else(|| "-".to_owned(), |at| distance(at, now))
}

fn distance(at: Timestamp, now: Timestamp) -> String {
    match at.since(now) {
        0 => "now".to_owned(),
        ahead @ 1.. => format!("in {}", span(ahead)),
        behind => format!("{} ago", span(behind.saturating_neg())),
    }
}

/// The two largest units of a span of seconds.
pub(crate) fn span(seconds: i64) -> String {
    let units = [("d", 86_400), ("h", 3600), ("m", 60), ("s", 1)];
    let mut rest = seconds.max(0);
    let mut parts = Vec::new();
    for (name, size) in units {
        let count = rest / size;
        rest %= size;
        if count > 0 {
            parts.push(format!("{count}{name}"));
        } else if !parts.is_empty() {
            break;
        }
    }
    parts.truncate(2);
    if parts.is_empty() { "0s".to_owned() } else { parts.join(" ") }
}

/// `-` for nothing, so that columns stay readable.
pub(crate) fn or_dash(text: &str) -> String {
    if text.is_empty() { "-".to_owned() } else { text.to_owned() }
}

/// `yes` or `no`.
pub(crate) fn yes_no(value: bool) -> String {
    if value { "yes" } else { "no" }.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exit::Exit;

    #[test]
    fn a_table_is_plain_lines_without_padding_at_the_ends() {
        let rows = [["a", "long value"], ["bb", ""]].map(|row| row.map(str::to_owned).to_vec());
        assert_eq!(table(&["ID", "WHAT"], rows, "none"), "ID  WHAT\na   long value\nbb\n");
        assert_eq!(table(&["ID"], [], "no tokens"), "no tokens\n");
    }

    #[test]
    fn details_leave_out_what_has_no_value() {
        assert_eq!(details([("id", "1".to_owned()), ("empty", String::new())]), "id  1\n");
    }

    #[test]
    fn a_hostile_value_cannot_drive_the_terminal() {
        let shown = table(&["NAME"], [vec!["\u{1b}[2Jx\r\nadmin\u{202e}".to_owned()]], "none");
        assert_eq!(shown, "NAME\n\\u{1b}[2Jx\\r\\nadmin\\u{202e}\n");
    }

    #[test]
    fn distances_show_the_two_largest_units() {
        let now = Timestamp::from_unix(1_000_000);
        for (seconds, expected) in [
            (0, "now"),
            (59, "in 59s"),
            (3_661, "in 1h 1m"),
            (86_400, "in 1d"),
            (90_061, "in 1d 1h"),
            (86_459, "in 1d"),
        ] {
            assert_eq!(relative(Some(now.plus(seconds)), now), expected);
        }
        assert_eq!(relative(Some(now.minus(120)), now), "2m ago");
        assert_eq!(relative(None, now), "-");
    }

    #[test]
    fn programs_read_failures_as_json_too() {
        let failure = Failure::new(Exit::NotFound, "not_found", "no such node").hint("list them");
        let parsed: Value = serde_json::from_str(&complaint(OutputFormat::Json, &failure)).unwrap();
        assert_eq!(parsed["error"]["code"], "not_found");
        assert_eq!(parsed["error"]["exit_code"], 3);
        assert_eq!(
            complaint(OutputFormat::Table, &failure),
            "error: no such node [not_found]\nhint:  list them\n"
        );
    }
}
