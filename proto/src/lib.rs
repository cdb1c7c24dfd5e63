//! The wire and nothing but the wire: messages, clients and servers generated from `proto/rhizome`.
//!
//! Laws: what is committed in `src/gen` is what the `.proto` files give, byte for byte (`tests/drift.rs`); the build
//! runs no compiler of its own. Not here: what any message means to the authority; that is `rhizome-server`'s, which
//! turns messages into valid types at its doors.
//! Sources: `proto/rhizome/**/*.proto`, linted by buf's STANDARD and COMMENTS categories.

/// All files of the protocol with what they import, as an encoded `google.protobuf.FileDescriptorSet`: for reflection.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!("gen/descriptor.bin");

/// Metadata key of a failed call: the stable machine code, as in [`ca::v1::Problem::code`].
pub const METADATA_CODE: &str = "rhizome-code";

/// Metadata key of a failed call: milliseconds after which a retry may succeed, in decimal digits.
pub const METADATA_RETRY_AFTER_MS: &str = "rhizome-retry-after-ms";

/// Certificates and bundles.
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
