//! `rhizome admin`: administrators and their identities.
//!
//! Laws: the key is made here and never leaves this machine; the server sees only a request for it.

use std::path::PathBuf;

use bytes::Bytes;
use clap::{Args, Subcommand, ValueEnum};
use rhizome_id::{AdminName, Timestamp, TrustDomain, Ttl};
use rhizome_proto::admin::v1::admin_identity_service_client::AdminIdentityServiceClient;
use rhizome_proto::admin::v1::{
    Admin, IssueAdminCertificateRequest, ListAdminsRequest, RemoveAdminRequest, RemoveAdminResponse, Role,
};
use rhizome_tls::IdentityDir;
use serde::Serialize;
use serde_json::json;

use crate::exit::{Exit, Failure};
use crate::issued::Issued;
use crate::output::{View, printable, relative, table};
use crate::request::{new_key, summary};
use crate::session::{Session, call, patiently};
use crate::wire;

/// Manage administrators
#[derive(Subcommand, Clone, Debug)]
pub enum AdminVerb {
    /// Make a key and get an administrator's certificate for it
    Add(AddAdmin),
    /// List administrators
    List {
        /// Show at most this many; 0 for all
        #[arg(long, value_name = "COUNT", default_value_t = 1000)]
        limit: usize,
    },
    /// Remove an administrator: all certificates of that name are refused from now on
    Remove {
        /// The administrator's name
        name: AdminName,
        /// Why, for the audit log
        #[arg(long, default_value = "")]
        reason: String,
    },
}

/// Who becomes an administrator.
#[derive(Args, Clone, Debug)]
pub struct AddAdmin {
    /// The administrator's name
    name: AdminName,

    /// What it may do
    #[arg(long, value_enum)]
    role: RoleArgument,

    /// The directory to put key.pem, chain.pem, bundle.pem and trust-domain into; give it as --identity later
    #[arg(long, value_name = "DIR")]
    out: PathBuf,

    /// How long the certificate lives, such as 12h [default: the server's]
    #[arg(long, value_name = "LIFETIME")]
    ttl: Option<Ttl>,

    /// Replace the identity that is in the directory already
    #[arg(long)]
    force: bool,
}

/// What an administrator may do; each role includes the ones before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum RoleArgument {
    /// Sees everything, changes nothing
    Viewer,
    /// Also manages tokens, nodes and rules, and revokes certificates
    Operator,
    /// Also manages administrators, rotates issuers and takes backups
    Security,
}

impl From<RoleArgument> for Role {
    fn from(role: RoleArgument) -> Self {
        match role {
            RoleArgument::Viewer => Self::Viewer,
            RoleArgument::Operator => Self::Operator,
            RoleArgument::Security => Self::Security,
        }
    }
}

pub(crate) async fn run(verb: AdminVerb, session: &mut Session<'_, '_>) -> Result<Exit, Failure> {
    if let AdminVerb::Add(wish) = &verb {
        refuse_to_overwrite(wish)?;
    }
    let mut client = AdminIdentityServiceClient::new(session.channel().await?);
    match verb {
        AdminVerb::Add(wish) => {
            let (key, csr_der) = new_key()?;
            let request = IssueAdminCertificateRequest {
                name: wish.name.into(),
                role: Role::from(wish.role).into(),
                csr_der: Bytes::from(csr_der),
                ttl_seconds: wish.ttl.map_or(0, Ttl::seconds),
            };
            let waiting = client.issue_admin_certificate(call(request));
            let answer = patiently("Waiting for the certificate".to_owned(), waiting).await?.into_inner();
            let sent = wire::promised(answer.issued, "the certificate")?;
            let domain = domain_of(sent.bundle.as_ref().map(|bundle| bundle.trust_domain.as_str()))?;
            let issued = Issued::check(sent, &key, &domain, None, session.now())?;
            issued.save(&IdentityDir::new(&wish.out))?;
            session.show(&summary(&issued, Some(&wish.out), session.now())?)?;
            session.remark(&format!(
                "use it with --identity {} and --server https://HOST:PORT",
                wish.out.display()
            ));
        }
        AdminVerb::List { limit } => {
            let listed = wire::pages(limit, async |page_size, page_token| {
                let request = ListAdminsRequest { page_size, page_token };
                let page = client.list_admins(call(request)).await?.into_inner();
                Ok((page.admins, page.next_page_token))
            })
            .await?;
            session.show(&list(listed.items, listed.more, session.now())?)?;
            wire::remark_more(session, listed.more);
        }
        AdminVerb::Remove { name, reason } => {
            let request = RemoveAdminRequest { name: name.into(), reason };
            let answer = client.remove_admin(call(request)).await?.into_inner();
            session.show(&removed(answer)?)?;
        }
    }
    Ok(Exit::Done)
}

