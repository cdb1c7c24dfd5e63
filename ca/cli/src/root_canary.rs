//! `rhizome root rotate --canary`: a share is issued under the new root first.
//!
//! Not here: who belongs to the share, and what follows from a failure (`rhizome_core::rotation`).

use clap::Args;
use rhizome_id::{Timestamp, Ttl};
use rhizome_proto::admin::v1::{Rotation, RotationCanary, RotationCanaryStatus};
use serde_json::{Value, json};

use crate::exit::Failure;
use crate::output::{instant_with_distance, printable, span};
use crate::root::seconds;
use crate::wire;

/// Which share, and for how long.
#[derive(Args, Clone, Debug)]
pub(crate) struct CanaryArgs {
    /// Issue as many of a hundred identities under the new root first, such as 5%, and verify handshakes between both
    #[arg(long = "canary", value_name = "PERCENT", value_parser = percent, conflicts_with = "namespaces")]
    percent: Option<u32>,

    /// Issue under the new root first what is in this namespace; may be said several times
    #[arg(long = "canary-namespace", value_name = "NAMESPACE")]
    namespaces: Vec<String>,

    /// For how long no handshake of the canary may fail [default: 30m]
    #[arg(long = "canary-for", value_name = "TTL")]
    duration: Option<Ttl>,
}

fn percent(text: &str) -> Result<u32, String> {
    let number = text.strip_suffix('%').unwrap_or(text).parse::<u32>().ok();
    number.filter(|it| (1..=99).contains(it)).ok_or_else(|| "1% to 99%".to_owned())
}

impl CanaryArgs {
    pub(crate) fn chosen(self) -> Result<Option<RotationCanary>, Failure> {
        let Self { percent, namespaces, duration } = self;
        if percent.is_none() && namespaces.is_empty() {
            return match duration {
                None => Ok(None),
                Some(_) => Err(Failure::usage("--canary-for needs --canary or --canary-namespace")),
            };
        }
        let percent = percent.unwrap_or_default();
        Ok(Some(RotationCanary { percent, namespaces, seconds: duration.map(seconds) }))
    }
}

/// What was chosen, in words.
pub(crate) fn chosen(canary: &RotationCanary) -> String {
    let duration = span(i64::try_from(canary.seconds.unwrap_or_default()).unwrap_or(i64::MAX));
    if canary.percent > 0 {
        return format!("{}% of identities, for {duration}", canary.percent);
    }
    printable(&format!("namespaces {}, for {duration}", canary.namespaces.join(", ")))
}

/// What people are shown of it.
pub(crate) fn fields(rotation: &Rotation, now: Timestamp) -> Vec<(&'static str, String)> {
    let chosen_one = rotation.choices.as_ref().and_then(|it| it.canary.as_ref());
    let (Some(canary), Some(status)) = (chosen_one, &rotation.canary) else { return Vec::new() };
    let mut fields = vec![("canary", chosen(canary))];
    if rotation.outcome.is_empty() {
        let count = format!("{} certificates of {} holders", status.certificates, status.holders);
        fields.push(("below the new root", count));
    }
    if status.probes > 0 {
        let last = instant_with_distance(wire::instant(status.last_probe.as_ref()), now);
        fields.push(("canary probed", format!("{} times, last {last}", status.probes)));
    }
    if !status.replicas_without.is_empty() {
        let names = status.replicas_without.join(", ");
        fields.push(("servers without canary", printable(&names)));
    }
    if !status.failure.is_empty() {
        fields.push(("canary failed", printable(&status.failure)));
    }
    fields
}

/// What was chosen, for programs.
pub(crate) fn choice_json(canary: Option<&RotationCanary>) -> Value {
    canary.map_or(
        Value::Null,
        |it| json!({ "percent": it.percent, "namespaces": it.namespaces, "seconds": it.seconds }),
    )
}

/// How it does, for programs.
pub(crate) fn status_json(status: Option<&RotationCanaryStatus>) -> Value {
    status.map_or(Value::Null, |it| {
        json!({
            "certificates": it.certificates,
            "holders": it.holders,
            "replicas": it.replicas,
            "replicas_without": it.replicas_without,
            "probes": it.probes,
            "last_probe": wire::instant(it.last_probe.as_ref()),
            "failure": wire::text(it.failure.clone()),
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_is_said_with_or_without_the_sign_and_never_nobody_or_everybody() {
        assert_eq!(percent("5%"), Ok(5));
        assert_eq!(percent("99"), Ok(99));
        for nonsense in ["0%", "100%", "-1%", "5%%", "", "%"] {
            assert!(percent(nonsense).is_err(), "{nonsense}");
        }
    }
}
