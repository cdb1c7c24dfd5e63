//! The wire and nothing but the wire: messages, clients and servers generated from `proto/rhizome` and
//! `proto/workload`.
//!
//! Laws: what is committed in `src/gen` is what the `.proto` files give, byte for byte (`tests/drift.rs`); the build
//! runs no compiler of its own. Not here: what any message means to the authority; that is `rhizome-server`'s, which
//! turns messages into valid types at its doors.
//! Messages with a private key or a token do not show it in `Debug`.
//! Sources: `proto/rhizome/**/*.proto`, linted by buf's STANDARD and COMMENTS categories; `proto/workload`, fixed by the
//! SPIFFE standard.

/// All files of our own protocol with what they import, as an encoded `google.protobuf.FileDescriptorSet`: for reflection.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!("gen/descriptor.bin");

/// Metadata key of a failed call: the stable machine code, as in [`ca::v1::Problem::code`].
pub const METADATA_CODE: &str = "rhizome-code";

/// Metadata key of a failed call: milliseconds after which a retry may succeed, in decimal digits.
pub const METADATA_RETRY_AFTER_MS: &str = "rhizome-retry-after-ms";

/// What stands for a secret in `Debug`.
const HIDDEN: &str = "(hidden)";

pub mod codec;

/// Certificates, tokens and bundles.
pub mod ca {
    /// Version 1.
    pub mod v1 {
        #![expect(
            clippy::allow_attributes_without_reason,
            clippy::as_conversions,
            clippy::large_enum_variant,
            clippy::too_many_lines,
            unused_qualifications,
            reason = "generated code"
        )]
        include!("gen/rhizome.ca.v1.rs");

        use std::fmt;

        impl fmt::Debug for JwtSvid {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                let Self { token: _, spiffe_id, issued_at, expires_at, jti, kid } = self;
                f.debug_struct("JwtSvid")
                    .field("token", &super::super::HIDDEN)
                    .field("spiffe_id", spiffe_id)
                    .field("issued_at", issued_at)
                    .field("expires_at", expires_at)
                    .field("jti", jti)
                    .field("kid", kid)
                    .finish()
            }
        }
    }
}

/// Nodes: how they join, renew and stay informed.
pub mod node {
    /// Version 1.
    pub mod v1 {
        #![expect(
            clippy::allow_attributes_without_reason,
            clippy::as_conversions,
            clippy::too_many_lines,
            unused_qualifications,
            reason = "generated code"
        )]
        include!("gen/rhizome.node.v1.rs");
    }
}

/// What the Rhizome of a cluster asks of the root's.
pub mod upstream {
    /// Version 1.
    pub mod v1 {
        #![expect(
            clippy::allow_attributes_without_reason,
            clippy::as_conversions,
            clippy::too_many_lines,
            unused_qualifications,
            reason = "generated code"
        )]
        include!("gen/rhizome.upstream.v1.rs");
    }
}

/// Administration.
pub mod admin {
    /// Version 1.
    pub mod v1 {
        #![expect(
            clippy::allow_attributes_without_reason,
            clippy::as_conversions,
            clippy::too_many_lines,
            unused_qualifications,
            reason = "generated code"
        )]
        include!("gen/rhizome.admin.v1.rs");
    }
}

/// The SPIFFE Workload API. Its names, and that it has no package, are the standard's.
pub mod workload {
    #![expect(
        clippy::allow_attributes_without_reason,
        clippy::as_conversions,
        clippy::too_many_lines,
        unused_qualifications,
        reason = "generated code"
    )]
    include!("gen/workload.rs");

    use std::fmt;

    use super::HIDDEN;

    /// `workload.proto` with what it imports, as an encoded `google.protobuf.FileDescriptorSet`: for reflection.
    pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!("gen/workload.bin");

    /// Metadata key of the security header, whose value is `true`: every request carries it exactly once (SPIFFE
    /// Workload Endpoint §6).
    pub const SECURITY_HEADER: &str = "workload.spiffe.io";

    /// A request with the security header, as a client of the Workload API sends it.
    pub fn secured<M>(message: M) -> tonic::Request<M> {
        let mut request = tonic::Request::new(message);
        let value = tonic::metadata::MetadataValue::from_static("true");
        drop(request.metadata_mut().insert(SECURITY_HEADER, value));
        request
    }

    impl fmt::Debug for X509svid {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            let Self { spiffe_id, x509_svid, x509_svid_key: _, bundle, hint } = self;
            f.debug_struct("X509svid")
                .field("spiffe_id", spiffe_id)
                .field("x509_svid", x509_svid)
                .field("x509_svid_key", &HIDDEN)
                .field("bundle", bundle)
                .field("hint", hint)
                .finish()
        }
    }

    impl fmt::Debug for Jwtsvid {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            let Self { spiffe_id, svid: _, hint } = self;
            let mut shown = f.debug_struct("Jwtsvid");
            shown.field("spiffe_id", spiffe_id).field("svid", &HIDDEN).field("hint", hint).finish()
        }
    }

    impl fmt::Debug for Witsvid {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            let Self { spiffe_id, wit_svid: _, wit_svid_key: _, hint } = self;
            f.debug_struct("Witsvid")
                .field("spiffe_id", spiffe_id)
                .field("wit_svid", &HIDDEN)
                .field("wit_svid_key", &HIDDEN)
                .field("hint", hint)
                .finish()
        }
    }

    impl fmt::Debug for ValidateJwtsvidRequest {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            let Self { audience, svid: _ } = self;
            f.debug_struct("ValidateJwtsvidRequest")
                .field("audience", audience)
                .field("svid", &HIDDEN)
                .finish()
        }
    }
}
