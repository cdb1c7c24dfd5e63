//! A command line that was not understood: what programs are told about it.
//!
//! Laws: nothing of the command line is known when it was not understood, so the form of the answer is read from its
//! words. Not here: what people are told, which is what clap prints.

use std::ffi::OsStr;

use clap::error::ErrorKind;

/// Why a command line was not understood, in the words of clap.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NotUnderstood {
    /// One sentence, on one line.
    pub message: String,
    /// What to do.
    pub hint: String,
}

impl From<&clap::Error> for NotUnderstood {
    fn from(error: &clap::Error) -> Self {
        let text = error.render().to_string();
        // Without a verb clap shows the help, or the names of all verbs, hidden ones too.
        let verbless = matches!(
            error.kind(),
            ErrorKind::MissingSubcommand | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand
        );
        let said = if verbless { "no verb was given" } else { text.strip_prefix("error: ").unwrap_or(&text) };
        let mut paragraphs = said.split("\n\n").map(on_one_line);
        let message = paragraphs.next().unwrap_or_default();
        let tip = paragraphs.find_map(|it| it.strip_prefix("tip: ").map(str::to_owned));
        Self { message, hint: tip.unwrap_or_else(|| "see --help".to_owned()) }
    }
}

fn on_one_line(paragraph: &str) -> String {
    paragraph.lines().map(str::trim).collect::<Vec<_>>().join(" ").trim().to_owned()
}

/// Whether the words of a command line say `--output json`, wherever they stand before a `--`.
pub fn asks_for_json(words: &[impl AsRef<OsStr>]) -> bool {
    let words = words.iter().map(AsRef::as_ref).take_while(|word| *word != "--");
    let mut before = None;
    for word in words {
        if word == "--output=json" || (before == Some(OsStr::new("--output")) && word == "json") {
            return true;
        }
        before = Some(word);
    }
    false
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::program::Program;

    #[test]
    fn the_form_is_read_from_the_words_before_the_end_of_options() {
        for (words, expected) in [
            (&["rhizome", "--output", "json", "frobnicate"][..], true),
            (&["rhizome", "frobnicate", "--output=json"], true),
            (&["rhizome", "frobnicate", "--output", "table", "json"], false),
            (&["rhizome", "frobnicate", "json"], false),
            (&["rhizome", "frobnicate", "--output"], false),
            (&["rhizome", "frobnicate", "--", "--output", "json"], false),
        ] {
            assert_eq!(asks_for_json(words), expected, "{words:?}");
        }
    }

    #[test]
    fn what_clap_says_becomes_one_sentence_and_one_hint() {
        let told = |words: &[&str]| {
            let words = std::iter::once("rhizome-agent").chain(words.iter().copied());
            NotUnderstood::from(&Program::try_parse_from(words).unwrap_err())
        };
        let misspelt = told(&["stauts"]);
        assert_eq!(misspelt.message, "unrecognized subcommand 'stauts'");
        assert!(misspelt.hint.contains("'status'"), "{misspelt:?}");
        let lacking = told(&["join"]);
        assert!(lacking.message.ends_with("were not provided: <JOIN_STRING>"), "{lacking:?}");
        assert_eq!(lacking.hint, "see --help");
        assert_eq!(told(&[]).message, "no verb was given");
    }
}
