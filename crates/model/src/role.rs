//! Who may do what. A role holds every permission of the roles below it.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// What a token may do. Ordered: each role may do all that the ones before it may.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, ToSchema,
)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// Sees everything, changes nothing.
    Reader,
    /// Works with volumes, snapshots and templates.
    Operator,
    /// Also makes, checks and removes datastores.
    StorageAdmin,
    /// Also manages tokens and stops the system.
    Admin,
}

/// What a call needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Permission {
    /// See objects.
    Read,
    /// Change volumes, snapshots and templates; connect; cancel tasks.
    Operate,
    /// Change datastores.
    ManageStorage,
    /// Change tokens, read the audit log, stop the system.
    Administer,
}

impl Role {
    /// All roles, weakest first.
    pub const ALL: [Self; 4] = [Self::Reader, Self::Operator, Self::StorageAdmin, Self::Admin];

    /// Whether this role may do what needs `permission`.
    pub fn allows(self, permission: Permission) -> bool {
        self >= permission.least()
    }

    /// The role's name on the wire.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Reader => "reader",
            Self::Operator => "operator",
            Self::StorageAdmin => "storage-admin",
            Self::Admin => "admin",
        }
    }
}

impl Permission {
    /// The weakest role that has it.
    pub const fn least(self) -> Role {
        match self {
            Self::Read => Role::Reader,
            Self::Operate => Role::Operator,
            Self::ManageStorage => Role::StorageAdmin,
            Self::Administer => Role::Admin,
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for Role {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL.into_iter().find(|role| role.as_str() == text).ok_or_else(|| {
            format!("'{text}' is no role; use admin, storage-admin, operator or reader")
        })
    }
}
