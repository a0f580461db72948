//! Typed identifiers. Each is opaque to clients and never mistaken for another.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// A text that is not an identifier of the wanted kind.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a valid {what}")]
pub struct InvalidId {
    /// What the text was meant to be, for example `resource id`.
    pub what: &'static str,
}

macro_rules! uuid_id {
    ($(#[$doc:meta])* $name:ident, $what:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        #[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
        #[cfg_attr(feature = "openapi", schema(value_type = String, format = "uuid"))]
        pub struct $name(Uuid);

        impl $name {
            /// Wraps a UUID that an [`Environment`](crate::env::Environment) made.
            pub const fn from_u128(value: u128) -> Self {
                Self(Uuid::from_u128(value))
            }

            /// The identifier as a number, big-endian, so that it sorts by creation.
            pub const fn as_u128(self) -> u128 {
                self.0.as_u128()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.as_hyphenated().fmt(f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }

        impl FromStr for $name {
            type Err = InvalidId;

            fn from_str(text: &str) -> Result<Self, InvalidId> {
                let invalid = InvalidId { what: $what };
                let id = Uuid::try_parse(text).map_err(|_| invalid.clone())?;
                // Only the canonical spelling: an id is also part of names and paths.
                if id.as_hyphenated().to_string() == text { Ok(Self(id)) } else { Err(invalid) }
            }
        }
    };
}

uuid_id!(
    /// Names a resource; a UUIDv7, so ids sort by creation.
    ResourceId, "resource id"
);
uuid_id!(
    /// Names an operation; a UUIDv7.
    OperationId, "operation id"
);
uuid_id!(
    /// Names a snapshot of a virtual machine; a UUIDv7.
    SnapshotId, "snapshot id"
);

macro_rules! text_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        #[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
        #[cfg_attr(feature = "openapi", schema(value_type = String))]
        pub struct $name(String);

        impl $name {
            /// Takes the text as it is.
            pub fn new(text: impl Into<String>) -> Self {
                Self(text.into())
            }

            /// The text itself.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl From<&str> for $name {
            fn from(text: &str) -> Self {
                Self::new(text)
            }
        }
    };
}

text_id!(
    /// Names the machine that workloads run on.
    NodeId
);
text_id!(
    /// Names a backend of a node, for example `docker`.
    BackendName
);
text_id!(
    /// The UUID of a whole GPU as its driver reports it, for example `GPU-5c0f…`.
    GpuUuid
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_reads_back_what_it_writes() {
        let id = ResourceId::from_u128(0x0190_0000_0000_7000_8000_0000_0000_0001);
        assert_eq!(id.to_string().parse::<ResourceId>(), Ok(id));
    }

    #[test]
    fn only_the_canonical_spelling_is_an_id() {
        for text in [
            "",
            "x",
            "01900000-0000-7000-8000-00000000000",
            "{01900000-0000-7000-8000-000000000001}",
            "01900000000070008000000000000001",
            "01900000-0000-7000-8000-00000000000A",
        ] {
            assert!(text.parse::<ResourceId>().is_err(), "{text}");
        }
    }
}