fn refuse_to_overwrite(wish: &AddAdmin) -> Result<(), Failure> {
    if wish.force || !IdentityDir::new(&wish.out).exists() {
        return Ok(());
    }
    let message = format!("{} holds an identity already", wish.out.display());
    Err(Failure::new(Exit::Failed, "already_there", message)
        .hint("choose another directory with --out, or replace the identity with --force"))
}

/// The connection was authenticated, by the socket or by TLS; so the server's word on its trust domain is good.
fn domain_of(said: Option<&str>) -> Result<TrustDomain, Failure> {
    let said = said.ok_or_else(|| Failure::protocol("the bundle is missing"))?;
    said.parse().map_err(|error| Failure::protocol(&format!("{error}")))
}

#[derive(Serialize)]
struct AdminRow {
    name: String,
    role: &'static str,
    spiffe_id: String,
    created_at: Option<Timestamp>,
    created_by: String,
    serial: Option<String>,
    not_after: Option<Timestamp>,
}

impl From<Admin> for AdminRow {
    fn from(admin: Admin) -> Self {
        Self {
            role: wire::role(admin.role),
            created_at: wire::instant(admin.created_at.as_ref()),
            not_after: wire::instant(admin.not_after.as_ref()),
            name: admin.name,
            spiffe_id: admin.spiffe_id,
            created_by: admin.created_by,
            serial: wire::text(admin.serial),
        }
    }
}

fn list(admins: Vec<Admin>, more: bool, now: Timestamp) -> Result<View, Failure> {
    let rows: Vec<AdminRow> = admins.into_iter().map(AdminRow::from).collect();
    let cells = rows.iter().map(|row| {
        vec![
            row.name.clone(),
            row.role.to_owned(),
            relative(row.not_after, now),
            relative(row.created_at, now),
            row.created_by.clone(),
        ]
    });
    let heading = ["NAME", "ROLE", "CERTIFICATE EXPIRES", "CREATED", "CREATED BY"];
    let text = table(&heading, cells, "no administrators but the local ones; `rhizome admin add` makes one");
    View::list("admins", &rows, more, text)
}

fn removed(answer: RemoveAdminResponse) -> Result<View, Failure> {
    let row = AdminRow::from(wire::promised(answer.admin, "the administrator")?);
    let text = format!(
        "removed {}: {} certificate(s) revoked; the name is free\n",
        printable(&row.name),
        answer.revoked
    );
    View::new(&json!({ "admin": row, "revoked": answer.revoked }), text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn administrators_are_listed_with_their_roles() {
        let admin = Admin {
            name: "alice".into(),
            role: Role::Security.into(),
            created_by: "local:uid=0(root)".into(),
            not_after: Some(prost_types::Timestamp { seconds: 3600, nanos: 0 }),
            created_at: Some(prost_types::Timestamp { seconds: 0, nanos: 0 }),
            ..Admin::default()
        };
        let view = list(vec![admin], false, Timestamp::EPOCH).unwrap();
        assert_eq!(
            view.text,
            "NAME   ROLE      CERTIFICATE EXPIRES  CREATED  CREATED BY\nalice  security  in 1h                now      local:uid=0(root)\n"
        );
    }

    #[test]
    fn a_removal_says_what_happened() {
        let admin = Admin { name: "alice".into(), role: Role::Viewer.into(), ..Admin::default() };
        let view = removed(RemoveAdminResponse { admin: Some(admin), revoked: 2 }).unwrap();
        assert_eq!(view.text, "removed alice: 2 certificate(s) revoked; the name is free\n");
        assert_eq!((&view.json["admin"]["name"], &view.json["revoked"]), (&"alice".into(), &2.into()));
    }

    #[test]
    fn an_identity_is_not_overwritten_unless_that_was_asked_for() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("chain.pem"), "x").unwrap();
        let wish = |force| AddAdmin {
            name: "alice".parse().unwrap(),
            role: RoleArgument::Viewer,
            out: folder.path().to_owned(),
            ttl: None,
            force,
        };
        assert_eq!(refuse_to_overwrite(&wish(false)).unwrap_err().code(), "already_there");
        assert!(refuse_to_overwrite(&wish(true)).is_ok());
    }
}
