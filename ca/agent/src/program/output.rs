//! What a verb shows: lines for people or JSON for programs.
//!
//! Laws: JSON has stable snake_case names and instants as RFC 3339; no byte from elsewhere reaches a terminal as a
//! control character; a reader that has gone away (`| head`) is no error. Not here: what is shown.

use std::io::{self, Write};

use clap::ValueEnum;
use serde_json::{Value, json};

use super::exit::{Exit, Failure};

/// How results are shown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum OutputFormat {
    /// Lines for people.
    #[default]
    Table,
    /// JSON for programs, with stable field names.
    Json,
}

/// A result in both forms.
pub(super) struct View {
    pub(super) json: Value,
    /// Complete lines, already printable.
    pub(super) text: String,
}

/// Writes a result to standard output.
pub(super) fn show(format: OutputFormat, view: &View) -> Result<(), Failure> {
    let text = match format {
        OutputFormat::Table => view.text.clone(),
        OutputFormat::Json => format!("{:#}\n", view.json),
    };
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(cause) if cause.kind() != io::ErrorKind::BrokenPipe => {
            Err(Failure::new(Exit::Failed, "file", format!("cannot write to standard output: {cause}")))
        }
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Writes why a verb failed to standard error, the last resort: when that fails, there is nobody left to tell.
pub(super) fn complain(format: OutputFormat, failure: &Failure) {
    drop(io::stderr().lock().write_all(complaint(format, failure).as_bytes()));
}

fn complaint(format: OutputFormat, Failure { exit, code, message, hint }: &Failure) -> String {
    match format {
        OutputFormat::Table => {
            let hint = hint.iter().map(|hint| format!("hint:  {}\n", printable(hint))).collect::<String>();
            format!("error: {} [{code}]\n{hint}", printable(message))
        }
        OutputFormat::Json => {
            let error = json!({ "code": code, "message": message, "hint": hint, "exit_code": exit.code() });
            format!("{:#}\n", json!({ "error": error }))
        }
    }
}

/// One thing, field by field; fields without a value are left out.
pub(super) fn details(fields: &[(&str, String)]) -> String {
    let fields = fields.iter().filter(|(_, value)| !value.is_empty());
    let width = fields.clone().map(|(name, _)| name.len()).max().unwrap_or_default();
    fields.map(|(name, value)| format!("{name:width$}  {}\n", printable(value))).collect()
}

/// The text with everything escaped that could drive a terminal; lines stay lines.
pub(super) fn printable(text: &str) -> String {
    text.chars().fold(String::with_capacity(text.len()), |mut clean, c| {
        let reorders =
            matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
        if (c.is_control() && c != '\n') || reorders {
            clean.extend(c.escape_default());
        } else {
            clean.push(c);
        }
        clean
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_aligned_and_empty_ones_left_out() {
        let fields = [("a", "1".to_owned()), ("none", String::new()), ("long", "\u{1b}[2J".to_owned())];
        assert_eq!(details(&fields), "a     1\nlong  \\u{1b}[2J\n");
    }

    #[test]
    fn programs_read_failures_as_json_too() {
        let failure = Failure::new(Exit::Denied, "denied", "no\u{202e}");
        let parsed: Value = serde_json::from_str(&complaint(OutputFormat::Json, &failure)).unwrap();
        assert_eq!(
            (parsed["error"]["code"].as_str(), parsed["error"]["exit_code"].as_u64()),
            (Some("denied"), Some(4))
        );
        assert_eq!(complaint(OutputFormat::Table, &failure), "error: no\\u{202e} [denied]\n");
    }
}
